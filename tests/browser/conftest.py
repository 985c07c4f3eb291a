"""A running server with two models, a real browser, and a folder for what it showed.

The folder is that of the environment variable DIGPT_SCREENSHOTS, else ``runs/browser``.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, expect, sync_playwright

import app
from digpt.abstain import AbstainRule
from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve.api import DEMO_PATH, create_app
from serve.routes import PASSPORT_PATH
from serve.settings import Settings
from tests.browser.visiting import DESKTOP, PHONE, Visit

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_MS = 15_000  # for anything to appear: far more than it takes, since machines that run tests are busy
START_S = 120


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail("There is no Chromium here; scripts/system-packages.sh installs it.", pytrace=False)
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        sandbox = [] if os.getuid() else ["--no-sandbox"]  # which root cannot have
        opened = playwright.chromium.launch(executable_path=found, args=sandbox)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The bundled model, with a rule for "none of these" as an export has it."""
    loaded = Engine.load("bundled")
    loaded.runtime.info = replace(loaded.info, abstain=AbstainRule((3, 1000), (0.3, 0.4)))
    return loaded


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """Where the JavaScript examples are served: another origin than the server's."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(ROOT / "examples" / "javascript"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def shades() -> FakeRuntime:
    """A segmenter without text tower, which tests may hold back (``fail_if`` is called for every picture)."""
    return FakeRuntime(text=False, labels=["dark", "middle", "light"], segment_crop=64, name="shades")


@pytest.fixture(scope="session")
def address(engine: Engine, shades: FakeRuntime, browser: Browser, site: str) -> Iterator[str]:
    """Where the one server of all tests answers; it starts only where there is a browser."""
    engines = {"emoji-tiny": engine, "shades": Engine(shades)}
    api = create_app(engines, Settings(cors_origin=(site,)))
    app.mount(api, engines, DEMO_PATH, cards=PASSPORT_PATH)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(api, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until = time.monotonic() + START_S
        while not server.started:
            assert thread.is_alive() and time.monotonic() < until, "the server did not start"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def visit(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Visit]]:
    """Open the demo at a size and in a colour scheme; afterwards no page may have complained in its console."""
    folder = Path(os.environ.get("DIGPT_SCREENSHOTS", ROOT / "runs" / "browser"))
    folder.mkdir(parents=True, exist_ok=True)
    complaints: list[str] = []
    contexts = []

    def open_page(size: tuple[int, int] = DESKTOP, scheme: str = "light", path: str = "") -> Visit:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
        page.goto(f"{address}{DEMO_PATH}{path}")
        page.get_by_role("tab").first.wait_for()
        return Visit(page, f"{'phone' if size == PHONE else 'desktop'}-{scheme}", folder)

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
