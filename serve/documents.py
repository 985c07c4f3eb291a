"""What the OpenAPI document says beyond the routes' own words: errors, keys, examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from serve.examples import ANSWERS, ERRORS
from serve.keys import OPEN
from serve.schemas import ErrorResponse

CLIENT_GONE = 499  # nginx's number; nobody is there to read it
STATUS_TEXTS: dict[int, str] = {
    400: "The body cannot be parsed, or did not arrive in time.",
    401: "The server has keys, and the request shows none that it knows.",
    403: "The request shows a key, and not an administrator's.",
    404: "No such model or class set, or nothing of that kind.",
    409: "The server's state does not allow it; the message says what to change first.",
    413: "Too many bytes, or an image of too many pixels.",
    415: "Bytes that match no allowed image format, or a body of another kind.",
    422: "The request breaks the schema, holds nothing, or an image that cannot be decoded.",
    429: "Too much is waiting; Retry-After says when to try again.",
    503: "Not ready, or about to stop.",
    504: "No answer in time.",
}
ADMIN_TAG = "administration"
SCHEME = "key"


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of an endpoint, for FastAPI."""
    return {status: {"model": ErrorResponse, "description": STATUS_TEXTS[status]} for status in statuses}


class Documented(FastAPI):
    """A FastAPI application whose document names the keys, and shows an example of every answer."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = completed(super().openapi())
        return self.openapi_schema


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """Add to an OpenAPI document what FastAPI cannot know."""
    scheme = {
        "type": "http",
        "scheme": "bearer",
        "description": "Needed where the server was given keys; administration always takes an administrator's.",
    }
    document["components"]["securitySchemes"] = {SCHEME: scheme}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            needed: dict[str, list[str]] = {SCHEME: []}
            if ADMIN_TAG in operation["tags"]:
                operation["security"] = [needed]
            elif path not in OPEN:
                operation["security"] = [{}, needed]
            for status, answer in operation["responses"].items():
                example = {"error": ERRORS[int(status)]} if int(status) in ERRORS else ANSWERS.get((method, path))
                for content in answer.get("content", {}).values() if example is not None else ():
                    content["examples"] = {"example": {"value": example}}  # a 304 has no content, a page no example
    return document
