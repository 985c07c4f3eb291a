"""What stands around the whole application: keys, origins, and headers that make browsers careful."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.keys import KeyGuard, Keys
from serve.settings import Settings

DEMO_PATH = "/demo"
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
# Of the page at /docs, which has a style and nothing else.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
MAX_AGE_S = 600


class CarefulHeaders:
    """Adds ``HEADERS`` to every answer that does not have them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, sending if scope["type"] == "http" else send)


def protect(app: FastAPI, keys: Keys, settings: Settings) -> None:
    """Put the guards around ``app``; what is added last is asked first."""
    open_paths = (DEMO_PATH, *(["/metrics"] if settings.open_metrics else []))  # a demo that is mounted was asked for
    app.add_middleware(KeyGuard, keys=keys, open_paths=open_paths)
    if settings.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origin,
            allow_methods=METHODS,
            allow_headers=["Authorization", "Content-Type", "If-None-Match"],
            expose_headers=["ETag", "Retry-After"],
            max_age=MAX_AGE_S,
        )
    app.add_middleware(CarefulHeaders)
