"""The demo behind the server: it waits for its model, fetches nothing, and takes no more than the API does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import app
from app import demo, handlers
from digpt.engine import Engine
from digpt.passport import FINGERPRINT_META, PASSPORT_NAME
from digpt.report import document
from digpt.runtime.base import Golden
from digpt.runtime.fake import FakeRuntime
from serve.cli import ServeConfig, build
from serve.keys import Keys

PICTURE = Path(__file__).parents[2] / "examples" / "images" / "red-apple.png"
CALL = "/demo/gradio_api/call/classify"


@pytest.fixture(scope="module", autouse=True)
def without_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "load_emoji", lambda: None)
        yield


@pytest.fixture(scope="module")
def page(serving_app: Any) -> Iterator[httpx.Client]:
    config = ServeConfig(max_request_bytes=200_000)
    with serving_app(build(config, {"fake": Engine(FakeRuntime(labels=["cat", "dog"]))})) as client:
        while client.get("/health/ready").status_code != 200:
            time.sleep(0.005)
        yield client


def ask(page: httpx.Client, picture: Any) -> httpx.Response:
    return page.post(CALL, json={"data": [picture, "cat", "", 5, False]})


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    from gradio import processing_utils, routes

    fetched: list[Any] = []

    async def fetch(url: str, *_: Any, **__: Any) -> str:
        fetched.append(url)
        raise OSError("fetched")

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    monkeypatch.setattr(routes, "secure_url_stream_response", fetch, raising=False)
    return fetched


@pytest.mark.parametrize(
    "picture",
    [
        {"path": "http://example.com/x.png", "meta": {"_type": "gradio.FileData"}},
        {"path": " HTTPS://example.com/x.png", "meta": {"_type": "gradio.FileData"}},
        {"path": "/x.png", "url": "http://example.com/gradio_api/file=/x.png", "meta": {"_type": "gradio.FileData"}},
        [{"deep": {"path": "http://127.0.0.1/x.png"}}],
    ],
)
def test_nothing_is_fetched(page: httpx.Client, no_downloads: list[Any], picture: Any) -> None:
    for path in (CALL, "/demo/gradio_api/queue/join", "/demo/gradio_api/run/classify"):
        answer = page.post(path, json={"data": [picture, "cat", "", 5, False], "fn_index": 0, "session_hash": "x"})
        assert answer.status_code == 422, answer.text
        assert "not fetched here" in answer.json()["error"]["message"]
    for path in ("/demo/gradio_api/file=http://example.com/x.png", "/demo/gradio_api/proxy=https://example.com/x"):
        assert page.get(path).status_code == 422
    assert no_downloads == []


def test_an_upload_is_answered_as_its_own_page_asks(page: httpx.Client) -> None:
    path = page.post("/demo/gradio_api/upload", files={"files": ("x.png", PICTURE.read_bytes())}).json()[0]
    own = f"{page.base_url}/demo/gradio_api/file={path}"
    started = ask(page, {"path": path, "url": own, "meta": {"_type": "gradio.FileData"}})
    assert started.status_code == 200, started.text
    answer = page.get(f"{CALL}/{started.json()['event_id']}")
    assert "event: complete" in answer.text and '"cat"' in answer.text


def test_too_large(page: httpx.Client) -> None:
    for request in ({"files": {"files": b"x" * 300_000}}, {"json": {"data": ["x" * 300_000]}}):
        answer = page.post("/demo/gradio_api/upload", **request)
        assert answer.status_code == 413
        assert "200000 bytes" in answer.json()["error"]["message"]
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert page.post("/demo/gradio_api/upload", content=iter([b"x"]), headers=form).status_code == 422
    assert page.post(CALL, content=b"[" * 10_000, headers={"Content-Type": "application/json"}).status_code == 422


def test_unexpected_errors_say_nothing(page: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr(handlers, "classify", fail)
    started = ask(page, None)
    answer = page.get(f"{CALL}/{started.json()['event_id']}")
    assert "event: error" in answer.text
    assert "secret" not in answer.text


def test_a_model_that_failed_its_check_does_not_answer(serving_app: Any) -> None:
    runtime = FakeRuntime()
    crops = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    runtime.golden = Golden(crops, runtime.embed(crops) * 1.5, cosine=0.999, relative_error=1e-3)
    with serving_app(build(ServeConfig(), {"fake": Engine(runtime)})) as client:
        while client.get("/models/fake").json()["state"] == "starting":
            time.sleep(0.005)
        for answer in (client.get("/demo/"), ask(client, None)):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
            assert "does not reproduce its golden embeddings" in answer.json()["error"]["message"]


@pytest.mark.parametrize("keys", [Keys(), Keys(["user-key-0123456789"])])
def test_the_page_leads_to_the_passport_unless_that_takes_a_key(serving_app: Any, tmp_path: Path, keys: Keys) -> None:
    runtime = FakeRuntime(spec=str(tmp_path))
    (tmp_path / PASSPORT_NAME).write_text(document("x", meta={FINGERPRINT_META: runtime.info.fingerprint}))
    with serving_app(build(ServeConfig(open_demo=True), {"fake": Engine(runtime)}, keys)) as client:
        while client.get("/health/ready").status_code != 200:
            time.sleep(0.005)
        assert ("[its passport](/models/fake/card)" in client.get("/demo/").text) == (not keys.set)
        assert client.get("/models/fake/card").status_code == (401 if keys.set else 200)


def test_few_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    page = demo.queued(app.build_demo(Engine(FakeRuntime())))
    assert page._queue.max_size == demo.MAX_WAITING
