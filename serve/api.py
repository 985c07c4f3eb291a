"""``create_app(engines, settings)``: the FastAPI application, a pure function of its arguments.

>>> app = create_app({"emoji-tiny": Engine.load("bundled")}, Settings())
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Mount

from digpt.engine import Engine
from digpt.errors import DigptError
from serve.classset_routes import class_set_router
from serve.docs import docs_page
from serve.documents import Documented
from serve.errors import FRAMEWORK_CODES, ItemError, Problem, problem, response
from serve.keys import Keys
from serve.observe import ID_HEADER, Observer, metrics_router, observation
from serve.openai import openai_router
from serve.registry import Loader, Registry, admin_router
from serve.routes import health_router, inference_router, models_router
from serve.security import DEMO_PATH, PAGE_HEADERS, protect
from serve.service import Service
from serve.settings import Settings

if TYPE_CHECKING:
    from serve.tracing import Tracing

log = logging.getLogger("serve")

VERSION = "1"  # of the API
DESCRIPTION = "Embeddings and classes of images. Every answer names the fingerprint of the weights that gave it."


def create_app(
    engines: Mapping[str, Engine],
    settings: Settings | None = None,
    *,
    keys: Keys | None = None,
    available: Mapping[str, Loader] | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Serve ``engines`` by name; the first is the default. The application closes all it is given when it stops.

    Args:
        keys: who may ask; by default everybody, and nobody may load models.
        available: what loads the models that may be loaded and unloaded while the server runs, by name.
        tracing: where the spans of requests go.
    """
    settings = settings or Settings()
    service = Service(engines, settings)
    registry = Registry(service, available or {})

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await registry.stop()
        await service.stop()
        await service.fetcher.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    app = Documented(
        title="digpt", description=DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None, version=VERSION
    )
    app.state.service = service
    for router in (
        inference_router(service),
        openai_router(service),
        class_set_router(service),
        admin_router(registry),
        models_router(service),
        health_router(service),
        metrics_router(service.metrics),
    ):
        app.include_router(router)
    _add_pages(app)
    _add_error_handlers(app)
    protect(app, keys or Keys(), settings)
    app.add_middleware(Observer, metrics=service.metrics, tracing=tracing)  # last: what it wraps, it sees
    return app


def _add_pages(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi(), str(request.base_url)), headers=PAGE_HEADERS)

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        return Response(status_code=204)  # browsers ask for it unasked

    @app.get("/manifest.json", include_in_schema=False)
    async def manifest() -> dict[str, str]:
        return {"name": app.title, "start_url": "/", "display": "browser"}  # the demo's page asks for it here

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        has_demo = any(isinstance(route, Mount) and route.path == DEMO_PATH for route in app.routes)
        return RedirectResponse(DEMO_PATH if has_demo else "/docs")


def _add_error_handlers(app: FastAPI) -> None:
    """Every error leaves in one schema; ``serve.errors`` decides which."""

    @app.exception_handler(DigptError)
    async def expected(request: Request, error: DigptError) -> JSONResponse:
        found = problem(error)
        if found.status == 500:
            log.error("%s %s: %s", request.method, request.url.path, error)
            observation().exception = error.cause if isinstance(error, ItemError) else error
        return _response(found)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        fault = error.errors()[0]
        return _response(Problem(422, f"{fault['loc'][-1]}: {fault['msg']}.", "invalid_request", str(fault["loc"][-1])))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"There is no {request.url.path} here; /docs lists what there is."
        elif error.status_code == 405:
            message = f"{request.url.path} does not take {request.method}."
        code = FRAMEWORK_CODES.get(error.status_code, "http_error")
        return _response(Problem(error.status_code, message, code), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        # starlette raises it again for the server's log, and the server then closes the connection: say so
        return _response(problem(error), {"Connection": "close", ID_HEADER: observation().request_id})


def _response(found: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    observation().error = found.code
    return response(found, headers)
