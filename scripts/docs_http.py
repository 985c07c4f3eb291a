"""The reference of the HTTP API as Markdown, from the OpenAPI document of the server's own application."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve import create_app
from serve.docs import EXAMPLES
from serve.documents import ADMIN_TAG, STATUS_TEXTS
from serve.examples import ERRORS

ADDRESS = "http://127.0.0.1:8000/"
NAMES = {"/models": "emoji-tiny", "/v1/models": "emoji-tiny", "/class-sets": "fruit"}  # what examples ask for
LIMITS = {
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "more than {}",
    "pattern": "matching `{}`",
}
Json = dict[str, Any]


def http_reference() -> str:
    """The reference of the API that ``python -m serve`` has now."""
    return reference(create_app({"fake": Engine(FakeRuntime())}).openapi())


def reference(document: Json) -> str:
    """An OpenAPI document as Markdown: operations by tag, errors, and the shapes of answers."""
    by_tag: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            by_tag.setdefault(operation["tags"][0], []).append(_operation(path, method, operation))
    parts = [text for tag, found in by_tag.items() for text in (f"## {tag[0].upper()}{tag[1:]}", *found)]
    return "\n\n".join([*parts, _errors(), *_shapes(document["components"]["schemas"])])


def _operation(path: str, method: str, operation: Json) -> str:
    summary = operation["summary"]
    parts = [f"### {method.upper()} {path}", f"{summary}{'' if summary.endswith('?') else '.'} {_key(operation)}"]
    bodies = operation.get("requestBody", {}).get("content", {})
    fields = bodies.get("application/json", {}).get("schema")
    if fields:
        parts += ["**Body**", _kinds(bodies), _table(_fields(fields), "field", "type", "meaning")]
    parts += _parameters(operation.get("parameters", []), set(fields["properties"]) if fields else set())
    parts += ["**Example**", f"```sh\n{example(path, method, operation)}\n```"]
    good = {status: answer for status, answer in operation["responses"].items() if int(status) < 400}
    parts += [
        "**Answers**",
        _table((_answer(status, answer) for status, answer in good.items()), "status", "meaning", "shape"),
    ]
    parts += [text for answer in good.values() for text in _shown(answer)]
    if errors := [f"[{status}](#errors)" for status in operation["responses"] if status not in good]:
        parts.append(f"Errors: {', '.join(errors)}.")
    return "\n\n".join(parts)


def example(path: str, method: str, operation: Json) -> str:
    """A request of this kind for a shell."""
    if "requestBody" in operation and path in EXAMPLES:
        return EXAMPLES[path].format(base=ADDRESS)
    admin = ADMIN_TAG in operation["tags"]
    name = "photos" if admin else NAMES.get(path.partition("/{")[0], "")
    asked = "" if method == "get" else f" -X {method.upper()}"
    key = ' -H "Authorization: Bearer $ADMIN_KEY"' if admin else ""
    return f"curl -s{asked} {ADDRESS}{path[1:].replace('{name}', name)}{key}"


def _key(operation: Json) -> str:
    accepted = operation.get("security", [{}])
    if {} not in accepted:
        return "Takes an administrator's key."
    return "Takes a key where the server has keys." if len(accepted) > 1 else "Never takes a key."


def _kinds(bodies: Json) -> str:
    """The ways to send the fields."""
    ways = ["`application/json`"]
    if form := bodies.get("multipart/form-data", {}).get("schema"):
        own = set(form["properties"]) - set(bodies["application/json"]["schema"]["properties"])
        ways.append(f"`multipart/form-data` (the same fields, images as {_listed(sorted(own))})")
    if "image/*" in bodies:
        ways.append("`image/*` (the bytes of one image)")
    return f"{'; or '.join(ways)}."


def _fields(schema: Json) -> Iterator[list[str]]:
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        given = " (required)" if name in required and "default" not in field else ""
        yield [f"`{name}`", _type(field), _prose(field.get("description", "")) + given]


def _parameters(parameters: list[Json], fields: set[str]) -> list[str]:
    """A table; of those that only repeat the body's fields, a sentence."""
    repeated = [parameter["name"] for parameter in parameters if parameter["name"] in fields]
    parts = []
    if rows := [_parameter(parameter) for parameter in parameters if parameter["name"] not in fields]:
        parts += ["**Parameters**", _table(rows, "name", "in", "type", "meaning")]
    if repeated:
        parts.append(f"Query parameters of the same names, for raw image bodies: {_listed(repeated)}.")
    return parts


def _parameter(parameter: Json) -> list[str]:
    given = " (required)" if parameter["required"] else ""
    meaning = _prose(parameter.get("description", parameter["schema"].get("description", "")))
    return [f"`{parameter['name']}`", parameter["in"], _type(parameter["schema"]), meaning + given]


def _answer(status: str, answer: Json) -> list[str]:
    shape = answer.get("content", {}).get("application/json", {}).get("schema", {})
    return [status, _prose(answer["description"]), _type(shape) if "$ref" in shape else ""]


def _shown(answer: Json) -> Iterator[str]:
    for kind, content in answer.get("content", {}).items():
        for found in content.get("examples", {}).values():
            value = found["value"]
            language = "json" if kind == "application/json" else "text"
            yield f"```{language}\n{value.strip() if isinstance(value, str) else readable(value)}\n```"


def _errors() -> str:
    """One table for all operations: a status means the same everywhere."""
    rows = (
        [str(status), _prose(STATUS_TEXTS[status]), f"`{error['code']}`", _prose(error["message"])]
        for status, error in ERRORS.items()
    )
    text = "Every error is an [ErrorResponse](#errorresponse), whatever its status; `code` is what programs go by."
    shown = f"```json\n{readable({'error': ERRORS[422]})}\n```"
    return "\n\n".join(["## Errors", text, _table(rows, "status", "when", "a code", "and its message"), shown])


def _shapes(schemas: Json) -> Iterator[str]:
    yield "## Shapes"
    for name, schema in schemas.items():
        yield f"### {name}\n\n{_prose(schema.get('description', ''))}"
        yield _table(([*row[:2], row[2].removesuffix(" (required)")] for row in _fields(schema)), "field", "type", "")


def _type(schema: Json) -> str:
    """A type in a few words, such as ``list of string, at most 3 items`` or ``integer, 5 unless given``."""
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    words = [" or ".join(dict.fromkeys(map(_type_name, options)))]
    words += [said.format(option[key]) for option in options for key, said in LIMITS.items() if key in option]
    if schema.get("default") is not None and "const" not in schema:
        words.append(f"`{json.dumps(schema['default'])}` unless given")
    if len(options) < len(schema.get("anyOf", [schema])):
        words.append("or null")
    return ", ".join(words)


def _type_name(option: Json) -> str:
    if "$ref" in option:
        name = option["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "const" in option:
        return f"`{json.dumps(option['const'])}`"
    if "enum" in option:
        return " or ".join(f"`{json.dumps(value)}`" for value in option["enum"])
    if option.get("type") == "array":
        return f"list of {_type_name(option.get('items', {}))}"
    return str(option.get("type", "anything"))


def readable(value: Any, indent: str = "") -> str:
    """JSON whose innermost parts stay on one line where they fit."""
    flat = json.dumps(value)
    if len(flat) + len(indent) <= 78 or not isinstance(value, (dict, list)) or not value:
        return flat
    deeper = f"{indent}  "
    if isinstance(value, list):
        inner = [f"{deeper}{readable(item, deeper)}" for item in value]
        return "[\n" + ",\n".join(inner) + f"\n{indent}]"
    inner = [f"{deeper}{json.dumps(key)}: {readable(item, deeper)}" for key, item in value.items()]
    return "{\n" + ",\n".join(inner) + f"\n{indent}}}"


def _table(rows: Iterable[list[str]], *head: str) -> str:
    """Rows under ``head``, without a last column that is empty."""
    rows = list(rows)
    if not any(row[-1] for row in rows):
        rows, head = [row[:-1] for row in rows], head[:-1]
    cells = [[*head], ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells)


def _prose(text: str) -> str:
    """A description in one line, with single backticks and without anything that Markdown or HTML might read."""
    return re.sub(r"`+([^`]+)`+", r"`\1`", " ".join(text.split())).replace("<", "&lt;")


def _listed(names: list[str]) -> str:
    *most, last = (f"`{name}`" for name in names)
    return f"{', '.join(most)} and {last}" if most else last
