"""What the site's pages are made of: links led elsewhere, sessions fenced, an OpenAPI document as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mkdocs.structure.files import File

from scripts.docs_commands import commands
from scripts.docs_docstrings import fenced
from scripts.docs_hooks import _expanded, _led
from scripts.docs_http import example, readable, reference

ROOT = Path(__file__).resolve().parents[2]


def page(source: str, on_site: str) -> File:
    file = File(on_site, str(ROOT), "/nowhere", use_directory_urls=False)
    file.abs_src_path = str(ROOT / source)
    return file


BULK = ("docs/bulk.md", "bulk.md")
README = ("README.md", "project/readme.md")
DECISION = ("docs/decisions/batching.md", "decisions/batching.md")


@pytest.mark.parametrize(
    ("where", "written", "led"),
    [
        (BULK, "[s](serving.md#class-sets)", "[s](serving.md#class-sets)"),
        (BULK, "[s](../deploy/kubernetes.yaml)", "[s](source/deploy/kubernetes.yaml.txt)"),
        (BULK, "[c](../CONTRIBUTING.md#tests)", "[c](project/contributing.md#tests)"),
        (DECISION, "[c](../../CONTRIBUTING.md)", "[c](../project/contributing.md)"),
        (BULK, "the [recipes](../train/recipes), and", "the recipes, and"),
        (README, "[why](docs/decisions/batching.md)", "[why](../decisions/batching.md)"),
        (README, "[s](#models) [s](https://example.org/a.md)", "[s](#models) [s](https://example.org/a.md)"),
        (README, '<img src="docs/images/demo.png">', '<img src="../images/demo.png">'),
    ],
)
def test_links_lead_to_the_site(where: tuple[str, str], written: str, led: str) -> None:
    assert _led(written, page(*where)) == led


def test_a_star_in_the_navigation(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("b.md", "a.md", "README.md"):
        (tmp_path / "d" / name).touch()
    expanded = _expanded([{"D": "d/*.md"}, "e.md"], tmp_path)
    assert expanded == [{"D": ["d/README.md", "d/a.md", "d/b.md"]}, "e.md"]


def test_sessions_are_fenced() -> None:
    text = "Before.\n\n>>> a = 1\n>>> a\n1\n\nAfter."
    assert fenced(text) == "Before.\n\n```pycon\n>>> a = 1\n>>> a\n1\n```\n\nAfter."
    assert fenced("a >> b\n\n    python -m serve") == "a >> b\n\n    python -m serve"


def test_commands_are_the_modules_that_can_be_run() -> None:
    found = commands("export")
    assert found[0] == "export" and "export.card" in found and "export.parity" not in found


def document(**operation: Any) -> dict[str, Any]:
    shape = {"description": "A ``thing``.", "properties": {"n": {"type": "integer", "maximum": 3, "default": 2}}}
    operation = {"tags": ["status"], "summary": "Is it there?", "security": [{}, {"key": []}], **operation}
    answer = {"schema": {"$ref": "#/components/schemas/Thing"}, "examples": {"example": {"value": {"n": 1}}}}
    operation["responses"] = {"200": {"description": "It is.", "content": {"application/json": answer}}}
    return {"paths": {"/things/{name}": {"get": operation}}, "components": {"schemas": {"Thing": shape}}}


def test_an_operation_as_markdown() -> None:
    choice = {"name": "name", "in": "path", "required": True, "schema": {"enum": ["a", "b|c"]}}
    text = reference(document(parameters=[choice]))
    assert "### GET /things/{name}\n\nIs it there? Takes a key where the server has keys." in text
    assert '| `name` | path | `"a"` or `"b\\|c"` |  (required) |' in text
    assert '| 200 | It is. | [Thing](#thing) |\n\n```json\n{"n": 1}\n```' in text
    assert (
        "### Thing\n\nA `thing`.\n\n| field | type |\n| --- | --- |\n| `n` | integer, at most 3, `2` unless given |"
        in text
    )


def test_parameters_that_repeat_the_body_are_one_sentence() -> None:
    field = {"type": "string"}
    body = {"content": {"application/json": {"schema": {"properties": {"model": field}}}}}
    text = reference(document(requestBody=body, parameters=[{"name": "model", "in": "query", "required": False}]))
    assert "Query parameters of the same names, for raw image bodies: `model`." in text
    assert "**Parameters**" not in text


def test_examples_ask_for_what_there_is() -> None:
    assert example("/class-sets/{name}", "delete", {"tags": ["x"]}).endswith(
        "-X DELETE http://127.0.0.1:8000/class-sets/fruit"
    )
    assert "ADMIN_KEY" in example("/models/{name}/load", "post", {"tags": ["administration"]})


def test_long_json_is_broken_and_stays_the_same() -> None:
    value = {"data": [{"index": index, "label": "red apple", "score": 0.25} for index in range(3)], "object": "list"}
    text = readable(value)
    assert json.loads(text) == value and max(map(len, text.splitlines())) <= 80 and text.count("\n") == 7
