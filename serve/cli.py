"""Serve models over HTTP, with the demo at /demo and the API at /docs.

python -m serve --model bundled --port 8000
python -m serve --model photos=open_clip:ViT-B-16/openai --model emoji=bundled
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from fastapi import FastAPI

from digpt.cli import Command
from digpt.engine import Engine
from digpt.errors import ConfigError
from digpt.preprocess import DecodeLimits
from serve.api import create_app
from serve.keys import Keys
from serve.logs import LogFormat, configure
from serve.process import in_passing_thread, spin_briefly
from serve.registry import Loader
from serve.routes import PASSPORT_PATH
from serve.security import DEMO_PATH
from serve.server import Server
from serve.settings import MIB, Settings
from serve.tracing import otlp

GROUPS = {
    "Models": ("model", "available", "backend", "image_size"),
    "Cluster": ("replicas", "cpus", "gpus"),
    "Network": ("host", "port", "demo", "cors_origin"),
    "Security": ("keys_file", "open_demo", "open_metrics", "allow_url_host", "allow_http", "url_timeout_s"),
    "Compute": ("threads", "decode_threads", "max_batch", "stall_s"),
    "Limits": (
        *("deadline_s", "body_timeout_s", "max_image_bytes", "max_image_pixels", "max_request_bytes"),
        *("max_pending_bytes", "queue_pixels", "max_connections", "max_items", "max_labels", "max_prompts"),
        *("max_scores", "max_text_chars"),
    ),
    "Class sets": ("class_sets_dir", "max_class_sets", "max_class_set_rows"),
    "Observing": ("log_format", "otlp_endpoint", "price_per_hour"),
}  # of the help, the most used first
STOPPED = "the server has stopped"
COMMAND = Command("serve", __doc__, GROUPS, after=STOPPED)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ServeConfig(Settings):
    """Options of the server."""

    model: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=]SPEC"), tyro.conf.UseAppendAction] = ()
    """A model to serve, repeatable; the first is the default. SPEC: bundled (the default), a ckpt.pt, an artifact
    directory, timm:NAME, open_clip:NAME/TAG."""
    available: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=SPEC"), tyro.conf.UseAppendAction] = ()
    """A model that an administrator may load while the server runs (POST /models/NAME/load), repeatable."""
    keys_file: Path | None = None
    """File of Bearer keys, one a line, an administrator's as admin:KEY; also DIGPT_API_KEYS and DIGPT_ADMIN_KEYS."""
    backend: str | None = None
    """torch, or an engine that the artifact holds, such as onnx; by default what fits the model."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 answers the whole network."""
    port: int = 8000
    """Port to listen on."""
    image_size: int | None = None
    """Side of the crops in pixels, another than the models' own: the position table is interpolated."""
    threads: int | None = None
    """Threads of the model's computation; by default as many as the backend likes."""
    demo: bool = True
    """Whether to serve the demo at /demo; where keys are set it is not, since a browser has none to show."""
    open_demo: bool = False
    """Whether to serve the demo to everybody although keys are set."""
    log_format: LogFormat = "text"
    """Log lines for people, or one JSON object per line."""
    otlp_endpoint: str | None = None
    """URL that traces are sent to by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; needs the extra otel."""
    max_image_bytes: int = 20 * MIB
    """Bytes of one image file; more is answered 413."""
    max_image_pixels: int = 50_000_000
    """Pixels of one image, read from its header before decoding; more is answered 413."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    return COMMAND.run(ServeConfig, argv, _serve)


def _serve(config: ServeConfig) -> int:
    spin_briefly()
    keys = Keys.read(os.environ, config.keys_file)
    available = loaders(config)
    engines = load_engines(config)
    app = build(config, engines, keys, available)
    configure(config.log_format)
    announce(config, engines, keys)
    engines.clear()  # so that a model that is unloaded is released
    Server(app, app.state.service, config, config.host, config.port).run()
    return 0


def build(
    config: ServeConfig,
    engines: dict[str, Engine],
    keys: Keys | None = None,
    available: dict[str, Loader] | None = None,
) -> FastAPI:
    """The application of the command line: the API and, unless it is turned off, the demo, a page for each model."""
    keys = keys or Keys()
    tracing = otlp(config.otlp_endpoint) if config.otlp_endpoint else None
    api = create_app(engines, config, keys=keys, available=available, tracing=tracing)
    if shows_demo(config, keys):
        import app

        service = api.state.service
        stay = dict(engines) if not keys.administered else dict(list(engines.items())[:1])  # others may be unloaded
        names = tuple(stay)

        def guard() -> None:
            for name in names:
                service.models[name].require_ready()

        cards = None if keys.asked else PASSPORT_PATH  # a browser has no key to show
        app.mount(api, stay, DEMO_PATH, guard=guard, max_bytes=config.max_request_bytes, cards=cards)
    return api


def load_engines(config: ServeConfig) -> dict[str, Engine]:
    """Load every model under its name.

    Raises:
        ConfigError: two models of one name.
        DigptError: as ``Engine.load``.
    """
    engines: dict[str, Engine] = {}
    for argument in config.model or ("bundled",):
        name, spec = split_model(argument)
        engine = load_engine(config, spec)
        name = name or public_name(engine.info.name)
        if name in engines:
            raise ConfigError(f"Two models are named {name!r}; name one of them: --model NAME={spec}.")
        engines[name] = engine
    return engines


def load_engine(config: ServeConfig, spec: str) -> Engine:
    """Load one model with the options of the command line; DigptError as ``Engine.load``."""
    limits = DecodeLimits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
    size = config.image_size
    return in_passing_thread(
        lambda: Engine.load(spec, config.backend, threads=config.threads, limits=limits, image_size=size)
    )


def loaders(config: ServeConfig) -> dict[str, Loader]:
    """What loads the models that may be loaded and unloaded: those of ``--available``, and ``--model NAME=SPEC``.

    Raises:
        ConfigError: a model without a name, or two of one name.
    """
    named = [split_model(argument) for argument in config.model]
    given = [split_model(argument) for argument in config.available]
    for name, spec in given:
        if name is None:
            raise ConfigError(f"A model to load later needs a name: --available NAME={spec}.")
    known: dict[str, Loader] = {}
    for name, spec in [*named, *given]:
        if name is not None:
            if name in known:
                raise ConfigError(f"Two models are named {name!r}; give each a name of its own.")
            known[name] = partial(load_engine, config, spec)
    return known


def shows_demo(config: ServeConfig, keys: Keys) -> bool:
    """Whether there is a demo: where keys are set only if it is asked for."""
    return config.demo and (config.open_demo or not keys.set)


def split_model(argument: str) -> tuple[str | None, str]:
    """``NAME=SPEC`` or ``SPEC`` -> name or None, and spec; a path with a ``=`` in it is no name."""
    name, equals, spec = argument.partition("=")
    return (name, spec) if equals and NAME.fullmatch(name) else (None, argument)


def public_name(name: str) -> str:
    """Turn a runtime's name into one that fits into a URL's path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def announce(config: ServeConfig, engines: dict[str, Engine], keys: Keys | None = None) -> None:
    """Say what is served and where."""
    address = f"http://{config.host}:{config.port}"
    for name, engine in engines.items():
        info = engine.info
        print(f"{name}: {info.fingerprint}, {info.backend} {info.precision} on {', '.join(info.providers)}")
    print(f"API  {address}/docs", flush=True)
    if shows_demo(config, keys or Keys()):
        print(f"demo {address}{DEMO_PATH}", flush=True)
    elif config.demo:
        print("demo none, since a browser has no key to show; --open-demo opens it to everybody", flush=True)
