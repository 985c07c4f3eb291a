"""Three ways to send images, one request: JSON, multipart (field ``files``, repeated), or one raw ``image/*`` body.

Every other field of the request is a JSON key, a form field or a query parameter (repeated for lists); a query
parameter gives way to the same field in the body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Message

from digpt.errors import near_misses
from serve.errors import BadBodyError, BodyTooLargeError, RequestError, SchemaError, UnsupportedContentTypeError
from serve.schemas import InferenceRequest
from serve.settings import MIB, Settings

R = TypeVar("R", bound=InferenceRequest)

FILES = "files"
FORMS = "send JSON, multipart/form-data with the field 'files', or one image as the whole body with its image/* type"
# How long, and how much of, a refused body is read and thrown away.
DISCARD_S = 10.0
DISCARD_BYTES = 256 * MIB


@dataclass(frozen=True)
class Inputs(Generic[R]):
    """A validated request; ``images`` are base64 strings or bytes, ``param`` what their errors call them."""

    request: R
    images: list[str | bytes] = field(default_factory=list)
    param: str = "images"


async def read_inputs(request: Request, schema: type[R], settings: Settings) -> Inputs[R]:
    """Read and validate a request in any of its three forms.

    Raises:
        RequestError: its subclass says how the body is wrong.
    """
    body = LimitedBody(request, settings.max_request_bytes)
    try:
        return await _read(Request(request.scope, body.receive), schema, settings)
    except Exception:
        await body.discard()
        raise


async def _read(request: Request, schema: type[R], settings: Settings) -> Inputs[R]:
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    query = _fields(schema, request.query_params.multi_items())
    if kind == "application/json" or kind.endswith("+json"):
        body = _parse_json(await request.body())
        return _inputs(_validate(schema, {**query, **body} if isinstance(body, dict) else body))
    if kind == "multipart/form-data":
        files, form = await _read_multipart(request, settings)
        return _inputs(_validate(schema, {**query, **_fields(schema, form)}), files, FILES)
    if kind.startswith("image/"):
        return _inputs(_validate(schema, query), [await request.body()], "body")
    raise UnsupportedContentTypeError(f"Content-Type {kind!r} is not understood: {FORMS}.")


class LimitedBody:
    """A request's ``receive`` that passes on at most ``max_bytes``."""

    def __init__(self, request: Request, max_bytes: int) -> None:
        self._receive = request.receive
        self._max_bytes = max_bytes
        self._declared = int(request.headers.get("content-length", "0"))
        self._asked_first = request.headers.get("expect", "").lower() == "100-continue"
        self._received = 0
        self._more = True

    async def receive(self) -> Message:
        """Pass on a piece of the body; BodyTooLargeError if the whole is, or says that it is, larger than allowed."""
        if self._declared <= self._max_bytes:
            message = await self._next()
            if self._received <= self._max_bytes:
                return message
        raise BodyTooLargeError(
            f"The request has more than the {self._max_bytes} bytes allowed here; send fewer at a time."
        )

    async def discard(self) -> None:
        """Throw the rest away, within limits: a client that is still sending could not read why it was refused.

        One that waits for permission to send (``Expect: 100-continue``) is not told to.
        """
        if self._asked_first and not self._received:
            return
        most = self._received + DISCARD_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                while self._more and self._received < most:
                    await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self._more = bool(message.get("more_body", False))
        return message


def check_limits(count: int, fields: Mapping[str, list[str] | None], settings: Settings) -> None:
    """Hold a request against the limits: ``count`` images and texts, and the lists of strings by field name.

    Raises:
        SchemaError: nothing to work on, too many items, or too long a string.
    """
    if count == 0:
        raise SchemaError("The request holds nothing to work on; give at least one image.", param="images")
    if count > settings.max_items:
        raise SchemaError(f"{count} items in one request, at most {settings.max_items} are allowed; send several.")
    for name, texts in fields.items():
        for index, text in enumerate(texts or []):
            if len(text) > settings.max_text_chars:
                raise SchemaError(
                    f"{name}[{index}] has {len(text)} characters, at most {settings.max_text_chars} are allowed.",
                    param=name,
                    index=index,
                )


def _inputs(request: R, files: list[bytes] | None = None, field_name: str = "images") -> Inputs[R]:
    return Inputs(request, [*(request.images or []), *(files or [])], "images" if request.images else field_name)


def _parse_json(body: bytes) -> Any:
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BadBodyError(f"The body is not JSON: {error}.") from None


async def _read_multipart(request: Request, settings: Settings) -> tuple[list[bytes], list[tuple[str, str]]]:
    """Return the uploaded files and the other fields; how many of either is checked once their number is known."""
    files: list[bytes] = []
    fields: list[tuple[str, str]] = []
    try:
        most = settings.max_items + settings.max_labels + settings.max_prompts
        async with request.form(max_files=most, max_fields=most, max_part_size=settings.max_request_bytes) as form:
            for name, value in form.multi_items():
                if isinstance(value, str):
                    fields.append((name, value))
                elif name == FILES:
                    files.append(await _content(value))
                else:
                    raise SchemaError(f"Form field {name!r} is a file; files go into the field {FILES!r}.", param=name)
    except FormParserError as error:
        raise BadBodyError(f"The multipart body cannot be read: {error}.") from None
    return files, fields


async def _content(upload: UploadFile) -> bytes:
    return await upload.read()


def _fields(schema: type[InferenceRequest], items: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Give form fields and query parameters the types of the schema; what has none is left for validation to refuse."""
    values: dict[str, list[str]] = {}
    for name, value in items:
        values.setdefault(name, []).append(value)
    typed: dict[str, Any] = {}
    for name, given in values.items():
        if name == FILES:
            raise SchemaError(f"Field {FILES!r} holds text, not an uploaded file.", param=FILES)
        known = schema.model_fields.get(name)
        if known is not None and _is_list(known.annotation):
            typed[name] = given
        elif len(given) > 1:
            raise SchemaError(f"Field {name!r} is given {len(given)} times.", param=name)
        else:
            typed[name] = _typed(known.annotation if known else str, given[0])
    return typed


def _is_list(annotation: Any) -> bool:
    return any(str(option).startswith("list[") for option in get_args(annotation))


def _typed(annotation: Any, value: str) -> Any:
    if annotation is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
    if annotation is int and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return value


def _validate(schema: type[R], value: Any) -> R:
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise _first_fault(schema, error) from None


def _first_fault(schema: type[InferenceRequest], error: ValidationError) -> RequestError:
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    loc = fault["loc"]
    if not loc:
        return SchemaError("The body must be a JSON object.")
    name = str(loc[0])
    if fault["type"] == "extra_forbidden":
        known = [*schema.model_fields, FILES]
        return SchemaError(f"There is no field {name!r} here.{near_misses(name, known)}", param=name)
    index = next((part for part in loc if isinstance(part, int)), None)
    where = name if index is None else f"{name}[{index}]"
    return SchemaError(f"{where}: {fault['msg']}.", param=name, index=index)
