"""The one place where an exception becomes a status and the error schema (OpenAI's, with an index).

{"error": {"message": ..., "type": ..., "param": ..., "code": ..., "index": ...}}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import JSONResponse

from digpt.errors import (
    CapabilityError,
    DigptError,
    ImageTooLargeError,
    InputError,
    UnreadableImageError,
    UnsupportedFormatError,
)


class RequestError(InputError):
    """A request that cannot be answered.

    Args:
        message: a sentence for the client.
        param: the field at fault.
        index: its position in that list; for an item of an answer, its index in ``data``.
        retry_after: seconds after which trying again makes sense.
    """

    def __init__(
        self, message: str, *, param: str | None = None, index: int | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.index = index
        self.retry_after = retry_after
        self.close = False  # whether the rest of the body is not waited for, so that the connection must end


class BadBodyError(RequestError):
    """A body that cannot be parsed."""


class BodyTimeoutError(BadBodyError):
    """A body that does not arrive."""


class UnsupportedContentTypeError(RequestError):
    """A body that is neither JSON, nor multipart, nor one image."""


class BodyTooLargeError(RequestError):
    """More bytes than a request may have."""


class SchemaError(RequestError):
    """A body that was parsed but does not say what it must."""


class UnknownModelError(RequestError):
    """A model that is not served here."""


class UnknownClassSetError(RequestError):
    """A class set that is not stored here."""


class UnauthorizedError(RequestError):
    """No key, or one that is not known."""


class ForbiddenError(RequestError):
    """A key that is known, for something that takes another one."""


class ConflictError(RequestError):
    """Something that the server's state does not allow; the sentence says what to change first."""


class NoPassportError(RequestError):
    """A model that came without a passport."""


class QueueFullError(RequestError):
    """More work waiting than the queue may hold, or more bytes than the server."""


class NotReadyError(RequestError):
    """A model that has not proved yet that it answers as it should, or has ceased to answer."""


class DrainingError(NotReadyError):
    """A server that is about to stop; the connection ends with the answer."""

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.close = True


class DeadlineError(RequestError):
    """No answer in time."""


class ItemError(RequestError):
    """The error of the first item, when no item of a request can be answered."""

    def __init__(self, cause: Exception, *, param: str, index: int) -> None:
        super().__init__(str(cause), param=param, index=index)
        self.cause = cause


class InferenceError(DigptError):
    """The model answered something that cannot be an embedding."""


# The most specific class of an exception's MRO decides.
STATUSES: dict[type[BaseException], tuple[int, str]] = {
    BadBodyError: (400, "unparsable_body"),
    BodyTimeoutError: (400, "body_timeout"),
    UnauthorizedError: (401, "invalid_api_key"),
    ForbiddenError: (403, "admin_key_required"),
    UnknownModelError: (404, "model_not_found"),
    UnknownClassSetError: (404, "class_set_not_found"),
    ConflictError: (409, "conflict"),
    NoPassportError: (404, "passport_not_found"),
    BodyTooLargeError: (413, "request_too_large"),
    ImageTooLargeError: (413, "image_too_large"),
    UnsupportedContentTypeError: (415, "unsupported_content_type"),
    UnsupportedFormatError: (415, "unsupported_image_format"),
    SchemaError: (422, "invalid_request"),
    UnreadableImageError: (422, "unreadable_image"),
    CapabilityError: (422, "not_supported_by_model"),
    InputError: (422, "invalid_input"),
    QueueFullError: (429, "queue_full"),
    NotReadyError: (503, "not_ready"),
    DrainingError: (503, "draining"),
    DeadlineError: (504, "deadline_exceeded"),
    Exception: (500, "internal_error"),
}
# What the framework answers by itself: unknown path, wrong method, multipart that starlette cannot read.
FRAMEWORK_CODES = {400: "unparsable_body", 404: "not_found", 405: "method_not_allowed"}
INTERNAL_MESSAGE = "The server failed on this request; its log has the details."


@dataclass(frozen=True)
class Problem:
    """An error as a client sees it."""

    status: int
    message: str
    code: str
    param: str | None = None
    index: int | None = None
    retry_after: int | None = None
    close: bool = False

    def body(self) -> dict[str, object]:
        """What stands under ``error``."""
        kind = "rate_limit_error" if self.status == 429 else "server_error" if self.status >= 500 else None
        return {
            "message": self.message,
            "type": kind or "invalid_request_error",
            "param": self.param,
            "code": self.code,
            "index": self.index,
        }

    def headers(self) -> dict[str, str]:
        retry = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        key = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return {**retry, **key, **({"Connection": "close"} if self.close else {})}


def problem(error: BaseException, *, param: str | None = None, index: int | None = None) -> Problem:
    """Map an exception; ``param`` and ``index`` are used where it does not know its own.

    The message of an exception that no client caused stays in the server's log.
    """
    if isinstance(error, ItemError):
        return problem(error.cause, param=error.param, index=error.index)
    status, code = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    message = str(error) if status < 500 or isinstance(error, RequestError) else INTERNAL_MESSAGE
    if isinstance(error, RequestError):
        return Problem(
            status,
            message,
            code,
            error.param if error.param is not None else param,
            error.index if error.index is not None else index,
            error.retry_after,
            error.close,
        )
    return Problem(status, message, code, param, index)


def response(found: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer that says so."""
    return JSONResponse({"error": found.body()}, found.status, {**(headers or {}), **found.headers()})
