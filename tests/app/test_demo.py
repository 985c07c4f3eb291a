"""The page itself: it builds, mounts, asks the network for nothing, and answers over HTTP what the engine answers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import app
from app import cli, demo, handlers
from digpt.engine import Engine
from digpt.passport import FINGERPRINT_META, PASSPORT_NAME
from digpt.report import document
from digpt.runtime.fake import FakeRuntime

PICTURE = Path(__file__).parents[2] / "examples" / "images" / "red-apple.png"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(FakeRuntime(dim=8, labels=["cat", "dog", "owl"]))


@pytest.fixture(scope="module")
def api(engine: Engine) -> FastAPI:
    return app.mount(FastAPI(), engine)


@asynccontextmanager
async def browsing(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with api.router.lifespan_context(api):
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://demo.test", follow_redirects=True) as client:
            yield client


async def call(client: httpx.AsyncClient, name: str, data: list[Any]) -> tuple[str, Any]:
    """Call an event as Gradio's own clients do; return how it ended and what it gave."""
    started = await client.post(f"/demo/gradio_api/call/{name}", json={"data": data})
    assert started.status_code == 200, started.text
    answer = await client.get(f"/demo/gradio_api/call/{name}/{started.json()['event_id']}")
    event, content = re.findall(r"event: (\w+)\ndata: (.*)", answer.text)[-1]
    return event, json.loads(content)


async def upload(client: httpx.AsyncClient, data: bytes, name: str = "red-apple.png") -> dict[str, Any]:
    answer = await client.post("/demo/gradio_api/upload", files={"files": (name, data)})
    return {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def test_page_answers_and_names_no_other_host(api: FastAPI, engine: Engine) -> None:
    async def scenario() -> None:
        async with browsing(api) as client:
            page = await client.get("/demo")
            assert page.status_code == 200
            assert engine.info.fingerprint in page.text
            fetched = re.findall(r"<(?:script|link|img)[^>]*?(?:src|href)=\"(https?://[^\"]+)", page.text)
            assert [url for url in fetched if not url.startswith("http://demo.test")] == []
            theme = await client.get("/demo/theme.css")
            assert "googleapis" not in theme.text and "system-ui" in theme.text
            config = (await client.get("/demo/config")).json()
            assert config["analytics_enabled"] is False
            tabs = [part["props"]["label"] for part in config["components"] if part["type"] == "tabitem"]
            assert tabs == ["Classify", "Compare", "Search", "Corrupt", "Styles never seen"]

    asyncio.run(scenario())


def test_classify_and_compare_over_http(api: FastAPI, engine: Engine) -> None:
    data = PICTURE.read_bytes()

    async def scenario() -> None:
        async with browsing(api) as client:
            picture = await upload(client, data)
            event, (label, command, code) = await call(client, "classify", [picture, "cat\nrocket", "", 5, False])
            assert event == "complete"
            expected = engine.classify([engine.decode(data)], ["cat", "rocket"])[0]
            shown = {best["label"]: best["confidence"] for best in label["confidences"]}
            assert shown == {best.label: pytest.approx(best.score) for best in expected}
            assert command.startswith("curl -s http://demo.test/classify")
            assert "files=@red-apple.png" in command
            assert "Engine.load('http://demo.test')" in code and "['cat', 'rocket']" in code

            event, (table, command, code) = await call(client, "compare", [picture, None, "cat"])
            assert event == "complete"
            expected_rows = [
                [pair, round(cosine, 4)] for pair, cosine in handlers.similarity(engine, str(PICTURE), None, "cat")
            ]
            assert table["data"] == expected_rows
            assert command.startswith("curl -s http://demo.test/embed") and "embed_texts(['cat'])" in code

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"this is no image", "Not an image of a supported format"),
        (PICTURE.read_bytes()[:1000], "damaged or truncated"),
        (None, "Give a picture first."),
    ],
    ids=["text", "truncated", "none"],
)
def test_errors_are_sentences(api: FastAPI, data: bytes | None, sentence: str) -> None:
    async def scenario() -> None:
        async with browsing(api) as client:
            picture = None if data is None else await upload(client, data)
            event, error = await call(client, "classify", [picture, "cat", "", 5, False])
            assert event == "error"
            assert sentence in json.dumps(error)
            assert (await client.get("/demo")).status_code == 200

    asyncio.run(scenario())


def test_a_model_without_text_tower_has_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "load_emoji", lambda: None)
    engine = Engine(FakeRuntime(text=False, labels=["x", "y"], linear_head=True, name="headed"))
    config = app.build_demo(engine).get_config_file()
    texts = [part["props"].get("value") for part in config["components"] if part["type"] == "markdown"]
    assert any("headed" in text for text in texts)
    assert any("not installed here" in text for text in texts)


def test_a_page_says_where_its_models_passport_is(tmp_path: Path) -> None:
    engine = Engine(FakeRuntime(spec=str(tmp_path)))

    def said(**options: Any) -> str:
        parts = demo.build_demo(engine, **options).get_config_file()["components"]
        return next(part["props"]["value"] for part in parts if "Fingerprint" in str(part["props"].get("value")))

    served: dict[str, Any] = {"api_here": True, "cards": "/models/{name}/card"}
    assert said(**served).endswith("It came without a passport.")
    (tmp_path / PASSPORT_NAME).write_text(document("x", meta={FINGERPRINT_META: engine.info.fingerprint}))
    assert said(**served).endswith("[its passport](/models/fake/card).")
    assert said().endswith(f"its passport, `{tmp_path / PASSPORT_NAME}`.")
    assert "passport" not in said(api_here=True)  # a server that wants a key for it, and whose files are its own


def test_importing_and_building_leaves_no_files_behind() -> None:
    assert [path.name for path in Path(demo.__file__).parent.glob("*.pyi")] == []


def test_each_model_has_a_page_and_its_name_in_the_lines() -> None:
    engines = {name: Engine(FakeRuntime(dim=dim)) for name, dim in (("small", 8), ("la.rge", 16))}
    api = app.mount(FastAPI(), engines)

    async def scenario() -> None:
        async with browsing(api) as client:
            for path, name in (("/demo", "small"), ("/demo/la.rge", "la.rge")):
                page = await client.get(path)
                other = next(engine for key, engine in engines.items() if key != name)
                assert engines[name].info.fingerprint in page.text and other.info.fingerprint not in page.text
                assert f"{name} (fake fp32)" in page.text
            picture = await upload(client, PICTURE.read_bytes())
            for event, name in (("classify", "small"), ("classify_1", "la.rge")):
                _, (label, command, code) = await call(client, event, [picture, "cat,dog", "", 5, False])
                expected = engines[name].classify([engines[name].decode(PICTURE.read_bytes())], ["cat", "dog"])[0]
                assert label["confidences"][0]["confidence"] == pytest.approx(expected[0].score)
                assert ("model=la.rge" in command) == ("http://demo.test#la.rge" in code) == (name == "la.rge")

    asyncio.run(scenario())


def test_search_over_http_streams_its_progress(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number}.png").write_bytes(PICTURE.read_bytes())
    api = app.mount(FastAPI(), Engine(FakeRuntime(dim=8)), search_dir=str(tmp_path))

    async def scenario() -> None:
        async with browsing(api) as client:
            started = await client.post("/demo/gradio_api/call/search", json={"data": [None, "dog"]})
            answer = await client.get(f"/demo/gradio_api/call/search/{started.json()['event_id']}")
            assert "Indexing, once: 256 of 300 pictures." in answer.text
            assert "The nearest of 300 pictures:" in answer.text
            assert "folder('DIR')" in answer.text and str(tmp_path) not in answer.text
            event, error = await call(client, "search", [None, " "])
            assert event == "error" and "Type words or give a picture to search for." in json.dumps(error)

    asyncio.run(scenario())


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    launched: list[tuple[list[str], int, str | None]] = []
    monkeypatch.setattr(
        demo, "launch", lambda engines, host, port, search: launched.append((list(engines), port, search))
    )
    monkeypatch.setattr(cli.Engine, "load", lambda spec, backend, threads: Engine(FakeRuntime(name=spec)))
    assert cli.main(["--model", "x", "--port", "7000"]) == 0
    assert "demo http://127.0.0.1:7000" in capsys.readouterr().out
    (tmp_path / "a.png").touch()
    assert cli.main(["--model", "x", "--model", "y", "--model", "x", "--search-dir", str(tmp_path)]) == 0
    assert launched == [(["x"], 7000, None), (["x", "y", "x-2"], 7860, str(tmp_path))]
    capsys.readouterr()
    assert cli.main(["--search-dir", str(tmp_path / "absent")]) == 2
    assert "is no folder; --search-dir takes one" in capsys.readouterr().err


def test_unknown_model_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--model", "http://127.0.0.1:1"]) == 2  # refused without loading torch
    assert capsys.readouterr().err.count("\n") == 1
