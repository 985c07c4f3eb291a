"""The endpoints of class sets: PUT, GET, DELETE ``/class-sets/{name}``, and their list."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from digpt.runtime.base import no_text
from serve.classset_schemas import (
    ClassSetCard,
    ClassSetDetail,
    ClassSetList,
    ClassSetRequest,
    ClassSetStored,
    Deleted,
)
from serve.classsets import NAME, StoredSet
from serve.connection import accepted, while_connected
from serve.documents import CLIENT_GONE, errors
from serve.errors import DeadlineError, SchemaError
from serve.inputs import read_json
from serve.limits import check_items
from serve.observe import observation
from serve.service import Service
from serve.settings import Settings

BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": ClassSetRequest.model_json_schema()}}}
}
STORED: dict[int | str, dict[str, Any]] = {
    200: {"model": ClassSetStored, "description": "The content was there already, or replaced another."},
    201: {"model": ClassSetStored, "description": "A new class set."},
}


def class_set_router(service: Service) -> APIRouter:
    """Class sets as resources."""
    router = APIRouter(tags=["class sets"])
    unchanged: dict[int | str, dict[str, Any]] = {304: {"description": "If-None-Match names the current ETag."}}

    @router.put(
        "/class-sets/{name}",
        summary="Store a class set",
        response_class=Response,
        responses={**STORED, **errors(400, 401, 404, 409, 413, 415, 422, 429, 503, 504)},
        openapi_extra=BODY,
    )
    async def put(name: str, request: Request) -> Response:
        check_name(name)
        async with accepted(service, request):
            try:
                async with read_json(request, ClassSetRequest, service.settings, service.bodies) as (body, deadline):
                    stored, status = await while_connected(request, store(service, name, body, deadline))
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
        said = ClassSetStored(**about(stored), status=status)
        return answer(said, stored, 201 if status == "created" else 200)

    @router.get("/class-sets", summary="List the class sets", response_model=ClassSetList, responses=errors(401))
    async def listed() -> ClassSetList:
        return ClassSetList(data=[ClassSetCard(**about(stored)) for stored in service.class_sets.all()])

    @router.get(
        "/class-sets/{name}",
        summary="Show a class set",
        response_model=ClassSetDetail,
        responses={**unchanged, **errors(401, 404, 422)},
    )
    async def show(name: str, request: Request) -> Response:
        stored = service.class_sets.get(name)
        if etag(stored) in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers={"ETag": etag(stored)})
        return answer(ClassSetDetail(**about(stored), labels=list(stored.labels)), stored)

    @router.delete(
        "/class-sets/{name}", summary="Delete a class set", response_model=Deleted, responses=errors(401, 404, 422)
    )
    async def delete(name: str) -> Deleted:
        await service.class_sets.delete(name)
        return Deleted(id=name)

    return router


async def store(service: Service, name: str, body: ClassSetRequest, deadline: float) -> tuple[StoredSet, Any]:
    """Embed the labels of a valid request and keep them; return the set, and what became of its name.

    Raises:
        SchemaError: a string too long, or more prompts than allowed.
        ConflictError: no room.
        QueueFullError, NotReadyError, CapabilityError: too many are waiting, no model yet, no text tower.
        DeadlineError: not embedded by ``deadline`` of ``time.monotonic``, the wait for others included.
    """
    check_items(1, {"labels": body.labels, "templates": body.templates}, service.settings)
    model = service.model(body.model)
    model.require_ready()
    engine = model.engine
    if not engine.info.has_text:
        raise no_text(engine.info)
    labels, templates = tuple(body.labels), tuple(body.templates or engine.info.templates)
    check_prompts(labels, templates, service.settings)
    service.class_sets.check_room(name, len(labels))
    observation().about(model.name, images=0, texts=len(labels))
    waiting = service.metrics.admitted(model.name, pixels=0, items=len(labels))
    try:
        with waiting:
            async with asyncio.timeout(deadline - time.monotonic()) as limit, service.class_sets as kept:
                model = service.model(body.model)  # it may have been unloaded while this one waited
                model.require_ready()
                matrix = await model.batcher.class_matrix(labels, templates, deadline)
                limit.reschedule(None)  # what is being written is kept
                stored = StoredSet(name, model.name, labels, templates, model.engine.info.fingerprint, matrix)
                return stored, await kept.put(stored)
    except TimeoutError:
        raise DeadlineError(
            f"The labels were not embedded within {service.settings.deadline_s:g} seconds; send fewer, or try later."
        ) from None


def check_name(name: str) -> None:
    """Raise SchemaError for a name that is no plain word."""
    if not NAME.fullmatch(name):
        raise SchemaError(
            "A class set's name is of 1 to 64 letters, digits, dots, dashes and underscores, and begins with a "
            "letter or digit.",
            param="name",
        )


def check_prompts(labels: tuple[str, ...], templates: tuple[str, ...], settings: Settings) -> None:
    """Raise SchemaError if the labels in the templates, also in the model's own, make too many prompts."""
    if len(labels) * len(templates) > settings.max_prompts:
        raise SchemaError(
            f"{len(labels)} labels in {len(templates)} templates make more than the {settings.max_prompts} "
            "prompts allowed.",
            param="templates",
        )


def about(stored: StoredSet) -> dict[str, Any]:
    """The fields of ``ClassSetCard``."""
    return {
        "id": stored.name,
        "model": stored.model,
        "fingerprint": stored.fingerprint,
        "content_hash": stored.content_hash,
        "num_labels": len(stored.labels),
        "templates": list(stored.templates),
    }


def etag(stored: StoredSet) -> str:
    return f'"{stored.content_hash}"'


def answer(content: BaseModel, stored: StoredSet, status: int = 200) -> Response:
    """``content`` as JSON with the set's ETag."""
    return Response(to_json(content), status, {"ETag": etag(stored)}, "application/json")
