"""The Segment tab: there for segmenters alone, and its colours, shares and Python lines are the engine's answer."""

from __future__ import annotations

import asyncio
import io
import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

import app
from app import handlers, snippets
from digpt.artifact import write_checkpoint
from digpt.data.ade20k import palette
from digpt.engine import Engine
from digpt.errors import InputError, UnsupportedFormatError
from digpt.runtime.fake import FakeRuntime
from digpt.testing import tiny_segmenter_checkpoint

NAMES = ["dark", "<b>middle</b>", "light"]


@pytest.fixture
def engine() -> Engine:
    return Engine(FakeRuntime(text=False, labels=NAMES, segment_crop=64))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """Three quarters dark, one quarter light."""
    pixels = np.zeros((64, 80, 3), np.uint8)
    pixels[:, 60:] = 255
    path = tmp_path / "a picture.png"
    Image.fromarray(pixels).save(path)
    return str(path)


def tabs(engine: Engine) -> list[str]:
    config = app.build_demo(engine).get_config_file()
    return [part["props"]["label"] for part in config["components"] if part["type"] == "tabitem"]


def test_tabs_are_what_the_model_can_do(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "load_emoji", lambda: None)
    assert tabs(engine) == ["Segment", "Compare"]
    with_text = Engine(FakeRuntime(labels=NAMES, segment_crop=64))
    assert tabs(with_text) == ["Segment", "Classify", "Compare", "Corrupt", "Styles never seen"]
    assert handlers.known_concepts(with_text, None) == []  # classes of pixels are no labels to suggest
    config = app.build_demo(engine).get_config_file()
    texts = " ".join(part["props"]["value"] for part in config["components"] if part["type"] == "markdown")
    assert "every pixel one of 3 classes" in texts and "bundled model" not in texts


def test_a_picture_gets_its_classes_and_their_shares(engine: Engine, picture: str) -> None:
    found = handlers.segment(engine, picture)
    assert found.picture.shape == (64, 80, 3) and found.classes.shape == (64, 80)
    assert set(np.unique(found.classes)) == {0, 2}
    shares = handlers.shares(found.classes, NAMES)
    assert [(share.name, share.fraction) for share in shares] == [("dark", 0.75), ("light", 0.25)]
    assert [share.color for share in shares] == [tuple(palette(3)[0].tolist()), tuple(palette(3)[2].tolist())]
    page = handlers.legend([*shares, handlers.Share(NAMES[1], (1, 2, 3), 0.0)])
    assert page.index("dark 75.0%") < page.index("light 25.0%") and f"rgb{shares[0].color}" in page
    assert "&lt;b&gt;middle" in page and "<b>" not in page


def test_opacity_goes_from_the_picture_to_the_colours(engine: Engine, picture: str) -> None:
    found = handlers.segment(engine, picture)
    colors = palette(3)[found.classes]
    np.testing.assert_array_equal(handlers.overlay(found, 0), found.picture)
    np.testing.assert_array_equal(handlers.overlay(found, 1), colors)
    half = (found.picture.astype(float) + colors) / 2
    assert np.abs(handlers.overlay(found, 0.5) - half).max() <= 0.5


def test_large_pictures_are_segmented_in_the_size_they_are_shown_in(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (2048, 700), "white").save(path)
    found = handlers.segment(engine, str(path))
    assert found.picture.shape == (350, 1024, 3) and found.classes.shape == (350, 1024)
    assert (found.classes == 2).all()


def test_what_is_missing_or_wrong_is_a_sentence(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Give a picture first"):
        handlers.segment(engine, None)
    (tmp_path / "x.png").write_text("not an image")
    with pytest.raises(UnsupportedFormatError):
        handlers.segment(engine, str(tmp_path / "x.png"))


def test_the_python_lines_give_the_classes_on_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "it's.pt", tiny_segmenter_checkpoint())
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a 'picture'.png")
    found = handlers.segment(Engine.load(str(tmp_path / "it's.pt")), str(tmp_path / "a 'picture'.png"))
    code = snippets.python_segment('Engine.load("it\'s.pt")', str(tmp_path / "a 'picture'.png"), found.classes.shape)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    np.testing.assert_array_equal(np.asarray(Image.open("classes.png")), found.classes)


def test_over_http(engine: Engine, picture: str) -> None:
    """Upload, segment, move the slider: the colours are the handler's, and the model was asked once."""
    assert isinstance(engine.runtime, FakeRuntime)
    api = app.mount(FastAPI(), engine)

    async def call(client: httpx.AsyncClient, data: list[Any]) -> tuple[str, Any]:
        started = await client.post("/demo/gradio_api/call/segment", json={"data": data})
        answer = await client.get(f"/demo/gradio_api/call/segment/{started.json()['event_id']}")
        event, content = re.findall(r"event: (\w+)\ndata: (.*)", answer.text)[-1]
        return event, json.loads(content)

    async def scenario() -> None:
        transport = httpx.ASGITransport(api)
        async with (
            api.router.lifespan_context(api),
            httpx.AsyncClient(transport=transport, base_url="http://demo.test", follow_redirects=True) as client,
        ):
            files = {"files": ("a picture.png", Path(picture).read_bytes())}
            path = (await client.post("/demo/gradio_api/upload", files=files)).json()[0]
            upload = {"path": path, "orig_name": "a picture.png", "meta": {"_type": "gradio.FileData"}}
            asked = []
            for opacity in (0.6, 0.2):
                event, (image, legend, line) = await call(client, [upload, opacity])
                assert event == "complete" and "dark 75.0%" in legend
                assert snippets.CHECKPOINT in line and "fake" not in line and "size=(64, 80)" in line
                shown = await client.get(f"/demo/gradio_api/file={image['path']}")
                expected = handlers.overlay(handlers.segment(engine, picture), opacity)
                np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown.content))), expected)
                asked.append(len(engine.runtime.batches))
            assert asked == [2, 3]  # the test's own two, and one of the page
            event, error = await call(client, [None, 0.5])
            assert event == "error" and "Give a picture first." in json.dumps(error)

    asyncio.run(scenario())
