"""SIGTERM: what was accepted is answered, what comes after is told to go elsewhere, and then the process ends."""

from __future__ import annotations

import base64
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime

Image = Callable[..., bytes]
ROOT = Path(__file__).parents[2]
SLOW_SERVER = """
import sys
from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve import Settings, create_app
from serve.server import Server

app = create_app({"fake": Engine(FakeRuntime(delay=0.2))}, Settings(max_batch=1))
sys.exit(Server(app, app.state.service, Settings(), "127.0.0.1", int(sys.argv[1])).run())
"""


class Process:
    """A server of its own process, whose model takes 0.2 seconds for an image."""

    def __init__(self) -> None:
        self.connections: list[http.client.HTTPConnection] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen([sys.executable, "-c", SLOW_SERVER, str(self.port)], cwd=ROOT)
        while self.ask("GET", "/health/ready")[0] != 200:
            assert self.process.poll() is None
            time.sleep(0.02)

    def connect(self) -> http.client.HTTPConnection:
        self.connections.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20))
        return self.connections[-1]

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        self.process.kill()
        self.process.wait(10)

    def ask(self, method: str, path: str, content: Any = None, connection: Any = None) -> tuple[int, Any, Any]:
        """Status (0: no connection), headers, parsed body."""
        connection = connection or self.connect()
        try:
            connection.request(method, path, json.dumps(content) if content else None)
            answer = connection.getresponse()
            return answer.status, answer.headers, json.loads(answer.read())
        except ConnectionRefusedError:
            return 0, None, None

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@pytest.fixture
def server() -> Iterator[Process]:
    process = Process()
    yield process
    process.close()


def body(image: bytes, count: int = 1) -> dict[str, list[str]]:
    return {"images": [base64.b64encode(image).decode()] * count}


def test_draining_refuses_and_is_unready_at_once(serving: Callable[..., Any], image: Image) -> None:
    runtime = FakeRuntime()
    client = serving(Engine(runtime))
    entered, go_on, compute = threading.Event(), threading.Event(), runtime.embed
    runtime.embed = lambda images: (entered.set(), go_on.wait(10), compute(images))[2]
    with ThreadPoolExecutor() as pool:
        accepted = pool.submit(client.post, "/embed", json=body(image()))
        assert entered.wait(5)
        assert client.service.active == 1
        client.service.drain()
        for answer in (client.get("/health/ready"), client.post("/embed", json=body(image()))):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["connection"] == "close"
        assert client.get("/health/live").status_code == 200
        go_on.set()
        assert accepted.result().status_code == 200
    assert client.service.active == 0
    assert client.service.bodies.held == 0


def test_a_refusal_reaches_a_client_that_sends_a_large_body(serving: Callable[..., Any]) -> None:
    client = serving(Engine(FakeRuntime()))
    client.service.drain()
    answer = client.post("/embed", content=b"x" * 8_000_000, headers={"Content-Type": "image/png"})
    assert answer.status_code == 503


def test_sigterm_answers_what_was_accepted(server: Process, image: Image) -> None:
    idle = server.connect()
    assert server.ask("GET", "/health/live", connection=idle)[0] == 200
    kept = server.connect()
    with ThreadPoolExecutor() as pool:
        accepted = [pool.submit(server.ask, "POST", "/embed", body(image(seed), 2)) for seed in range(4)]
        accepted.append(pool.submit(server.ask, "POST", "/embed", body(image()), kept))
        time.sleep(0.1)
        server.terminate()
        time.sleep(0.05)
        status, headers, content = server.ask("POST", "/embed", body(image()))
        assert (status, content["error"]["code"]) == (503, "draining")
        assert headers["connection"] == "close"
        assert int(headers["retry-after"]) >= 1
        assert server.ask("GET", "/health/ready")[0] == 503
        time.sleep(0.1)
        assert idle.sock is not None
        assert idle.sock.recv(1) == b""  # closed, with a second of work still to do
        assert server.process.poll() is None
        assert [future.result()[0] for future in accepted] == [200] * 5
    assert server.process.wait(5) == 0


@pytest.mark.slow
def test_sigterm_under_load_loses_nothing(server: Process, image: Image) -> None:
    """Clients that keep their connection and send again and again: each answer is 200 or 503, no connection breaks."""
    answered: list[int] = []
    broken: list[str] = []

    def client(seed: int) -> None:
        connection = server.connect()
        content = body(image(seed))
        while True:
            sent = False
            try:
                connection.request("POST", "/embed", json.dumps(content))
                sent = True
                answer = connection.getresponse()
                answer.read()
            except OSError as error:
                if sent:
                    broken.append(repr(error))
                return
            answered.append(answer.status)
            if answer.status == 503 or answer.headers["connection"] == "close":
                return

    with ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(client, seed) for seed in range(16)]
        while len(answered) < 10:
            time.sleep(0.02)
        server.terminate()
        for future in clients:
            future.result()
    assert set(answered) <= {200, 503}
    assert broken == []
    assert server.process.wait(10) == 0


@pytest.mark.slow
def test_a_second_signal_does_not_wait(server: Process, image: Image) -> None:
    with ThreadPoolExecutor() as pool:
        given_up = pool.submit(server.ask, "POST", "/embed", body(image(), 200))  # forty seconds of work
        time.sleep(0.3)
        server.terminate()
        time.sleep(0.5)
        assert server.process.poll() is None
        server.terminate()
        assert server.process.wait(15) == -signal.SIGTERM
        assert given_up.result()[0] == 503
