"""A stock `openai` client, unchanged, against a running server."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve.keys import Keys
from serve.schemas import PIXEL

Image = Callable[..., bytes]
REFUSED = openai.UnprocessableEntityError
USER = "user-key-0123456789"
NO_IMAGE = "data:image/png;base64,aGVsbG8="


def stock(client: httpx.Client, key: str = "none") -> openai.OpenAI:
    own = httpx.Client(trust_env=False, timeout=20)
    return openai.OpenAI(
        base_url=f"{client.base_url}/v1".replace("//v1", "/v1"), api_key=key, max_retries=0, http_client=own
    )


@pytest.fixture
def sdk(client: httpx.Client) -> Any:
    with stock(client) as found:
        yield found


def uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def rows(found: Any) -> np.ndarray:
    return np.array([item.embedding for item in found.data], np.float32)


def test_texts(sdk: openai.OpenAI, engine: Engine) -> None:
    expected = engine.embed_texts(["a cat", "a dog"])
    found = sdk.embeddings.create(model="fake", input=["a cat", "a dog"])  # the SDK asks for base64 by itself
    np.testing.assert_array_equal(rows(found), expected)
    assert (found.object, found.model, [item.index for item in found.data]) == ("list", "fake", [0, 1])
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (2, 2)
    one = sdk.embeddings.create(model="fake", input="a dog", encoding_format="float", dimensions=8, user="me")
    np.testing.assert_array_equal(rows(one), expected[1:])


def test_images_and_texts_keep_their_order(sdk: openai.OpenAI, engine: Engine, image: Image) -> None:
    files = [image(0), image(1)]
    images = engine.embed_images([engine.decode(data) for data in files])
    texts = engine.embed_texts(["a cat", "a dog"])
    mixed = sdk.embeddings.create(model="fake", input=["a cat", uri(files[0]), "a dog", uri(files[1])])
    np.testing.assert_array_equal(rows(mixed), np.stack([texts[0], images[0], texts[1], images[1]]))
    bare = [base64.b64encode(data).decode() for data in files]
    found = sdk.embeddings.create(model="fake", input=bare, extra_body={"modality": "image"})
    np.testing.assert_array_equal(rows(found), images)
    text = sdk.embeddings.create(model="fake", input=uri(b"x"), extra_body={"modality": "text"})
    np.testing.assert_array_equal(rows(text), engine.embed_texts([uri(b"x")]))


def test_models(sdk: openai.OpenAI) -> None:
    assert [(model.id, model.object, model.owned_by) for model in sdk.models.list()] == [("fake", "model", "digpt")]
    assert sdk.models.retrieve("fake").created > 1_700_000_000
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("text-embedding-3-small")


@pytest.mark.parametrize(
    ("request_", "kind", "code", "param", "said"),
    [
        ({"model": "clip", "input": "x"}, openai.NotFoundError, "model_not_found", "model", "there is fake"),
        ({"input": [1, 2, 3]}, REFUSED, "invalid_request", "input", "send the text itself"),
        ({"input": [[1, 2], [3]]}, REFUSED, "invalid_request", "input", "send the text itself"),
        ({"input": list(range(300))}, REFUSED, "invalid_request", "input", "the text itself"),
        ({"input": ["a"] * 9}, REFUSED, "invalid_request", None, "at most 8"),
        ({"input": []}, REFUSED, "invalid_request", "input", "at least 1"),
        ({"input": ""}, REFUSED, "invalid_request", "input", "at least 1"),
        ({"input": ["a", ""]}, REFUSED, "invalid_request", "input", "input[1]"),
        ({"input": ["a", "x" * 51]}, REFUSED, "invalid_request", "input", "input[1] has 51"),
        ({"input": "x", "dimensions": 4}, REFUSED, "invalid_request", "dimensions", "of 8"),
        ({"input": ["a", NO_IMAGE]}, openai.APIStatusError, "unsupported_image_format", "input", ""),
        ({"input": NO_IMAGE}, openai.APIStatusError, "unsupported_image_format", "input", ""),
        ({"input": "x", "extra_body": {"modality": "sound"}}, REFUSED, "invalid_request", "modality", ""),
        ({"input": "x", "extra_body": {"prompt": "x"}}, REFUSED, "invalid_request", "prompt", ""),
    ],
)  # fmt: skip
def test_errors_have_the_sdks_own_classes(
    sdk: openai.OpenAI, request_: Any, kind: type[Exception], code: str, param: str | None, said: str
) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        sdk.embeddings.create(**{"model": "fake", **request_})
    assert isinstance(raised.value, kind)
    assert (raised.value.code, raised.value.param) == (code, param)
    assert said in str(raised.value)


def test_the_index_of_an_error_is_the_inputs(client: httpx.Client) -> None:
    body = {"model": "fake", "input": ["a", PIXEL, NO_IMAGE]}
    assert client.post("/v1/embeddings", json=body).json()["error"]["index"] == 2
    alone = client.post("/v1/embeddings", json={**body, "input": [NO_IMAGE]})
    assert (alone.status_code, alone.json()["error"]["index"]) == (415, 0)


def test_a_body_that_is_no_json(client: httpx.Client, sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        sdk.post("/embeddings", content=b'{"input": [', cast_to=object)
    assert raised.value.code == "unparsable_body"
    assert client.post("/v1/embeddings", data={"input": "x"}).status_code == 415


def test_keys_limits_and_readiness(serving: Callable[..., httpx.Client]) -> None:
    runtime = FakeRuntime(dim=8)
    client = serving({"fake": Engine(runtime)}, keys=Keys([USER]), wait=False)
    with stock(client, "wrong-key-0123456789") as unknown, pytest.raises(openai.AuthenticationError) as raised:
        unknown.models.list()
    assert raised.value.code == "invalid_api_key"
    with stock(client, USER) as known:
        while client.get("/health/ready").status_code != 200:
            pass
        assert len(known.embeddings.create(model="fake", input="x").data[0].embedding) == 8
        with pytest.raises(openai.PermissionDeniedError):
            known.post("/../models/fake/load", cast_to=object)
        client.service.bodies.held = client.service.settings.max_pending_bytes
        with pytest.raises(openai.RateLimitError) as limited:
            known.embeddings.create(model="fake", input="x")
        assert limited.value.response.headers["retry-after"] == "1"
        client.service.bodies.held = 0
        client.service.models["fake"].watchdog.state = "starting"
        with pytest.raises(openai.InternalServerError) as starting:  # the SDK's name for every 5xx
            known.embeddings.create(model="fake", input="x")
        assert (starting.value.status_code, starting.value.code) == (503, "not_ready")
