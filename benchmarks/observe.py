"""What request ids, counts and log lines cost per request: the middleware around an application that does nothing.

    python -m benchmarks.observe
    python -m benchmarks.observe --requests 20000 --json

No HTTP server and no network: the ASGI application is called directly. Rounds of all variants take turns; the least of
each is printed, since a busy neighbour only ever slows a round down.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve import create_app
from serve.logs import JsonFormatter
from serve.metrics import Metrics
from serve.observe import Observer


@dataclass(frozen=True)
class Config:
    """Benchmark of observability."""

    requests: int = 5000
    """Requests of one round."""
    rounds: int = 7
    """Rounds per variant, of which the fastest counts."""
    json: bool = False
    """Print one JSON object and nothing else."""


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 200 with an empty body."""
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def drive(app: ASGIApp, requests: int) -> float:
    """Microseconds per request."""

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        pass

    started = time.perf_counter()
    for _ in range(requests):
        scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "client": ("127.0.0.1", 1)}
        await app(scope, receive, send)
    return 1e6 * (time.perf_counter() - started) / requests


def measure(config: Config) -> dict[str, float]:
    """Microseconds per request that each part adds to an application without the middleware."""
    metrics: Metrics = create_app({"fake": Engine(FakeRuntime())}).state.service.metrics
    log, handler = logging.getLogger("serve.requests"), logging.StreamHandler(io.StringIO())
    handler.setFormatter(JsonFormatter())
    log.addHandler(handler)
    log.propagate = False
    variants: dict[str, tuple[ASGIApp, int]] = {
        "nothing": (nothing, logging.WARNING),
        "id and counts": (Observer(nothing, metrics), logging.WARNING),
        "id, counts and a JSON line": (Observer(nothing, metrics), logging.INFO),
    }
    took: dict[str, list[float]] = {name: [] for name in variants}
    try:
        for _ in range(config.rounds):
            for name, (app, level) in variants.items():
                log.setLevel(level)
                took[name].append(asyncio.run(drive(app, config.requests)))
    finally:
        log.removeHandler(handler)
        log.propagate = True
        log.setLevel(logging.NOTSET)
    base = min(took.pop("nothing"))
    return {name: min(times) - base for name, times in took.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Print microseconds per request."""
    config = tyro.cli(Config, prog="python -m benchmarks.observe", args=argv)
    added = measure(config)
    if config.json:
        print(json.dumps({name: round(value, 2) for name, value in added.items()}))
        return 0
    for name, value in added.items():
        print(f"{name}: {value:.1f} us per request")
    return 0


if __name__ == "__main__":
    sys.exit(main())
