"""The endpoints, and what the OpenAPI document says about them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from digpt.passport import read_passport
from digpt.report import policy
from serve import answers
from serve.connection import accepted, while_connected
from serve.documents import CLIENT_GONE, errors
from serve.errors import NoPassportError, NotReadyError
from serve.fetched import fetched
from serve.inputs import FILES, Inputs, read_inputs
from serve.schemas import (
    AbsentCard,
    ClassifyRequest,
    ClassifyResponse,
    EmbedRequest,
    EmbedResponse,
    Health,
    InferenceRequest,
    Limits,
    ModelCard,
    ModelList,
)
from serve.service import ServedModel, Service
from serve.settings import Settings

R = TypeVar("R", bound=InferenceRequest)

INLINE_VALUES = 4096  # numbers of an answer written on the event loop: less than 1 ms
PAGE: dict[int | str, dict[str, Any]] = {
    200: {"description": "A self-contained page.", "content": {"text/html": {"schema": {"type": "string"}}}}
}
# A passport is a file that came with a model: whatever it holds, it runs no script but a report's own, in an origin of
# its own, reaches nothing, and is shown in no other site's frame.
PASSPORT_PATH = "/models/{name}/card"
PASSPORT_HEADERS = {
    "Content-Security-Policy": f"{policy()}; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; "
    "sandbox allow-scripts",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def inference_router(service: Service) -> APIRouter:
    """``POST /embed`` and ``POST /classify``."""
    router = APIRouter(tags=["inference"])

    @router.post("/embed", summary="Embed images and texts", **_described(EmbedRequest, EmbedResponse))
    async def embed(request: Request) -> Response:
        return await _answer(service, request, EmbedRequest, fetched(answers.embed))

    @router.post("/classify", summary="Classify images", **_described(ClassifyRequest, ClassifyResponse))
    async def classify(request: Request) -> Response:
        return await _answer(service, request, ClassifyRequest, fetched(answers.classify))

    return router


def models_router(service: Service) -> APIRouter:
    """The served models, and the passport of each."""
    router = APIRouter(tags=["status"])

    @router.get("/models", summary="List the served models", response_model=ModelList, responses=errors(401))
    async def models() -> ModelList:
        return ModelList(
            data=[card(model, service.settings) for model in service.models.values()],
            available=[
                AbsentCard(id=model.name, state=model.state, detail=model.detail) for model in service.absent.values()
            ],
        )

    @router.get(
        "/models/{name}", summary="Describe one model", response_model=ModelCard, responses=errors(401, 404, 422, 503)
    )
    async def model(name: str) -> ModelCard:
        found = service.model(name)
        labels = found.engine.info.choices
        return card(found, service.settings).model_copy(update={"labels": None if labels is None else list(labels)})

    @router.get(
        PASSPORT_PATH,
        summary="The passport of one model, a page for people",
        response_class=Response,
        responses={**PAGE, **errors(401, 404, 422, 503)},
    )
    def passport(name: str) -> HTMLResponse:
        info = service.model(name).engine.info
        page = read_passport(info.spec, info.fingerprint)
        if page is None:
            raise NoPassportError(f"{name} came without a passport; python -m export.card --html makes one.")
        return HTMLResponse(page, headers=PASSPORT_HEADERS)

    return router


def health_router(service: Service) -> APIRouter:
    """Whether the process lives, and whether it is ready."""
    router = APIRouter(tags=["status"])

    @router.head("/health/live", include_in_schema=False)
    @router.get(
        "/health/live",
        summary="Does the process answer, and may it yet get ready?",
        response_model=Health,
        response_model_exclude_none=True,
        responses=errors(503),
    )
    async def live() -> Health:
        hopeless = [f"{model.name}: {model.detail}" for model in service.models.values() if model.watchdog.hopeless]
        if hopeless:
            raise NotReadyError(f"Only a new process helps: {'; '.join(hopeless)}.")
        return Health(status="live")

    @router.head("/health/ready", include_in_schema=False)
    @router.get(
        "/health/ready",
        summary="Has every model proved itself, and does it answer?",
        response_model=Health,
        responses=errors(503),
    )
    async def ready() -> Health:
        service.require_open()
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
        engine=info.engine,
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
    async with accepted(service, request):
        try:
            inputs = await read_inputs(request, schema, service.settings, service.bodies)
            try:
                found = await while_connected(request, answer(service, inputs))
                return await written(found)
            finally:
                inputs.drop()
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)


async def written(answer: dict[str, Any]) -> Response:
    """An answer as JSON, written off the event loop if it is large."""
    values = sum(len(value) for entry in answer["data"] for value in entry.values() if isinstance(value, list))
    content = await answers.aside(partial(to_json, answer), values > INLINE_VALUES)
    return Response(content, media_type="application/json")


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
            **errors(400, 401, 404, 409, 413, 415, 422, 429, 503, 504),
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
