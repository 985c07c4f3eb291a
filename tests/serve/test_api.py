"""What the server says about itself: paths, models, health, documents; and its command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import serve.cli
from digpt.engine import Engine
from digpt.errors import ConfigError
from digpt.runtime.fake import FakeRuntime
from serve import Settings, create_app
from serve.cli import ServeConfig, announce, load_engines, main, public_name, split_model
from serve.keys import Keys
from serve.schemas import ClassifyResponse, EmbedResponse, ModelCard

ERRORS = ["400", "401", "404", "409", "413", "415", "422", "429", "503", "504"]
FIELDS = {
    "/embed": ["images", "model", "preprocessed", "texts", "encoding_format", "normalize"],
    "/classify": [
        *(
            "images",
            "model",
            "preprocessed",
            "labels",
            "class_set",
            "templates",
            "top_k",
            "multi_label",
            "abstain",
            "logits",
        )
    ],
}


def test_openapi_paths(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    described = {
        f"{method.upper()} {path}": sorted(operation["responses"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert described == {
        "POST /embed": ["200", *ERRORS],
        "POST /classify": ["200", *ERRORS],
        "POST /v1/embeddings": ["200", *(status for status in ERRORS if status != "409")],
        "GET /v1/models": ["200", "401"],
        "GET /v1/models/{name}": ["200", "401", "404", "422", "503"],
        "PUT /class-sets/{name}": ["200", "201", *ERRORS],
        "GET /class-sets": ["200", "401"],
        "GET /class-sets/{name}": ["200", "304", "401", "404", "422"],
        "DELETE /class-sets/{name}": ["200", "401", "404", "422"],
        "POST /models/{name}/load": ["202", "401", "403", "404", "409", "422"],
        "POST /models/{name}/unload": ["202", "401", "403", "404", "409", "422"],
        "GET /models": ["200", "401"],
        "GET /models/{name}": ["200", "401", "404", "422", "503"],
        "GET /health/live": ["200", "503"],
        "GET /metrics": ["200", "401"],
        "GET /models/{name}/card": ["200", "401", "404", "422", "503"],
        "GET /health/ready": ["200", "503"],
    }


@pytest.mark.parametrize("path", ["/embed", "/classify"])
def test_openapi_requests(client: httpx.Client, path: str) -> None:
    operation = client.get("/openapi.json").json()["paths"][path]["post"]
    content = operation["requestBody"]["content"]
    assert list(content) == ["application/json", "multipart/form-data", "image/*"]
    schema = content["application/json"]["schema"]
    assert list(schema["properties"]) == FIELDS[path]
    assert schema["additionalProperties"] is False
    assert list(content["multipart/form-data"]["schema"]["properties"]) == ["files", *FIELDS[path][1:]]
    assert [parameter["name"] for parameter in operation["parameters"]] == FIELDS[path][1:]
    example = client.post(path, json=schema["examples"][0])
    assert example.status_code == 200, example.text


def test_answers_are_what_the_document_says(client: httpx.Client, image: Callable[..., bytes]) -> None:
    files = [("files", image()), ("files", b"no image")]
    EmbedResponse.model_validate_json(client.post("/embed", files=files).content)
    ClassifyResponse.model_validate_json(client.post("/classify", files=files, data={"labels": ["a", "b"]}).content)


def test_models_and_health(serving: Callable[..., httpx.Client]) -> None:
    first, second = FakeRuntime(labels=["cat", "dog"], dim=8), FakeRuntime(text=False, spec="/secret/dir/ckpt.pt")
    client = serving({"emoji": Engine(first), "other": Engine(second)})
    cards = client.get("/models").json()
    assert (cards["object"], [card["id"] for card in cards["data"]]) == ("list", ["emoji", "other"])
    card = client.get("/models/emoji").json()
    ModelCard.model_validate(card)
    assert (card["labels"], card["num_labels"], card["dim"]) == (["cat", "dog"], 2, 8)
    assert (card["has_text"], card["logit_scale"], card["preprocess"]["size"]) == (True, 10.0, 64)
    assert cards["data"][0]["labels"] is None  # the list stays short
    assert "secret" not in client.get("/models/other").text
    assert set(client.get("/health/ready").json()["models"]) == {"emoji", "other"}
    assert client.get("/health/live").json()["status"] == "live"


def test_pages(client: httpx.Client) -> None:
    assert client.get("/").headers["location"] == "/docs"
    page = client.get("/docs").text
    for path in (*FIELDS, "/models/{name}", "/health/ready", "curl -s http://127.0.0.1"):
        assert path in page
    assert not re.search(r"(src|href)=['\"]?(https?:)?//", page), "the page must work without a network"


def test_what_browsers_and_probes_ask_for(client: httpx.Client) -> None:
    icon = client.get("/favicon.ico")
    assert (icon.status_code, icon.content) == (204, b"")
    assert client.get("/manifest.json").json()["name"] == "digpt"
    for path in ("/health/live", "/health/ready"):
        probe = client.head(path)
        assert (probe.status_code, probe.content) == (200, b"")


def test_uvicorn_is_told_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(serve.cli.Engine, "load", lambda *_, **__: Engine(FakeRuntime()))
    monkeypatch.setattr(serve.cli.Server, "run", lambda server: told.update(vars(server.config)))
    assert main(["--no-demo", "--max-connections", "7"]) == 0
    assert (told["limit_concurrency"], told["timeout_keep_alive"]) == (7, 5)


def test_settings_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="max_items=0 must be above zero"):
        Settings(max_items=0)
    with pytest.raises(ConfigError, match="no model"):
        create_app({})


def test_command_line_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert {"--model", "--backend", "--host", "--port", "--threads", "--no-demo", "--deadline-s"} <= flags


@pytest.mark.parametrize(
    ("argument", "name", "spec"),
    [
        ("bundled", None, "bundled"),
        ("emoji=bundled", "emoji", "bundled"),
        ("open_clip:ViT-B-16/openai", None, "open_clip:ViT-B-16/openai"),
        ("runs/lr=3/ckpt.pt", None, "runs/lr=3/ckpt.pt"),
        ("best=runs/lr=3/ckpt.pt", "best", "runs/lr=3/ckpt.pt"),
    ],
)
def test_model_arguments(argument: str, name: str | None, spec: str) -> None:
    assert split_model(argument) == (name, spec)


def test_public_names_fit_into_a_path() -> None:
    assert public_name("ViT-B-16/openai") == "ViT-B-16-openai"
    assert public_name("ckpt.pt") == "ckpt.pt"
    assert public_name("//") == "model"


def test_engines_by_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    loaded: list[tuple[Any, ...]] = []

    def load(spec: str, backend: str | None, **options: Any) -> Engine:
        loaded.append((spec, backend, options["threads"], options["limits"].max_pixels))
        return Engine(FakeRuntime(name=f"open_clip/{spec}"))

    monkeypatch.setattr(serve.cli.Engine, "load", load)
    config = ServeConfig(model=("a", "x=b"), backend="torch", threads=3, max_image_pixels=7)
    engines = load_engines(config)
    assert list(engines) == ["open_clip-a", "x"]
    assert loaded == [("a", "torch", 3, 7), ("b", "torch", 3, 7)]
    announce(config, engines)
    assert "demo http://127.0.0.1:8000/demo" in capsys.readouterr().out
    announce(config, engines, Keys(["key-0123456789abcdef"], []))
    assert "demo none, since a browser has no key" in capsys.readouterr().out
    announce(ServeConfig(demo=False), engines)
    assert "demo" not in capsys.readouterr().out
    assert list(load_engines(ServeConfig())) == ["open_clip-bundled"]
    with pytest.raises(ConfigError, match="Two models are named 'y'"):
        load_engines(ServeConfig(model=("y=a", "y=b")))


def test_what_cannot_be_loaded_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = tmp_path / "half.pt"
    half.write_bytes(b"PK\x03\x04 half")
    for spec in ("nonsense:x", str(tmp_path / "absent.pt"), str(half)):
        assert main(["--model", spec]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1, captured.err
        assert "Traceback" not in captured.err
