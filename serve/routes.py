"""The endpoints, and what the OpenAPI document says about them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from digpt.passport import read_passport
from digpt.report import policy
from serve import answers
from serve.errors import NoPassportError, NotReadyError
from serve.inputs import FILES, Inputs, read_inputs
from serve.schemas import (
    ClassifyRequest,
    ClassifyResponse,
    EmbedRequest,
    EmbedResponse,
    ErrorResponse,
    Health,
    InferenceRequest,
    Limits,
    ModelCard,
    ModelList,
)
from serve.service import ServedModel, Service
from serve.settings import Settings

R = TypeVar("R", bound=InferenceRequest)

CLIENT_GONE = 499  # nginx's number; nobody is there to read it
# A passport is a file that came with a model: whatever it holds, it runs no script but a report's own, in an origin of
# its own, reaches nothing, and is shown in no other site's frame.
PASSPORT_HEADERS = {
    "Content-Security-Policy": f"{policy()}; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; "
    "sandbox allow-scripts",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
STATUS_TEXTS: dict[int | str, str] = {
    400: "The body cannot be parsed, or did not arrive in time.",
    404: "No such model, or nothing of that kind.",
    413: "Too many bytes, or an image of too many pixels.",
    415: "Bytes that match no allowed image format, or a body of another kind.",
    422: "The request breaks the schema, holds nothing, or an image that cannot be decoded.",
    429: "Too much is waiting; Retry-After says when to try again.",
    503: "Not ready, or about to stop.",
    504: "No answer in time.",
}


def inference_router(service: Service) -> APIRouter:
    """``POST /embed`` and ``POST /classify``."""
    router = APIRouter(tags=["inference"])

    @router.post("/embed", summary="Embed images and texts", **_described(EmbedRequest, EmbedResponse))
    async def embed(request: Request) -> Response:
        return await _answer(service, request, EmbedRequest, answers.embed)

    @router.post("/classify", summary="Classify images", **_described(ClassifyRequest, ClassifyResponse))
    async def classify(request: Request) -> Response:
        return await _answer(service, request, ClassifyRequest, answers.classify)

    return router


def status_router(service: Service) -> APIRouter:
    """Models and health."""
    router = APIRouter(tags=["status"])
    unknown: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse, "description": STATUS_TEXTS[status]} for status in (404, 422)
    }
    not_ready: dict[int | str, dict[str, Any]] = {503: {"model": ErrorResponse, "description": STATUS_TEXTS[503]}}

    @router.get("/models", summary="List the served models", response_model=ModelList)
    async def models() -> ModelList:
        return ModelList(data=[card(model, service.settings) for model in service.models.values()])

    @router.get("/models/{name}", summary="Describe one model", response_model=ModelCard, responses=unknown)
    async def model(name: str) -> ModelCard:
        found = service.model(name)
        labels = found.engine.info.choices
        return card(found, service.settings).model_copy(update={"labels": None if labels is None else list(labels)})

    @router.get(
        "/models/{name}/card",
        summary="The passport of one model, a page for people",
        response_class=HTMLResponse,
        responses=unknown,
    )
    def passport(name: str) -> HTMLResponse:
        info = service.model(name).engine.info
        page = read_passport(info.spec, info.fingerprint)
        if page is None:
            raise NoPassportError(f"{name} came without a passport; python -m export.card --html makes one.")
        return HTMLResponse(page, headers=PASSPORT_HEADERS)

    @router.head("/health/live", include_in_schema=False)
    @router.get(
        "/health/live", summary="Does the process answer?", response_model=Health, response_model_exclude_none=True
    )
    async def live() -> Health:
        return Health(status="live")

    @router.head("/health/ready", include_in_schema=False)
    @router.get("/health/ready", summary="Has every model proved itself?", response_model=Health, responses=not_ready)
    async def ready() -> Health:
        waiting = [f"{model.name}: {model.detail}" for model in service.models.values() if model.state != "ready"]
        if waiting:
            raise NotReadyError(f"Not ready: {'; '.join(waiting)}.", retry_after=1)
        return Health(status="ready", models={model.name: model.detail for model in service.models.values()})

    return router


def card(model: ServedModel, settings: Settings) -> ModelCard:
    """What may be known about a model; where its files lie may not."""
    info = model.engine.info
    return ModelCard(
        id=model.name,
        state=model.state,
        detail=model.detail,
        fingerprint=info.fingerprint,
        backend=info.backend,
        precision=info.precision,
        providers=list(info.providers),
        dim=info.dim,
        preprocess=info.preprocess.to_dict(),
        has_text=info.has_text,
        has_head=info.head == "linear",
        head=info.head,
        segment_crop=info.segment_crop,
        templates=list(info.templates),
        logit_scale=info.logit_scale,
        logit_bias=info.logit_bias,
        abstain=None if info.abstain is None else info.abstain.to_dict(),
        num_labels=len(info.choices or ()),
        limits=Limits(**{name: getattr(settings, name) for name in Limits.model_fields}),
    )


async def _answer(
    service: Service,
    request: Request,
    schema: type[R],
    answer: Callable[[Service, Inputs[R]], Awaitable[dict[str, Any]]],
) -> Response:
    try:
        inputs = await read_inputs(request, schema, service.settings, service.bodies)
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    working = asyncio.ensure_future(answer(service, inputs))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return Response(status_code=CLIENT_GONE)
        content = await asyncio.to_thread(to_json, working.result())  # numbers become text off the event loop
    finally:
        working.cancel()
        gone.cancel()
        inputs.drop()
    return Response(content, media_type="application/json")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _described(request: type[InferenceRequest], response: type[Any]) -> dict[str, Any]:
    """Arguments of a route: the three forms of the request, the answer, the errors."""
    schema = request.model_json_schema()
    fields = {name: field for name, field in schema["properties"].items() if name != "images"}
    uploads = {"type": "array", "items": {"type": "string", "format": "binary"}}
    form = {"type": "object", "properties": {FILES: uploads, **fields}, "additionalProperties": False}
    return {
        "response_class": Response,
        "responses": {
            200: {"model": response, "description": "Some or all items succeeded; those that did not say why."},
            **{status: {"model": ErrorResponse, "description": text} for status, text in STATUS_TEXTS.items()},
        },
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": schema},
                    "multipart/form-data": {"schema": form},
                    "image/*": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            "parameters": [
                {"name": name, "in": "query", "required": False, "schema": field, "description": _about(field)}
                for name, field in fields.items()
            ],
        },
    }


def _about(field: dict[str, Any]) -> str:
    return f"{field.get('description', '')} For raw image bodies; a field of the body goes first."
