"""Examples as modules, a live server, and pictures whose answers are known beforehand."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from digpt.engine import Engine
from serve.api import create_app
from serve.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def load() -> Iterator[Callable[[str], ModuleType]]:
    """Import ``examples/NAME.py``."""
    with pytest.MonkeyPatch.context() as patch:

        def named(name: str) -> ModuleType:
            spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, name, module)  # dataclasses look their module up
            spec.loader.exec_module(module)
            return module

        yield named


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine.load("bundled", threads=1)


@pytest.fixture(scope="session")
def address(engine: Engine) -> Iterator[str]:
    """Where a server of the bundled model answers."""
    server = uvicorn.Server(
        uvicorn.Config(create_app({"emoji-tiny": engine}, Settings()), port=0, log_level="critical")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    found = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    while httpx.get(f"{found}/health/ready").status_code != 200:
        time.sleep(0.01)
    yield found
    server.should_exit = True
    thread.join()


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """Folders ``dark`` and ``light`` of 20 noisy pictures each, which any model tells apart."""
    for number in range(40):
        name, mean = (("dark", 40), ("light", 215))[number % 2]
        pixels = np.random.default_rng(number).normal(mean, 20, (32, 32, 3)).clip(0, 255).astype(np.uint8)
        path = tmp_path / "shades" / name / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "shades"
