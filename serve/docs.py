"""The page at /docs: the OpenAPI document for reading, with examples to paste into a shell.

Swagger's page loads its script from another host; this one works on a machine without a network.
"""

from __future__ import annotations

import json
import re
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid var(--line); padding: 1rem 0; }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; border-radius: .4rem; font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); }
.method { font-weight: 700; background: var(--soft); border-radius: .3rem; padding: .1rem .4rem; font-size: .85rem; }
h2 { font-size: 1.1rem; } h3 { font-size: .95rem; margin-bottom: .3rem; }
"""

EXAMPLES = {
    "/embed": """# one image as the whole body
curl -s {base}embed -H 'Content-Type: image/png' --data-binary @image.png

# images and texts as JSON; base64 is a quarter of the size
curl -s {base}embed -H 'Content-Type: application/json' \\
  -d '{{"images": ["'$(base64 -w0 image.png)'"], "texts": ["red apple"], "encoding_format": "base64"}}'""",
    "/classify": """# files and labels
curl -s {base}classify -F files=@image.png -F labels='red apple' -F labels='dog face' -F top_k=2

# one image as the whole body, options in the query
curl -s '{base}classify?labels=red+apple&labels=dog+face' -H 'Content-Type: image/png' --data-binary @image.png""",
    "/v1/embeddings": """curl -s {base}v1/embeddings -H 'Content-Type: application/json' \\
  -d '{{"model": "emoji-tiny", "input": "red apple"}}'""",
    "/class-sets/{name}": """curl -s -X PUT {base}class-sets/fruit -H 'Content-Type: application/json' \\
  -d '{{"labels": ["red apple", "green apple"]}}'
curl -s {base}classify -F files=@image.png -F class_set=fruit""",
    "/models": "curl -s {base}models",
    "/metrics": "curl -s {base}metrics",
    "/health/ready": "curl -s {base}health/ready",
}


def docs_page(document: dict[str, Any], base: str) -> str:
    """Render an OpenAPI document as one self-contained HTML page; ``base`` is the server's address, with a slash."""
    info = document["info"]
    sections = [
        _operation(path, method, operation, base)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<link rel='icon' href='data:,'><title>{escape(info['title'])}: API</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])}</h1><p>{escape(info.get('description', ''))}</p>"
        "<p>The same as a machine reads it: <a href='openapi.json'>openapi.json</a>.</p>"
        f"{''.join(sections)}{_shapes(document)}</body></html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any], base: str) -> str:
    summary = operation.get("summary", "")
    parts = [
        f"<section><h2><span class='method'>{escape(method.upper())}</span> <code>{escape(path)}</code></h2>",
        f"<p>{escape(summary)}{'' if summary.endswith('?') else '.'}</p>",
    ]
    body = operation.get("requestBody", {}).get("content", {})
    if "application/json" in body:
        kinds = ", ".join(f"<code>{escape(kind)}</code>" for kind in body)
        parts.append(f"<h3>Request</h3><p>{kinds}</p>{_fields(body['application/json']['schema'])}")
    if path in EXAMPLES:
        parts.append(f"<h3>Example</h3><pre>{escape(EXAMPLES[path].format(base=base))}</pre>")
    rows = "".join(
        f"<tr><td>{escape(status)}</td><td>{escape(answer.get('description', ''))} {_link(answer)}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    return "".join(parts) + f"<h3>Answers</h3><table>{rows}</table></section>"


def _shapes(document: dict[str, Any]) -> str:
    """What the answers look like, one table for each named schema."""
    sections = [
        f"<h3 id='{escape(name)}'>{escape(name)}</h3><p>{_prose(schema.get('description', ''))}</p>{_fields(schema)}"
        for name, schema in document["components"]["schemas"].items()
    ]
    return f"<section><h2>Shapes</h2>{''.join(sections)}</section>"


def _link(answer: dict[str, Any]) -> str:
    schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
    if "$ref" not in schema:
        return ""
    name = escape(_type_name(schema))
    return f"<a href='#{name}'>{name}</a>"


def _fields(schema: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(field))}</td>"
        f"<td>{_prose(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    return f"<table>{rows}</table>"


def _prose(text: str) -> str:
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escape(text))


def _type(field: dict[str, Any]) -> str:
    """A field's type in a few words, such as ``string[]`` or ``integer = 5``."""
    options = field.get("anyOf", [field])
    names = [_type_name(option) for option in options if option.get("type") != "null"]
    default = field.get("default")
    return " or ".join(names) + (f" = {json.dumps(default)}" if default is not None else "")


def _type_name(option: dict[str, Any]) -> str:
    if "$ref" in option:
        return str(option["$ref"]).rsplit("/", 1)[-1]
    if "enum" in option:
        return " | ".join(json.dumps(value) for value in option["enum"])
    if option.get("type") == "array":
        return f"{_type_name(option.get('items', {}))}[]"
    return str(option.get("const", option.get("type", "any")))
