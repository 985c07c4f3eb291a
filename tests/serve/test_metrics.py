"""What /metrics says after known requests; that no label can be made up by a client; that threads lose no count."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve import create_app
from serve.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
Image = Callable[..., bytes]
Serve = Callable[..., Any]
PIXELS = 64 * 64


class Scrape:
    """The values of one scrape; ``scrape("digpt_images_total", model="fake")`` is 0 where there is no such series."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())

    def labels(self, name: str) -> list[dict[str, str]]:
        return [sample.labels for sample in self.samples if sample.name == name]


def scrape(client: httpx.Client) -> Scrape:
    return Scrape(client.get("/metrics").text)


def settled(client: httpx.Client, name: str, value: float, **labels: str) -> Scrape:
    """Scrape until a metric has a value: the counts of an answer are written when its last byte has left."""
    end = time.monotonic() + 10
    while (now := scrape(client))(name, **labels) != value:
        assert time.monotonic() < end, f"{name} {labels} is {now(name, **labels)}, not {value}"
        time.sleep(0.005)
    return now


def body(image: bytes, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"images": [base64.b64encode(image).decode()] * count, **more}


def hold(runtime: FakeRuntime) -> tuple[threading.Event, threading.Event]:
    """Let ``embed`` wait; return what says that a call is inside, and what lets it go on."""
    entered, gate, compute = threading.Event(), threading.Event(), runtime.embed

    def embed(images: np.ndarray) -> np.ndarray:
        entered.set()
        assert gate.wait(10)
        return compute(images)

    runtime.embed = embed
    return entered, gate


def test_counts_after_known_requests(serving: Serve, image: Image) -> None:
    client = serving(Engine(FakeRuntime(delay=0.01)))
    assert client.post("/embed", json=body(image(), 3, texts=["a", "b"])).status_code == 200
    assert client.post("/classify", json=body(image(), 1, labels=["cat", "dog"])).status_code == 200
    assert client.post("/classify", json=body(image(), 1, labels=["cat", "dog"])).status_code == 200
    now = settled(client, "digpt_requests_total", 3, model="fake")
    assert now("digpt_requests_total", endpoint="/embed", status="200", model="fake") == 1
    assert now("digpt_requests_total", endpoint="/classify", status="200", model="fake") == 2
    assert now("digpt_images_total", model="fake") == 5
    assert now("digpt_texts_total", model="fake") == 4  # a, b, and the prompts of two labels, once
    assert now("digpt_batch_items_count", model="fake") == 5
    assert now("digpt_batch_items_sum", model="fake") == 9
    assert now("digpt_batch_items_bucket", model="fake", le="1.0") == 2
    assert now("digpt_batch_items_bucket", model="fake", le="2.0") == 4
    assert now("digpt_batch_items_bucket", model="fake", le="4.0") == 5
    for stage, times in {"decode": 3, "queue": 3, "inference": 5}.items():
        assert now(f"digpt_{stage}_seconds_count", model="fake") == times
    inference = now("digpt_inference_seconds_sum", model="fake")
    assert 0.05 <= inference <= now("digpt_request_duration_seconds_sum", model="fake")
    assert inference <= now("digpt_busy_seconds_total", model="fake")
    assert now("digpt_errors_total") == now("digpt_item_errors_total") == now("digpt_dropped_items_total") == 0
    assert now("digpt_queue_pixels") == now("digpt_queue_items") == 0
    assert now("digpt_requests_in_flight") == 1  # the scrape itself
    assert now("digpt_cache_hits_total", cache="class_matrices") == 1
    assert now("digpt_cache_misses_total", cache="class_matrices") == 1
    assert now("digpt_cache_misses_total", cache="texts") == 4  # a, b, and the prompts of two labels
    assert now("process_resident_memory_bytes") > 1e7
    assert now("process_cpu_seconds_total") > 0
    assert not [sample.name for sample in now.samples if sample.name.endswith("_created")]


def test_models_say_what_they_are(serving: Serve) -> None:
    runtime = FakeRuntime()
    entered, gate = hold(runtime)
    client = serving({"a": Engine(runtime), "b": Engine(FakeRuntime(dim=8))}, wait=False)
    assert entered.wait(5)
    now = settled(client, "digpt_model_ready", 1, model="b")
    assert now("digpt_model_ready", model="a") == 0
    gate.set()
    now = settled(client, "digpt_model_ready", 1, model="a")
    info = {"model": "a", "backend": "fake", "precision": "fp32", "fingerprint": runtime.info.fingerprint}
    assert now.labels("digpt_model_info")[0] == info
    assert now("digpt_images_total", model="a") == 0  # the warm-up is no request
    assert {"model": "a"} in now.labels("digpt_images_total")  # there from the start


def test_errors_of_items(serving: Serve, image: Image) -> None:
    client = serving(Engine(FakeRuntime()))
    images = [base64.b64encode(data).decode() for data in (image(), b"no image", image()[:200])]
    assert client.post("/embed", json={"images": images}).status_code == 200
    assert client.post("/embed", json={"images": images[1:2]}).status_code == 415
    now = settled(client, "digpt_requests_total", 2, endpoint="/embed")
    assert now("digpt_item_errors_total", model="fake", code="unsupported_image_format") == 2
    assert now("digpt_item_errors_total", model="fake", code="unreadable_image") == 1
    assert now("digpt_errors_total", endpoint="/embed", code="unsupported_image_format") == 1
    assert now("digpt_errors_total") == 1
    assert now("digpt_images_total") == 1
    assert now("digpt_decode_seconds_count") == 2
    assert now("digpt_inference_seconds_count") == 1


def test_full_queue(serving: Serve, image: Image) -> None:
    runtime = FakeRuntime()
    client = serving(Engine(runtime), queue_pixels=3 * PIXELS)
    entered, gate = hold(runtime)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/embed", json=body(image()))
        assert entered.wait(5)
        second = pool.submit(client.post, "/embed", json=body(image(), 2))
        now = settled(client, "digpt_queue_items", 3, model="fake")
        assert now("digpt_queue_pixels", model="fake") == 3 * PIXELS
        assert now("digpt_requests_in_flight") == 3
        assert client.post("/embed", json=body(image())).status_code == 429
        now = settled(client, "digpt_errors_total", 1, endpoint="/embed", code="queue_full")
        assert now("digpt_requests_total", endpoint="/embed", status="429", model="fake") == 1
        assert now("digpt_queue_items", model="fake") == 3
        gate.set()
        assert [answer.result().status_code for answer in (first, second)] == [200, 200]
    now = settled(client, "digpt_requests_total", 2, endpoint="/embed", status="200")
    assert now("digpt_queue_items") == now("digpt_queue_pixels") == now("digpt_dropped_items_total") == 0


def test_deadline(serving: Serve, image: Image) -> None:
    runtime = FakeRuntime()
    client = serving(Engine(runtime), deadline_s=0.2)
    _, gate = hold(runtime)
    assert client.post("/embed", json=body(image(), 3)).status_code == 504
    gate.set()
    now = settled(client, "digpt_errors_total", 1, endpoint="/embed", code="deadline_exceeded")
    assert now("digpt_requests_total", endpoint="/embed", status="504", model="fake") == 1
    assert now("digpt_dropped_items_total", model="fake", reason="deadline") == 3
    assert now("digpt_dropped_items_total") == 3
    assert now("digpt_request_duration_seconds_bucket", endpoint="/embed", le="0.1") == 0
    settled(client, "digpt_images_total", 3)  # their batch had begun


def test_a_client_that_left(serving: Serve, image: Image) -> None:
    runtime = FakeRuntime()
    client = serving(Engine(runtime))
    entered, gate = hold(runtime)
    content = json.dumps(body(image(), 2)).encode()
    with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as connection:
        head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        assert entered.wait(5)
    now = settled(client, "digpt_dropped_items_total", 2, model="fake", reason="cancelled")
    gate.set()
    now = settled(client, "digpt_errors_total", 1, endpoint="/embed", code="client_gone")
    assert now("digpt_requests_total", endpoint="/embed", status="499", model="fake") == 1
    assert now("digpt_queue_items") == 0


def test_a_failing_backend(serving: Serve, image: Image) -> None:
    client = serving(Engine(FakeRuntime(fail_if=lambda crop: bool(crop.any()))))
    assert client.post("/embed", json=body(image())).status_code == 500
    now = settled(client, "digpt_errors_total", 1, endpoint="/embed", code="internal_error")
    assert now("digpt_requests_total", endpoint="/embed", status="500", model="fake") == 1
    assert now("digpt_inference_seconds_count") == now("digpt_images_total") == now("digpt_dropped_items_total") == 0


def test_clients_make_up_no_labels(serving: Serve, image: Image) -> None:
    client = serving(Engine(FakeRuntime()))

    def ask(numbers: range) -> Scrape:
        for number in numbers:
            client.get(f"/made/up/{number}")
            client.get(f"/models/made-up-{number}")
            client.post("/embed", json=body(image(), model=f"made-up-{number}"))
            client.put(f"/embed?made={number}")
            client.get(f"/metrics?made={number}")
        return settled(client, "digpt_errors_total", numbers.stop, endpoint="/embed", code="method_not_allowed")

    few, many = ask(range(5)), ask(range(5, 20))
    assert len(many.samples) == len(few.samples)
    assert many("digpt_requests_total", endpoint="/models/{name}", status="404", model="") == 20
    assert many("digpt_requests_total", endpoint="other", status="404") == 20
    assert many("digpt_errors_total", endpoint="/embed", code="model_not_found") == 20
    assert "made" not in client.get("/metrics").text.lower()


def test_mounts_are_one_endpoint(serving_app: Callable[..., Any]) -> None:
    app = create_app({"fake": Engine(FakeRuntime())})
    inner = FastAPI()
    inner.get("/{anything:path}")(lambda anything: anything)
    app.mount("/demo", inner)
    with serving_app(app) as client:
        for path in ("/demo/", "/demo/a", "/demo/a/b"):
            assert client.get(path).status_code == 200
        now = settled(client, "digpt_requests_total", 3, endpoint="/demo", status="200")
        assert now("digpt_requests_total", endpoint="other") == 0


def test_the_price_is_a_setting(serving: Serve, image: Image) -> None:
    client = serving(Engine(FakeRuntime()), price_per_hour=36.0)
    assert client.post("/embed", json=body(image(), 4)).status_code == 200
    now = settled(client, "digpt_requests_total", 1, endpoint="/embed")
    cost = 0.01 * now("digpt_busy_seconds_total", model="fake") / 4 * 1e6
    assert now("digpt_cost_per_million_images", model="fake") == pytest.approx(cost)


def test_two_applications_count_for_themselves(serving: Serve, image: Image) -> None:
    first, second = serving(Engine(FakeRuntime())), serving(Engine(FakeRuntime()))
    assert first.post("/embed", json=body(image(), 2)).status_code == 200
    assert settled(first, "digpt_images_total", 2)("digpt_batch_items_count") == 1
    assert scrape(second)("digpt_images_total") == 0


def test_formats(client: httpx.Client) -> None:
    text = client.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    openmetrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")
    described = client.get("/openapi.json").json()["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert list(described) == ["text/plain"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watched() -> Any:
    return SimpleNamespace(engine=Engine(FakeRuntime()), state="ready")


def test_busy_time_and_cost() -> None:
    clock = Clock()
    metrics = Metrics({"a": watched(), "b": watched()}, price_per_hour=3.6, clock=clock)

    def read() -> Scrape:
        return Scrape(metrics.exposition()[0].decode())

    assert read().labels("digpt_cost_per_million_images") == []  # nothing was computed yet
    clock.now = 100.0  # idle time costs nothing
    with metrics.admitted("a", pixels=1, items=1):
        clock.now = 103.0
        assert read()("digpt_busy_seconds_total", model="a") == 3.0  # what goes on counts
        with metrics.admitted("a", pixels=1, items=1):  # two at a time are busy once
            clock.now = 104.0
        with metrics.admitted("b", pixels=1, items=1):  # two models share the time
            clock.now = 110.0
    clock.now = 200.0
    metrics.batch_computed("a", images=100, texts=0, seconds=1.0)
    now = read()
    assert now("digpt_busy_seconds_total", model="a") == 7.0
    assert now("digpt_busy_seconds_total", model="b") == 3.0
    # 3.6 an hour are 0.001 a second; 0.07 s an image
    assert now("digpt_cost_per_million_images", model="a") == pytest.approx(0.001 * 0.07 * 1e6)
    assert now.labels("digpt_cost_per_million_images") == [{"model": "a"}]
    assert "cost" not in Metrics({"a": watched()}).exposition()[0].decode()


def test_threads_lose_no_count() -> None:
    metrics = Metrics({"a": watched()})

    def work(_: int) -> None:
        for _ in range(200):
            metrics.request_started()
            with metrics.admitted("a", pixels=5, items=2):
                metrics.batch_computed("a", images=2, texts=1, seconds=0.25)
            metrics.request_finished("/embed", 200, "a", 0.5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    now = Scrape(metrics.exposition()[0].decode())
    assert now("digpt_requests_total") == now("digpt_batch_items_count") == 1600
    assert (now("digpt_images_total"), now("digpt_texts_total")) == (3200, 1600)
    assert now("digpt_inference_seconds_sum") == 400.0
    assert now("digpt_request_duration_seconds_bucket", le="0.25") == 0
    assert now("digpt_request_duration_seconds_bucket", le="0.5") == 1600
    assert now("digpt_queue_pixels") == now("digpt_queue_items") == now("digpt_requests_in_flight") == 0


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _, _ in rows}
    metrics = Metrics({"a": watched()}, price_per_hour=1.0)
    metrics.request_started()
    metrics.request_finished("/embed", 429, "a", 0.1, "queue_full")
    metrics.item_failed("a", "unreadable_image")
    metrics.batch_computed("a", images=1, texts=0, seconds=1.0)
    found = {}
    for family in Scrape(metrics.exposition()[0].decode()).families:
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
    assert documented == found


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    metrics = Metrics({"a": watched()}, price_per_hour=1.0)
    metrics.batch_computed("a", images=1, texts=0, seconds=1.0)
    names = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    names |= {"digpt_requests_total", "digpt_errors_total", "digpt_item_errors_total"}  # have no series yet
    names |= {"digpt_request_duration_seconds_bucket"}
    dashboard = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = {name for expression in asked for name in re.findall(r"\b(?:digpt|process)_\w+", expression)}
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    used |= set(re.findall(r"\b(?:digpt|process)_\w+", "".join(re.findall(r"```promql\n(.*?)```", page, re.DOTALL))))
    assert len(asked) >= 8
    assert used <= names


def test_an_application_needs_no_server_to_count() -> None:
    app = create_app({"x": Engine(FakeRuntime())})
    text = app.state.service.metrics.exposition()[0].decode()
    assert Scrape(text)("digpt_model_ready", model="x") == 0
