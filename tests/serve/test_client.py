"""The small client: the engine's numbers, and a sentence for every no."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
