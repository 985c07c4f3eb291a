"""What is too much is refused before it costs much."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from digpt.engine import Engine
from digpt.errors import ConfigError
from digpt.runtime.fake import FakeRuntime
from serve import Settings
from serve.cli import ServeConfig, main
from serve.inputs import _from_json
from serve.schemas import ClassifyRequest, EmbedRequest

Image = Callable[..., bytes]
Serve = Callable[..., Any]

COUNT = 180_000
FLOODS = [
    b'{"images": [' + b"1," * COUNT + b"1]}",
    b'{"labels": [' + b'"",' * COUNT + b'""]}',
    b'{"templates": [' + b'"a",' * COUNT + b'"a"]}',
    b"{" + b",".join(b'"k%d": 1' % index for index in range(COUNT // 2)) + b"}",
    b'{"images": [' + b"1," * 2_000_000 + b"1]}",
    b'{"' + b"x" * 1_000_000 + b'": 1}',
]


@pytest.mark.parametrize("content", FLOODS, ids=["images", "labels", "templates", "keys", "commas", "long key"])
def test_a_flood_of_wrong_items_is_refused_at_once(serving: Serve, content: bytes) -> None:
    client = serving(Engine(FakeRuntime()))
    started = time.monotonic()
    answer = client.post("/classify", content=content, headers={"Content-Type": "application/json"})
    assert time.monotonic() - started < 1.5
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
    assert len(answer.content) < 1000


def test_the_first_wrong_item_ends_validation() -> None:
    for schema, name in ((EmbedRequest, "images"), (EmbedRequest, "texts"), (ClassifyRequest, "labels")):
        with pytest.raises(ValidationError) as failure:
            schema.model_validate({name: [1] * 1000})
        assert failure.value.error_count() == 1


def test_large_bodies_are_parsed_off_the_event_loop(
    client: httpx.Client, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    import serve.inputs

    off_loop: list[bool] = []

    def parse(*arguments: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            off_loop.append(True)
        else:
            off_loop.append(False)
        return _from_json(*arguments)

    monkeypatch.setattr(serve.inputs, "_from_json", parse)
    monkeypatch.setattr(serve.inputs, "INLINE_BYTES", 1 << 16)  # the fixture's server takes no image that is larger
    large = base64.b64encode(image(0, "BMP", (200, 200))).decode()
    for content in (large, large, base64.b64encode(image()).decode()):
        assert client.post("/embed", json={"images": [content]}).status_code == 200
    assert off_loop == [True, True, False]


def test_scores_of_one_answer_are_bounded(serving: Serve, image: Image) -> None:
    client = serving(Engine(FakeRuntime(labels=["a", "b", "c"])), max_scores=4)
    request = {"images": [base64.b64encode(image()).decode()] * 2}
    for labels in ({"labels": list("xyz")}, {}):
        refused = client.post("/classify", json={**request, **labels})
        assert refused.status_code == 422
        assert refused.json()["error"]["param"] == "top_k"
        assert "2 images times 3 labels are 6 scores" in refused.json()["error"]["message"]
        allowed = client.post("/classify", json={**request, **labels, "top_k": 2})
        assert [len(item["predictions"]) for item in allowed.json()["data"]] == [2, 2]


@pytest.mark.parametrize(
    "wrong",
    [{"max_image_pixels": 0}, {"max_image_bytes": -1}, {"port": 0}, {"threads": 0}, {"deadline_s": float("nan")},
     {"max_scores": 0}],
)  # fmt: skip
def test_every_number_must_be_positive(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be above zero"):
        ServeConfig(**wrong)


def test_wrong_numbers_end_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="must be finite"):
        Settings(deadline_s=float("inf"))
    assert main(["--max-image-pixels", "0"]) == 2
    assert capsys.readouterr().err == "error: max_image_pixels=0 must be above zero.\n"
