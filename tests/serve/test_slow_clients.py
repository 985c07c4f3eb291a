"""Bodies that come late, come halfway, or are too many at a time; and a server that answers others meanwhile."""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from typing import Any

import httpx
import numpy as np
import pytest

import serve.server
from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve import Settings, create_app
from serve.server import Server

Image = Callable[..., bytes]
Serve = Callable[..., Any]

PART = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
HALF = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: 50000\r\n\r\n" + PART.ljust(
    20_000, b"x"
)
KINDS = [b"application/json", b"image/png", b"multipart/form-data; boundary=x"]


def connect(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def body(image: bytes, count: int = 1) -> dict[str, list[str]]:
    return {"images": [base64.b64encode(image).decode()] * count}


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_that_never_arrives_is_refused(serving: Serve, kind: bytes) -> None:
    client = serving(Engine(FakeRuntime()), body_timeout_s=0.2)
    with connect(client) as connection:
        connection.sendall(HALF % kind)
        head, _, content = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in head.lower()
    error = json.loads(content)["error"]
    assert (error["code"], error["type"]) == ("body_timeout", "invalid_request_error")
    assert "within 0.2 seconds" in error["message"]
    assert client.service.bodies.held == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")
def test_a_client_that_leaves_halfway_is_no_error(
    serving: Serve, caplog: pytest.LogCaptureFixture, kind: bytes
) -> None:
    client = serving(Engine(FakeRuntime()))
    with caplog.at_level(logging.ERROR):
        with connect(client) as connection:
            connection.sendall(HALF % kind)
            while client.service.bodies.held == 0:
                time.sleep(0.005)
        while client.service.bodies.held:
            time.sleep(0.005)
        time.sleep(0.1)  # until what uvicorn says of an exception would stand in the log
    assert [record.getMessage() for record in caplog.records] == []


def test_bodies_of_all_requests_are_bounded_together(serving: Serve, image: Image) -> None:
    client = serving(Engine(FakeRuntime()), max_pending_bytes=21_000)
    with connect(client) as connection:
        connection.sendall(HALF % b"image/png")
        while client.service.bodies.held < 20_000:
            time.sleep(0.005)
        refused = client.post("/embed", json=body(image()))
        assert refused.status_code == 429
        assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("queue_full", "1")
        assert client.service.bodies.held == 20_000
    while client.service.bodies.held:
        time.sleep(0.005)
    assert client.post("/embed", json=body(image(), 3)).status_code == 200  # alone, however large
    assert client.service.bodies.held == 0


def test_encoded_images_do_not_wait_with_the_crops(serving: Serve, image: Image) -> None:
    runtime = FakeRuntime()
    client = serving(Engine(runtime))
    entered, free, compute = threading.Event(), threading.Event(), runtime.embed

    def slow(images: np.ndarray) -> np.ndarray:
        entered.set()
        assert free.wait(10)
        return compute(images)

    runtime.embed = slow
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(client.post, "/embed", json=body(image(), 2))
        assert entered.wait(5)
        held = client.service.bodies.held
        free.set()
        assert answer.result().json()["usage"] == {"images": 2, "texts": 0}
    assert held == 0


def test_live_while_a_decode_is_slow(serving: Serve, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(FakeRuntime())
    client = serving(engine, decode_threads=1)
    entered, free, decode = threading.Event(), threading.Event(), engine.decode

    def slow(data: bytes) -> np.ndarray:
        entered.set()
        assert free.wait(10)
        return decode(data)

    monkeypatch.setattr(engine, "decode", slow)
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(client.post, "/embed", json=body(image())) for _ in range(3)]
        assert entered.wait(5)
        started = time.monotonic()
        assert client.get("/health/live").status_code == 200
        assert time.monotonic() - started < 2
        assert not any(answer.done() for answer in answers)
        free.set()
        assert [answer.result().status_code for answer in answers] == [200, 200, 200]


@contextmanager
def own_server(**settings: Any) -> Iterator[tuple[str, int]]:
    """The address of the very server that ``python -m serve`` runs."""
    app = create_app({"fake": Engine(FakeRuntime())}, Settings(**settings))
    server = Server(app, app.state.service, Settings(**settings), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join()


BEGUN = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"


def test_silent_connections_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.server, "CROWDED_S", 0.3)
    with own_server(max_connections=6) as address, ExitStack() as stack:
        # nothing, half of a first request, a first one, half of a second
        said = [b"", BEGUN, BEGUN + b"\r\n", BEGUN + b"\r\n" + BEGUN, b""]
        silent = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in said]
        for connection, content in zip(silent, said, strict=True):
            connection.sendall(content)
        with socket.create_connection(address, timeout=10) as other:
            other.sendall(BEGUN + b"\r\n")
            assert other.recv(65536).startswith(b"HTTP/1.1 503 ")  # there is no room at first
        started = time.monotonic()
        heard = [read_all(connection) for connection in silent]  # until the server hangs up
        assert time.monotonic() - started < 8  # HEADERS_S is longer
        assert [content[:13] for content in heard] == [b"", b"", b"HTTP/1.1 200 ", b"HTTP/1.1 200 ", b""]
        with socket.create_connection(address, timeout=10) as other:
            other.sendall(BEGUN + b"\r\n")
            assert other.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_who_goes_on_asking_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.server, "HEADERS_S", 1.5)
    with own_server() as address:
        with closing(HTTPConnection(*address, timeout=10)) as busy:
            busy.connect()
            kept = busy.sock
            for _ in range(10):  # 2 seconds
                busy.request("GET", "/health/live")
                assert busy.getresponse().read() == b'{"status":"live"}' and busy.sock is kept
                time.sleep(0.2)
        with socket.create_connection(address, timeout=10) as slow:
            slow.sendall(HALF % b"image/png")  # its headers are complete: --body-timeout-s is what holds then
            time.sleep(2)
            slow.sendall(b"x" * 30_000)
            assert slow.recv(65536).startswith(b"HTTP/1.1 415 ")
