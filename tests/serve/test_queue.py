"""Queue, deadline, readiness, clients that leave, and a stop that loses no accepted request."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from digpt.engine import Engine
from digpt.runtime.base import Golden
from digpt.runtime.fake import FakeRuntime
from serve.admission import Admission
from serve.errors import QueueFullError

Image = Callable[..., bytes]
Serve = Callable[..., Any]


class Gate:
    """Hold a runtime's ``embed`` until ``open`` is set; ``entered`` says that a call is inside."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.compute = runtime.embed
        runtime.embed = self

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.open.wait(10)
        return self.compute(images)


def body(image: bytes, count: int = 1) -> dict[str, list[str]]:
    return {"images": [base64.b64encode(image).decode()] * count}


def gated(serving: Serve, **settings: float) -> tuple[Any, FakeRuntime, Gate]:
    runtime = FakeRuntime()
    client = serving(Engine(runtime), **settings)
    runtime.batches.clear()  # the warm-up
    return client, runtime, Gate(runtime)


def test_full_queue_is_429_and_says_when(serving: Serve, image: Image) -> None:
    client, runtime, gate = gated(serving, queue_pixels=3 * 64 * 64)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(client.post, "/embed", json=body(image()))
        assert gate.entered.wait(5)
        waiting = pool.submit(client.post, "/embed", json=body(image(), 2))
        while client.service.models["fake"].admission.pixels < 3 * 64 * 64:
            time.sleep(0.005)
        refused = client.post("/embed", json=body(image()))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert client.get("/health/live").status_code == 200
        gate.open.set()
        assert [future.result().status_code for future in (running, waiting)] == [200, 200]
    assert client.post("/embed", json=body(image())).status_code == 200
    assert runtime.batches == [1, 2, 1]


def test_one_large_request_is_admitted_when_nothing_waits(serving: Serve, image: Image) -> None:
    client = serving(Engine(FakeRuntime()), queue_pixels=1)
    assert client.post("/embed", json=body(image(), 5)).status_code == 200


def test_deadline_is_504_and_what_waited_is_not_computed(serving: Serve, image: Image) -> None:
    client, runtime, gate = gated(serving, deadline_s=0.3)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/embed", json=body(image()))
        assert gate.entered.wait(5)
        second = pool.submit(client.post, "/classify", json={**body(image(), 3), "labels": ["a"]})
        for future in (first, second):
            answer = future.result()
            assert answer.status_code == 504
            assert answer.json()["error"]["code"] == "deadline_exceeded"
            assert "0.3 seconds" in answer.json()["error"]["message"]
    gate.open.set()
    assert client.post("/embed", json=body(image(), 2)).status_code == 200
    assert runtime.batches == [1, 2]  # never the three that waited


def test_a_client_that_left_is_not_computed(serving: Serve, image: Image) -> None:
    client, runtime, gate = gated(serving)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/embed", json=body(image()))
        assert gate.entered.wait(5)
        request = client.build_request("POST", "/embed", json=body(image(), 3))
        with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as connection:
            head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request.content)}\r\n\r\n"
            connection.sendall(head.encode() + request.content)
            model = client.service.models["fake"]
            while model.admission.pixels < 4 * 64 * 64:
                time.sleep(0.005)
            time.sleep(0.1)  # until it is decoded and waits for the thread
        while model.batcher.stats.cancelled < 3:
            time.sleep(0.005)
        gate.open.set()
        assert first.result().status_code == 200
    assert client.post("/embed", json=body(image(), 2)).status_code == 200
    assert runtime.batches == [1, 2]


def test_requests_are_computed_one_at_a_time(serving: Serve, image: Image) -> None:
    runtime = FakeRuntime(delay=0.01)
    inside, most, compute = 0, 0, runtime.embed

    def counting(images: np.ndarray) -> np.ndarray:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return compute(images)
        finally:
            inside -= 1

    runtime.embed = counting
    client = serving(Engine(runtime))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: client.post("/embed", json=body(image(seed))), range(16)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({tuple(answer.json()["data"][0]["embedding"]) for answer in answers}) == 16
    assert most == 1


def test_a_failing_backend_is_500_and_its_message_stays_here(serving: Serve, image: Image) -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    runtime = FakeRuntime(fail_if=lambda crop: bool((crop != black).any()))
    client = serving(Engine(runtime))
    answer = client.post("/embed", json=body(image()))
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "told to fail" not in answer.text
    assert client.post("/embed", json={"texts": ["a"]}).status_code == 200


def test_not_ready_until_the_model_answers(serving: Serve, image: Image) -> None:
    runtime = FakeRuntime()
    gate = Gate(runtime)
    client = serving(Engine(runtime), wait=False)
    for answer in (client.get("/health/ready"), client.post("/embed", json=body(image()))):
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "not_ready"
        assert answer.headers["retry-after"] == "1"
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/models").json()["data"][0]["state"] == "starting"
    gate.open.set()
    while client.get("/health/ready").status_code != 200:
        time.sleep(0.005)
    assert client.post("/embed", json=body(image())).status_code == 200


def test_own_labels_are_embedded_before_the_first_request(serving: Serve, image: Image) -> None:
    runtime = FakeRuntime(labels=["cat", "dog", "owl"])
    client = serving(Engine(runtime))
    assert runtime.text_batches == [3]
    assert client.post("/classify", json=body(image())).status_code == 200
    assert runtime.text_batches == [3]


@pytest.mark.parametrize("faithful", [True, False])
def test_ready_by_reproducing_the_golden_embeddings(serving: Serve, image: Image, faithful: bool) -> None:
    runtime = FakeRuntime()
    crops = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    embeddings = runtime.embed(crops) * (1.0 if faithful else 1.5)
    runtime.golden = Golden(crops, embeddings, cosine=0.999, relative_error=1e-3)
    client = serving(Engine(runtime), wait=False)
    while client.get("/models/fake").json()["state"] == "starting":
        time.sleep(0.005)
    ready, answer = client.get("/health/ready"), client.post("/embed", json=body(image()))
    if faithful:
        assert (ready.status_code, answer.status_code) == (200, 200)
        assert "reproduces its 2 golden embeddings" in ready.json()["models"]["fake"]
    else:
        assert (ready.status_code, answer.status_code) == (503, 503)
        assert "does not reproduce its golden embeddings" in ready.json()["error"]["message"]
        assert client.get("/health/live").status_code == 200


def test_stopping_answers_what_was_accepted(serving: Serve, image: Image) -> None:
    client, runtime, gate = gated(serving)
    with ThreadPoolExecutor() as pool:
        accepted = pool.submit(client.post, "/embed", json=body(image()))
        assert gate.entered.wait(5)
        stopping = pool.submit(client.stop)
        time.sleep(0.1)
        gate.open.set()
        assert accepted.result().status_code == 200
        stopping.result()
    assert runtime.closed


def test_admission_counts_pixels_and_gives_them_back() -> None:
    admission = Admission(10, deadline_s=30)
    with admission.admit(6):
        with admission.admit(4):
            assert admission.pixels == 10
            with pytest.raises(QueueFullError) as full, admission.admit(1):
                pass
            assert full.value.retry_after == 1
        with pytest.raises(QueueFullError), admission.admit(5):
            pass
    assert admission.pixels == 0
    assert admission.refused == 2
