"""What every request leaves behind: an id in its answer, a log line, counts, and a span where these are collected.

A pure ASGI middleware: it sees every answer's first and last byte, streams included, and costs microseconds
(``python -m benchmarks.observe``).
"""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.documents import errors
from serve.logs import FIELDS, choose_id, request_id
from serve.metrics import Metrics

if TYPE_CHECKING:
    from serve.tracing import Tracing

log = logging.getLogger("serve.requests")

ID_HEADER = "X-Request-ID"
OTHER = "other"
CODES = {401: "invalid_api_key", 499: "client_gone"}  # of answers that are made around the application


@dataclass(slots=True)
class Observation:
    """What is known about the request being answered; whoever learns more writes it here."""

    request_id: str = ""
    began: float = field(default_factory=time.perf_counter)
    began_ns: int = field(default_factory=time.time_ns)
    endpoint: str = OTHER
    status: int = 0
    model: str = ""
    images: int = 0
    texts: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    error: str = ""
    """Code of the error that the request is answered with."""
    exception: BaseException | None = None
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of decode, queue and inference: when it began (``time.perf_counter``) and the seconds it took."""

    def about(self, model: str, *, images: int, texts: int) -> None:
        """Say which model is asked about how many items."""
        self.model, self.images, self.texts = model, images, texts

    def staged(self, began: float, **seconds: float) -> None:
        """Say how long the stages took that followed each other from ``began`` on."""
        for name, duration in seconds.items():
            self.stages[name] = (began, duration)
            began += duration


_current: ContextVar[Observation | None] = ContextVar("observation", default=None)


def observation() -> Observation:
    """The one of the request being answered; outside of any, one that nobody reads."""
    return _current.get() or Observation()


class Observer:
    """The middleware; add it last, so that it is outermost."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self.app, self.metrics, self.tracing = app, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        seen = Observation(choose_id(given))
        request_id.set(seen.request_id)
        _current.set(seen)
        header = (ID_HEADER.lower().encode(), seen.request_id.encode())

        async def counted_receive() -> Message:
            message = await receive()
            seen.bytes_in += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), header]}
            else:
                seen.bytes_out += len(message.get("body", b""))
            await send(message)

        span = None if self.tracing is None else self.tracing.begin(scope, seen)
        self.metrics.request_started()
        try:
            await self.app(scope, counted_receive, counted_send)
        except BaseException as error:
            seen.exception, seen.error = error, seen.error or "internal_error"
            raise
        finally:
            seen.endpoint = endpoint_of(scope)
            seen.status = seen.status or 500  # what the server answers in the place of an application that raised
            seen.error = seen.error or CODES.get(seen.status, f"http_{seen.status}" if seen.status >= 400 else "")
            seconds = time.perf_counter() - seen.began
            self.metrics.request_finished(seen.endpoint, seen.status, seen.model, seconds, seen.error)
            trace_id = None if self.tracing is None or span is None else self.tracing.finish(span, scope, seen)
            if log.isEnabledFor(logging.INFO):
                log.info("request", extra={FIELDS: line(scope, seen, seconds, trace_id)})


def endpoint_of(scope: Scope) -> str:
    """The route that answered (``/models/{name}``), its mount, or "other": never what a client made up."""
    if "app_root_path" in scope:  # starlette's note of a mount
        return "/" + str(scope["root_path"]).removeprefix(scope["app_root_path"]).strip("/").partition("/")[0]
    return str(getattr(scope.get("route"), "path", OTHER))


def line(scope: Scope, seen: Observation, seconds: float, trace_id: str | None) -> dict[str, Any]:
    """What the log says about a request: no query string, no header, nothing of either body."""
    fields: dict[str, Any] = {
        "method": scope["method"],
        "path": scope["path"][:256],
        "status": seen.status,
        "duration_ms": round(1000 * seconds, 3),
        "bytes_in": seen.bytes_in,
        "bytes_out": seen.bytes_out,
        "client": scope["client"][0] if scope.get("client") else "",
    }
    if seen.model:
        fields |= {"model": seen.model, "images": seen.images, "texts": seen.texts}
    if seen.stages:
        fields["timings_ms"] = {name: round(1000 * taken, 3) for name, (_, taken) in seen.stages.items()}
    if seen.error:
        fields["error"] = seen.error
    if trace_id:
        fields["trace_id"] = trace_id
    return fields


TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus's text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


def metrics_router(metrics: Metrics) -> APIRouter:
    """``GET /metrics``."""
    router = APIRouter(tags=["status"])

    @router.get(
        "/metrics",
        summary="Counts and times for Prometheus",
        response_class=Response,
        responses={**TEXT, **errors(401)},
    )
    def exposition(request: Request) -> Response:
        content, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    return router
