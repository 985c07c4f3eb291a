"""The small client: the engine's numbers, and a sentence for every no."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from digpt.client import Client, ServerError
from digpt.engine import Engine
from digpt.errors import BackendError, InputError
from digpt.runtime.fake import FakeRuntime
from serve.keys import Keys

KEY = "user-key-0123456789"


@pytest.fixture
def own(client: Any) -> Any:
    with Client(str(client.base_url)) as found:
        yield found


def test_answers_are_the_engines(own: Client, engine: Engine, image: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(image(1))
    crops = [engine.decode(image(0)), engine.decode(image(1))]
    found = own.embed([image(0), tmp_path / "x.png"], ["a cat"], normalize=False)
    expected = [engine.embed_images(crops, normalize=False), engine.embed_texts(["a cat"], normalize=False)]
    np.testing.assert_array_equal(found, np.concatenate(expected))
    labels = ["cat", "dog", "house"]
    assert own.classify([image(0)], labels, templates=["a {}"], top_k=2) == engine.classify(
        crops[:1], labels, ["a {}"], top_k=2
    )
    assert own.put_class_set("pets", labels)["status"] == "created"
    assert own.classify([image(0)], class_set="pets") == engine.classify(crops[:1], labels)
    assert own.models()[0]["id"] == "fake"


def test_a_no_is_an_exception(own: Client, image: Callable[..., bytes]) -> None:
    with pytest.raises(InputError, match="Input 1: The image is"):
        own.embed([image(0), image(0)[:200]])
    with pytest.raises(ServerError, match="There is no model 'clip'") as raised:
        own.embed(texts=["x"], model="clip")
    assert (raised.value.status, raised.value.code, raised.value.param) == (404, "model_not_found", "model")


def test_keys_and_patience(serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serving(Engine(FakeRuntime(dim=8)), keys=Keys([KEY]))
    address = str(server.base_url)
    with Client(address) as client, pytest.raises(ServerError, match="takes keys") as raised:
        client.models()
    assert raised.value.status == 401
    monkeypatch.setenv("DIGPT_API_KEY", KEY)
    with Client(address, patience_s=1.5) as client:
        assert client.embed(texts=["x"]).shape == (1, 8)
        server.service.models["fake"].watchdog.state = "starting"
        started = time.monotonic()
        with pytest.raises(ServerError, match="is not ready"):
            client.embed(texts=["x"])
        assert 1 <= time.monotonic() - started < 5  # it asked twice
    server.stop()
    with Client(address) as client, pytest.raises(BackendError, match="cannot be reached"):
        client.models()


@pytest.mark.parametrize("status", [200, 502])
def test_what_is_no_json_is_said(status: int) -> None:
    page = "<html>\n<h1>Bad gateway</h1> of a proxy" + "x" * 5000
    with Client("http://127.0.0.1:1") as client:
        client._http = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(status, text=page)))
        with pytest.raises(ServerError, match=f"answers {status}.*<html> <h1>Bad gateway</h1> of a proxy") as raised:
            client.models()
    assert (raised.value.status, raised.value.code) == (status, None)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_only_a_server_that_asks_to_wait_is_asked_again() -> None:
    given = [httpx.Response(429, headers={"Retry-After": "1"}), httpx.Response(200, json={"data": [{"id": "a"}]})]
    with Client("http://127.0.0.1:1", patience_s=5) as client:
        client._http = httpx.Client(transport=httpx.MockTransport(lambda request: given.pop(0)))
        started = time.monotonic()
        assert client.models() == [{"id": "a"}]
        assert time.monotonic() - started >= 1
        given[:] = [httpx.Response(503, json={"error": {"message": "No.", "code": "draining"}})]
        with pytest.raises(ServerError, match=r"answers 503: No\."):
            client.models()
