"""A real server in a thread: what the tests say to it travels over HTTP."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from digpt.engine import Engine
from digpt.preprocess import DecodeLimits
from digpt.runtime.fake import FakeRuntime
from serve import Settings, create_app
from serve.keys import Keys
from serve.registry import Loader
from serve.service import Service


class Client(httpx.Client):
    """Talks to a server in this process; ``service`` is its inside, ``stop`` what SIGTERM does."""

    service: Service
    stop: Callable[[], None]


@contextmanager
def running(app: FastAPI) -> Iterator[Client]:
    """Serve ``app`` on a free port until the block ends."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", ws="none", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join()

    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        with Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
            client.service, client.stop = app.state.service, stop
            yield client
    finally:
        stop()


def wait_ready(client: Client) -> Client:
    while client.get("/health/ready").status_code != 200:
        time.sleep(0.005)
    return client


@pytest.fixture
def serving() -> Iterator[Callable[..., Client]]:
    """Start a server: ``serving(engine, deadline_s=1)``, or ``serving({"a": engine, "b": other}, wait=False)``."""
    with ExitStack() as stack:

        def start(
            engines: Engine | Mapping[str, Engine],
            *,
            wait: bool = True,
            keys: Keys | None = None,
            available: Mapping[str, Loader] | None = None,
            **settings: Any,
        ) -> Client:
            named = {"fake": engines} if isinstance(engines, Engine) else engines
            app = create_app(named, Settings(**settings), keys=keys, available=available)
            client = stack.enter_context(running(app))
            return wait_ready(client) if wait else client

        yield start


@pytest.fixture(scope="module")
def engine() -> Engine:
    """An engine of random answers at 64 x 64 with a text tower and small limits."""
    return Engine(FakeRuntime(dim=8), limits=DecodeLimits(max_bytes=200_000, max_pixels=1_000_000))


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[Client]:
    """The server of ``engine``, shared by a module's tests."""
    settings = Settings(max_request_bytes=1_000_000, max_items=8, max_labels=10, max_prompts=20, max_text_chars=50)
    with running(create_app({"fake": engine}, settings)) as client:
        yield wait_ready(client)


def encoded(seed: int, kind: str, size: tuple[int, int] = (80, 60)) -> bytes:
    """A random image file: noise, so that every byte counts."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def image() -> Callable[..., bytes]:
    """``image(seed, kind="PNG", size=(80, 60))``: a random image file."""
    return lambda seed=0, kind="PNG", size=(80, 60): encoded(seed, kind, size)


@pytest.fixture(scope="session")
def serving_app() -> Callable[[FastAPI], AbstractContextManager[Client]]:
    """``with serving_app(app) as client``: any application with a ``service``."""
    return running
