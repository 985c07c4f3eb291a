"""Three ways to send images, one request: JSON, multipart (field ``files``, repeated), or one raw ``image/*`` body.

Every other field of the request is a JSON key, a form field or a query parameter (repeated for lists); a query
parameter gives way to the same field in the body.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from digpt.errors import near_misses
from serve.body import Budget, LimitedBody
from serve.errors import BadBodyError, RequestError, SchemaError, UnsupportedContentTypeError
from serve.images import Image
from serve.limits import check_counts
from serve.schemas import InferenceRequest
from serve.settings import Settings

R = TypeVar("R", bound=InferenceRequest)
M = TypeVar("M", bound=BaseModel)

FILES = "files"
FORMS = "send JSON, multipart/form-data with the field 'files', or one image as the whole body with its image/* type"
INLINE_BYTES = 1 << 18  # a JSON body of more is parsed off the event loop; a hop to a thread costs 0.1 ms
MAX_COMMAS = 200_000  # in a JSON body: parsing holds Python's lock, and 32 million numbers hold it for ten seconds
COUNTED_BYTES = 1 << 20  # at a time
SHOWN = 80  # characters of a name that a message repeats


@dataclass(frozen=True)
class Inputs(Generic[R]):
    """A validated request; ``images`` are as ``serve.images`` takes them, ``param`` what their errors call them."""

    request: R
    deadline: float
    """Of ``time.monotonic``: all that is done for the request must have ended by then."""
    images: list[Image] = field(default_factory=list)
    param: str = "images"
    count: int = 0
    """How many images there were, also after ``drop``."""
    release: Callable[[], None] = lambda: None

    def drop(self) -> None:
        """Forget the encoded images."""
        self.images.clear()
        self.release()


async def read_inputs(request: Request, schema: type[R], settings: Settings, budget: Budget) -> Inputs[R]:
    """Read and validate a request in any of its three forms; what it holds of ``budget`` is the caller's to ``drop``.

    Raises:
        RequestError: its subclass says how the body is wrong.
        ClientDisconnect: nobody is there any more.
    """
    async with _receiving(request, settings, budget) as body:
        found, files, param = await _read(Request(request.scope, body.receive), schema, settings)
    images: list[Image] = [*(found.images or []), *files]
    found.images = None
    return Inputs(found, body.arrived + settings.deadline_s, images, param, len(images), body.release)


@asynccontextmanager
async def read_json(
    request: Request, schema: type[M], settings: Settings, budget: Budget
) -> AsyncIterator[tuple[M, float]]:
    """Read and validate a request that has only one form, JSON, and yield its deadline as well.

    It counts in ``budget`` until the block ends.

    Raises:
        RequestError: its subclass says how the body is wrong.
        ClientDisconnect: nobody is there any more.
    """
    async with _receiving(request, settings, budget) as body:
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise UnsupportedContentTypeError(f"Content-Type {kind[:SHOWN]!r} is not understood: send JSON.")
        parse = partial(_from_json, schema, {}, await Request(request.scope, body.receive).body(), settings)
        found = await asyncio.to_thread(parse)
    try:
        yield found, body.arrived + settings.deadline_s
    finally:
        body.release()


@asynccontextmanager
async def _receiving(request: Request, settings: Settings, budget: Budget) -> AsyncIterator[LimitedBody]:
    """A body that is released, and what is left of it thrown away, if reading it fails."""
    body = LimitedBody(request, settings, budget)
    try:
        yield body
    except BaseException as error:
        body.release()
        if isinstance(error, Exception):
            await body.discard()
        if isinstance(error, RequestError):
            error.close = not body.complete
        raise


async def _read(request: Request, schema: type[R], settings: Settings) -> tuple[R, list[bytes], str]:
    """Return the request, the images that are not in it, and what errors of images are to call them."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    query = _fields(schema, request.query_params.multi_items())
    if kind == "application/json" or kind.endswith("+json"):
        body = await request.body()
        parse = partial(_from_json, schema, query, body, settings)
        return (await asyncio.to_thread(parse) if len(body) > INLINE_BYTES else parse()), [], "images"
    if kind == "multipart/form-data":
        files, form = await _read_multipart(request, settings)
        found = _validate(schema, {**query, **_fields(schema, form)}, len(files), settings)
        return found, files, "images" if found.images else FILES
    if kind.startswith("image/"):
        found = _validate(schema, query, 1, settings)
        return found, [await request.body()], "images" if found.images else "body"
    raise UnsupportedContentTypeError(f"Content-Type {kind[:SHOWN]!r} is not understood: {FORMS}.")


def _from_json(schema: type[M], query: dict[str, Any], body: bytes, settings: Settings) -> M:
    value = _parse_json(body)
    return _validate(schema, {**query, **value} if isinstance(value, dict) else value, 0, settings)


def _parse_json(body: bytes) -> Any:
    commas = 0
    for start in range(0, len(body), COUNTED_BYTES):
        commas += body.count(b",", start, start + COUNTED_BYTES)
        if commas > MAX_COMMAS:
            raise SchemaError(f"The body holds more than {MAX_COMMAS} commas; send fewer items at a time.")
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
            _check_unicode(form)
            for name, value in form.multi_items():
                if isinstance(value, str):
                    fields.append((name, value))
                elif name == FILES:
                    files.append(await _content(value))
                else:
                    name = name[:SHOWN]
                    raise SchemaError(f"Form field {name!r} is a file; files go into the field {FILES!r}.", param=name)
    except FormParserError as error:
        raise BadBodyError(f"The multipart body cannot be read: {error}.") from None
    except HTTPException as error:  # how starlette says the same
        raise BadBodyError(f"The multipart body cannot be read: {str(error.detail).rstrip('.')}.") from None
    except UnicodeError:  # a charset that Python knows and cannot decode with
        raise BadBodyError("The multipart body cannot be read in the charset that it names; use UTF-8.") from None
    return files, fields


def _check_unicode(form: FormData) -> None:
    """Raise UnicodeError for half a surrogate pair, which UTF-7 can spell: no answer could repeat it."""
    for name, value in form.multi_items():
        name.encode()
        if isinstance(value, str):
            value.encode()


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
            name = name[:SHOWN]
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


def _validate(schema: type[M], value: Any, files: int, settings: Settings) -> M:
    """Validate a parsed body that ``files`` images came with; what is cheap to see is looked at first."""
    if isinstance(value, dict):
        unknown = next((name for name in value if name not in schema.model_fields), None)
        if unknown is not None:
            name = unknown[:SHOWN]
            known = [*schema.model_fields, *([FILES] if issubclass(schema, InferenceRequest) else [])]
            raise SchemaError(f"There is no field {name!r} here.{near_misses(name, known)}", param=name)
        check_counts(value, files, settings)
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise _first_fault(error) from None


def _first_fault(error: ValidationError) -> RequestError:
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    loc = fault["loc"]
    if not loc:
        return SchemaError("The body must be a JSON object.")
    name = str(loc[0])
    index = next((part for part in loc if isinstance(part, int)), None)
    where = name if index is None else f"{name}[{index}]"
    return SchemaError(f"{where}: {fault['msg']}.", param=name, index=index)
