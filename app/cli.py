"""Try models in the browser.

python -m app --model bundled
python -m app --model open_clip:ViT-B-16/openai --search-dir my-pictures
python -m app --model bundled --model runs/onnx
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from app.search import folder
from digpt.cli import Command
from digpt.engine import Engine

COMMAND = Command("app", __doc__, after="the demo has stopped")


@dataclass(frozen=True)
class AppConfig:
    """Options of the demo."""

    model: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SPEC"), tyro.conf.UseAppendAction] = ()
    """A model to pick in the browser, repeatable; the first is shown first. bundled (the default), a ckpt.pt, an
    artifact directory, timm:NAME, open_clip:NAME/TAG."""
    backend: str | None = None
    """torch, or an engine that the artifact holds, such as onnx; by default what fits the model."""
    search_dir: str | None = None
    """Folder of pictures to search, with its subfolders; by default the bundled set."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 answers the whole network."""
    port: int = 7860
    """Port to listen on."""
    threads: int | None = None
    """Threads of the model's computation; by default as many as the backend likes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Show the demo until interrupted; return the exit code."""
    return COMMAND.run(AppConfig, argv, _show)


def _show(config: AppConfig) -> int:
    engines = load_engines(config)
    if config.search_dir is not None:
        folder(config.search_dir)
    from app.demo import launch  # after the models, whose errors should not wait for Gradio's import

    for name, engine in engines.items():
        print(f"{name}: {engine.info.fingerprint}, {engine.info.backend} {engine.info.precision}")
    print(f"demo http://{config.host}:{config.port}", flush=True)
    launch(engines, config.host, config.port, config.search_dir)
    return 0


def load_engines(config: AppConfig) -> dict[str, Engine]:
    """Load every model under its own name, numbered where an earlier one has it.

    Raises:
        DigptError: as ``Engine.load``.
    """
    engines: dict[str, Engine] = {}
    for spec in config.model or ("bundled",):
        engine = Engine.load(spec, config.backend, threads=config.threads)
        name, number = engine.info.name, 1
        while name in engines:
            number += 1
            name = f"{engine.info.name}-{number}"
        engines[name] = engine
    return engines
