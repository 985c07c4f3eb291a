"""The command line of ``python -m app``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from digpt.engine import Engine
from digpt.errors import DigptError


@dataclass(frozen=True)
class AppConfig:
    """Try a model in the browser.

    python -m app --model bundled
    python -m app --model open_clip:ViT-B-16/openai
    """

    model: str = "bundled"
    """bundled, a ckpt.pt, an artifact directory, timm:NAME, open_clip:NAME/TAG."""
    backend: str | None = None
    """torch or onnx; by default what fits the model."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 answers the whole network."""
    port: int = 7860
    """Port to listen on."""
    threads: int | None = None
    """Threads of the model's computation; by default as many as the backend likes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Show the demo until interrupted; 2 and a sentence if the model cannot be loaded."""
    config = tyro.cli(AppConfig, prog="python -m app", args=argv)
    try:
        engine = Engine.load(config.model, config.backend, threads=config.threads)
    except DigptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from app.demo import launch  # after the model, whose errors should not wait for Gradio's import

    print(f"{engine.info.name}: {engine.info.fingerprint}, {engine.info.backend} {engine.info.precision}")
    print(f"demo http://{config.host}:{config.port}", flush=True)
    launch(engine, config.host, config.port)
    return 0
