"""A model that stops answering turns unready and says why; one odd input changes nothing; both are over when it can."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import serve.watchdog
from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve.batcher import Batcher

Image = Callable[..., bytes]
Serve = Callable[..., Any]


def body(image: bytes, count: int = 1) -> dict[str, list[str]]:
    return {"images": [base64.b64encode(image).decode()] * count}


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def state(client: Any) -> str:
    return str(client.get("/models/fake").json()["state"])


def hanging(serving: Serve, **settings: float) -> tuple[Any, threading.Event, threading.Event]:
    """A ready server; a call of its model enters, and hangs until it may go on."""
    runtime = FakeRuntime()
    client = serving(Engine(runtime), **settings)
    entered, go_on, compute = threading.Event(), threading.Event(), runtime.embed

    def embed(images: np.ndarray) -> np.ndarray:
        entered.set()
        assert go_on.wait(20)
        return compute(images)

    runtime.embed = embed
    return client, entered, go_on


def test_a_hung_engine_answers_503_and_recovers(serving: Serve, image: Image) -> None:
    client, entered, go_on = hanging(serving, stall_s=0.2, deadline_s=10)
    with ThreadPoolExecutor() as pool:
        stuck = pool.submit(client.post, "/embed", json=body(image()))
        assert entered.wait(5)
        waiting = pool.submit(client.post, "/embed", json=body(image(), 2))
        wait_for(lambda: state(client) == "stalled")
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert "has not answered for" in ready.json()["error"]["message"]
        assert "has not answered for" in client.get("/models/fake").json()["detail"]
        for refused in (waiting.result(5), client.post("/embed", json=body(image()))):
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
            assert refused.headers["retry-after"] == "1"
        assert client.service.models["fake"].batcher.waiting == 0
        go_on.set()
        assert stuck.result(5).status_code == 200
    wait_for(lambda: client.get("/health/ready").status_code == 200)
    assert client.post("/embed", json=body(image())).status_code == 200


def test_a_hung_engine_answers_504_within_the_deadline(serving: Serve, image: Image) -> None:
    client, entered, go_on = hanging(serving, deadline_s=0.3)
    started = time.monotonic()
    assert client.post("/embed", json=body(image())).status_code == 504
    assert entered.is_set()
    assert time.monotonic() - started < 3
    go_on.set()


def test_liveness_fails_when_only_a_new_process_helps(serving: Serve, image: Image) -> None:
    client, _, go_on = hanging(serving, stall_s=0.05, deadline_s=0.2)
    assert client.get("/health/live").status_code == 200
    assert client.post("/embed", json=body(image())).status_code in (503, 504)
    wait_for(lambda: client.get("/health/live").status_code == 503)
    assert "Only a new process helps" in client.get("/health/live").json()["error"]["message"]
    go_on.set()
    wait_for(lambda: client.get("/health/live").status_code == 200)


def test_a_slow_start_is_no_reason_to_kill_the_process(serving: Serve) -> None:
    runtime, go_on = FakeRuntime(), threading.Event()
    compute = runtime.embed
    runtime.embed = lambda images: (go_on.wait(20), compute(images))[1]
    client = serving(Engine(runtime), wait=False, stall_s=0.01)
    time.sleep(0.1)
    wait_for(lambda: client.service.models["fake"].batcher.call_s() > 0.15)  # more than ten times stall_s
    assert client.get("/health/live").status_code == 200
    assert state(client) == "starting"
    go_on.set()
    wait_for(lambda: state(client) == "ready")


def test_one_truncated_image_among_others_changes_nothing(serving: Serve, image: Image) -> None:
    """Infinity's batch thread died of it for good, and its health stayed green."""
    runtime = FakeRuntime()
    client = serving(Engine(runtime), stall_s=1)
    good, cut = base64.b64encode(image(1)).decode(), base64.b64encode(image(2)[:500]).decode()
    for _ in range(3):
        entries = client.post("/embed", json={"images": [good, cut, good]}).json()["data"]
        assert [entry.get("error", {}).get("code") for entry in entries] == [None, "unreadable_image", None]
    assert client.get("/health/ready").status_code == 200
    assert client.post("/embed", json={"images": [good]}).status_code == 200


def test_an_image_that_fails_the_backend_fails_alone(serving: Serve, image: Image) -> None:
    engine = Engine(FakeRuntime())
    bad = engine.decode(image(3))
    runtime = FakeRuntime(fail_if=lambda crop: np.array_equal(crop, bad))
    client = serving(Engine(runtime), stall_s=0.2)
    runtime.batches.clear()
    images = [base64.b64encode(image(seed)).decode() for seed in range(6)]
    entries = client.post("/embed", json={"images": images}).json()["data"]
    assert [index for index, entry in enumerate(entries) if "error" in entry] == [3]
    assert (entries[3]["error"]["type"], entries[3]["error"]["index"]) == ("server_error", 3)
    expected = engine.embed_images([engine.decode(image(seed)) for seed in range(6)])
    np.testing.assert_array_equal(np.array(entries[5]["embedding"], np.float32), expected[5])
    assert runtime.batches[0] == 6
    wait_for(lambda: not client.service.models["fake"].batcher.suspect)  # the probe found nothing
    assert client.get("/health/ready").status_code == 200


def test_a_backend_that_always_fails_is_found_out(
    serving: Serve, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.watchdog, "PROBE_S", 0.05)
    broken = threading.Event()
    runtime = FakeRuntime(fail_if=lambda _: broken.is_set())
    client = serving(Engine(runtime), stall_s=0.2)
    broken.set()
    assert client.post("/embed", json=body(image())).status_code in (500, 503)
    wait_for(lambda: state(client) == "failed")
    assert "failed the check" in client.get("/health/ready").json()["error"]["message"]
    assert client.post("/embed", json=body(image())).status_code == 503
    broken.clear()
    wait_for(lambda: state(client) == "ready")
    assert client.post("/embed", json=body(image())).status_code == 200


def test_an_idle_model_is_probed(serving: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.watchdog, "PROBE_S", 0.05)
    broken = threading.Event()
    client = serving(Engine(FakeRuntime(fail_if=lambda _: broken.is_set())), stall_s=0.2)
    broken.set()
    wait_for(lambda: client.get("/health/ready").status_code == 503)
    broken.clear()
    wait_for(lambda: client.get("/health/ready").status_code == 200)


@pytest.mark.filterwarnings("ignore:Exception in thread inference:pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ended_is_started_again(serving: Serve, image: Image) -> None:
    runtime = FakeRuntime()
    client = serving(Engine(runtime), stall_s=0.2)
    batcher, compute = client.service.models["fake"].batcher, runtime.embed

    def end(images: np.ndarray) -> np.ndarray:
        runtime.embed = compute
        raise SystemExit

    runtime.embed = end
    first = batcher._thread
    answer = client.post("/embed", json=body(image()))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    wait_for(lambda: batcher._thread is not first and client.get("/health/ready").status_code == 200)
    assert client.post("/embed", json=body(image())).status_code == 200


def test_a_check_that_waited_in_vain_leaves_the_model_stalled() -> None:
    """It was refused with all that waited: the model is not broken, and proves itself as soon as it can."""
    runtime, entered, go_on = FakeRuntime(), threading.Event(), threading.Event()
    engine = Engine(runtime)
    compute = runtime.embed

    def embed(images: np.ndarray) -> np.ndarray:
        entered.set()
        assert go_on.wait(20)
        return compute(images)

    async def until(wanted: str, watchdog: serve.watchdog.Watchdog) -> None:
        async with asyncio.timeout(5):
            while True:
                watchdog.look()
                if watchdog.state == wanted:
                    return
                await asyncio.sleep(0.01)

    async def run() -> None:
        batcher = Batcher("fake", engine)
        watchdog = serve.watchdog.Watchdog("fake", engine, batcher, stall_s=0.1)
        watchdog.proved("it answers")
        runtime.embed = embed
        stuck = batcher.submit("embed", [np.zeros((64, 64, 3), np.uint8)])
        assert await asyncio.to_thread(entered.wait, 5)
        batcher.suspect = True
        watchdog.look()  # a probe is due, and waits
        await asyncio.sleep(0)
        assert batcher.waiting == 1
        await until("stalled", watchdog)
        await asyncio.sleep(0.05)  # the probe hears that it is refused
        assert watchdog.state == "stalled"
        go_on.set()
        await asyncio.wrap_future(stuck)
        await until("ready", watchdog)
        await asyncio.to_thread(batcher.close)

    asyncio.run(run())
