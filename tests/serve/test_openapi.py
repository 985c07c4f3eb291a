"""The OpenAPI document is true: its examples fit its schemas, and whatever it allows gets an answer it describes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve import create_app
from serve.docs import EXAMPLES
from serve.examples import ANSWERS, ERRORS
from serve.keys import Keys
from serve.schemas import PIXEL

ADMIN = "admin-key-0123456789"
OPERATIONS = [
    *("POST /embed", "POST /classify", "POST /v1/embeddings", "GET /v1/models", "GET /v1/models/{name}"),
    *("PUT /class-sets/{name}", "GET /class-sets", "GET /class-sets/{name}", "DELETE /class-sets/{name}"),
    *("POST /models/{name}/load", "POST /models/{name}/unload", "GET /models", "GET /models/{name}"),
    *("GET /models/{name}/card", "GET /health/live", "GET /health/ready", "GET /metrics"),
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app({"fake": Engine(FakeRuntime(dim=3))}).openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, found in document["paths"].items():
        for method, operation in found.items():
            yield method, path, operation


def check(instance: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    jsonschema.validate(instance, {**schema, "components": document["components"]}, jsonschema.Draft202012Validator)


def test_every_operation_is_known(document: dict[str, Any]) -> None:
    found = [f"{method.upper()} {path}" for method, path, _ in operations(document)]
    assert sorted(found) == sorted(OPERATIONS)


def test_every_answer_has_an_example_that_fits(document: dict[str, Any]) -> None:
    checked = 0
    for method, path, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status == "304":
                continue
            if (path, status) == ("/metrics", "200"):
                assert answer["content"]["text/plain"]["examples"]["example"]["value"].startswith("# HELP digpt_")
                continue
            if (path, status) == ("/models/{name}/card", "200"):
                assert list(answer["content"]) == ["text/html"]
                continue
            content = answer["content"]["application/json"]
            (example,) = content["examples"].values()
            check(example["value"], content["schema"], document)
            expected = ANSWERS[method, path] if status.startswith("2") else {"error": ERRORS[int(status)]}
            assert example["value"] == expected
            checked += 1
    assert checked > 80


def test_every_request_has_examples_that_fit(document: dict[str, Any]) -> None:
    bodies = 0
    for _, _, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" in content:
            schema = content["application/json"]["schema"]
            assert schema["examples"]
            for example in schema["examples"]:
                check(example, schema, document)
            with pytest.raises(jsonschema.ValidationError):
                check({"unknown": 1}, schema, document)
            bodies += 1
    assert bodies == 4


def test_examples_look_like_real_answers(serving: Callable[..., httpx.Client]) -> None:
    client = serving(
        {"emoji-tiny": Engine(FakeRuntime(dim=3, labels=["red apple", "dog face"]))},
        keys=Keys(admin=[ADMIN]),
        available={"photos": lambda: Engine(FakeRuntime())},
    )
    client.headers["Authorization"] = f"Bearer {ADMIN}"
    bodies = {
        "/embed": {"images": [PIXEL], "texts": ["x"]},
        "/classify": {"images": [PIXEL], "labels": ["a", "b"]},
        "/v1/embeddings": {"model": "emoji-tiny", "input": "x", "encoding_format": "float"},
        "/class-sets/{name}": {"labels": ["a", "b"], "templates": ["a {}"]},
    }
    for (method, path), example in ANSWERS.items():
        name = "fruit" if "class-sets" in path else "photos" if "load" in path else "emoji-tiny"
        body = {"json": bodies[path]} if method in ("post", "put") and path in bodies else {}
        answer = client.request(method.upper(), path.format(name=name), **body)
        assert answer.is_success, (path, answer.text)
        if path == "/metrics":
            assert 'digpt_images_total{model="emoji-tiny"}' in answer.text
            continue
        assert shape(answer.json()) == shape(example), path
        while client.get("/models").json()["available"] and path.endswith("/load"):
            time.sleep(0.005)


def shape(value: Any) -> Any:
    """The names and kinds of what a JSON value holds; of lists, of their first item."""
    if isinstance(value, dict):
        if set(value) <= {"emoji-tiny", "photos"} or "resize" in value:
            return "by name"
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def test_keys_are_described(document: dict[str, Any]) -> None:
    security = {
        f"{method.upper()} {path}": operation.get("security") for method, path, operation in operations(document)
    }
    assert security["POST /models/{name}/load"] == [{"key": []}]
    assert security["POST /embed"] == [{}, {"key": []}]
    assert security["GET /health/live"] is None
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_the_page_shows_every_operation(client: httpx.Client) -> None:
    page = client.get("/docs")
    for operation in OPERATIONS:
        assert operation.partition(" ")[2] in page.text
    assert set(EXAMPLES) <= {operation.partition(" ")[2] for operation in OPERATIONS}
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


def contract(client: httpx.Client, examples: int) -> dict[str, set[int]]:
    """Ask everything that the document allows, and much that it does not; return the statuses of each operation."""
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    statuses: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                answer = case.call(base_url=str(client.base_url), headers={"Authorization": f"Bearer {ADMIN}"})
                statuses.setdefault(case.operation.label, set()).add(answer.status_code)
                case.validate_response(answer, checks=CHECKS)

            with suppress(Unsatisfiable):  # nothing about a request without parameters can be wrong
                ask()
    return statuses


@pytest.fixture
def asked(serving: Callable[..., Any]) -> Callable[[Engine], Any]:
    return lambda engine: serving(
        {"emoji-tiny": engine},
        keys=Keys(admin=[ADMIN]),
        available={"other": lambda: Engine(FakeRuntime(dim=8))},
        max_request_bytes=1_000_000,
    )


def test_no_request_breaks_the_contract(asked: Callable[[Engine], httpx.Client]) -> None:
    client = asked(Engine(FakeRuntime(dim=8)))
    statuses = contract(client, 4)
    assert sorted(statuses) == sorted(OPERATIONS)
    assert 422 in statuses["POST /classify"]
    assert client.get("/health/ready").status_code == 200


@pytest.mark.slow
def test_many_requests_do_not_break_the_contract(asked: Callable[[Engine], httpx.Client]) -> None:
    bundled = asked(Engine.load("bundled", threads=1))
    statuses = contract(bundled, 100)
    assert all(statuses[operation] - {200, 201, 202} for operation in OPERATIONS if "POST" in operation)
    assert {status for found in statuses.values() for status in found if status >= 500} == set()
    assert bundled.get("/health/ready").status_code == 200
