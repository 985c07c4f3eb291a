"""OpenAI's shape of the same answers, for its clients and all that is built on them.

client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
client.embeddings.create(model="emoji-tiny", input=["red apple"])
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints, WithJsonSchema, field_validator
from starlette.requests import ClientDisconnect

from serve import answers
from serve.connection import accepted, while_connected
from serve.documents import CLIENT_GONE, errors
from serve.errors import STATUSES, ItemError, Problem, SchemaError, response
from serve.fetched import fetched
from serve.inputs import Inputs, read_json
from serve.limits import check_items
from serve.observe import observation
from serve.routes import written
from serve.schemas import PIXEL, EmbedRequest
from serve.service import Service

IMAGE_URI = "data:image/"
TEXT = {"type": "string", "minLength": 1}
INPUT = {
    "anyOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1}],
    "description": "One text or image, or a list of them. Tokens are not taken: send the text itself.",
}
STATUS_OF = {code: status for status, code in STATUSES.values()}


class OpenAIRequest(BaseModel):
    """Texts or images to embed."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"model": "emoji-tiny", "input": ["a red square", PIXEL]},
                {"model": "emoji-tiny", "input": PIXEL, "modality": "image", "encoding_format": "base64"},
            ]
        },
    )

    input: Annotated[list[Annotated[str, StringConstraints(min_length=1)]], FailFast(), WithJsonSchema(INPUT)] = Field(
        min_length=1
    )
    model: str = Field(max_length=256, description="Name of a served model.")
    encoding_format: Literal["float", "base64"] = Field("float", description="`base64`: little-endian float32.")
    dimensions: int | None = Field(None, ge=1, description="The model's own width, or nothing.")
    modality: Literal["text", "image"] | None = Field(
        None,
        description="What all inputs are. Without it those that begin with `data:image/` are images; with `image` they "
        "are base64, data URIs or, where the server allows it, URLs.",
    )
    user: str | None = Field(None, max_length=256, description="Ignored.")

    @field_validator("input", mode="before")
    @classmethod
    def _listed(cls, given: object) -> object:
        if isinstance(given, list) and any(isinstance(item, int | list) for item in given):
            raise ValueError(
                "tokens can only be read by the model that they were made for; send the text itself "
                "(LangChain: check_embedding_ctx_length=False)"
            )
        return [given] if isinstance(given, str) else given

    def is_image(self, item: str) -> bool:
        return self.modality == "image" or (self.modality is None and item[: len(IMAGE_URI)].lower() == IMAGE_URI)


class OpenAIEmbedding(BaseModel):
    """One input's embedding."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIUsage(BaseModel):
    """How many inputs there were: nothing here is counted in tokens."""

    prompt_tokens: int
    total_tokens: int


class OpenAIResponse(BaseModel):
    """The embeddings in the order of the inputs, of unit length."""

    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


class OpenAIModel(BaseModel):
    """A served model; ``created`` is when the server started."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "digpt"


class OpenAIModels(BaseModel):
    """The served models, the first being the default."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


def openai_router(service: Service) -> APIRouter:
    """``POST /v1/embeddings`` and ``GET /v1/models``."""
    router = APIRouter(prefix="/v1", tags=["OpenAI's shape"])
    created = int(time.time())

    @router.post(
        "/embeddings",
        summary="Embed texts or images",
        response_class=Response,
        responses={
            200: {"model": OpenAIResponse, "description": "All inputs were embedded."},
            **errors(400, 401, 404, 413, 415, 422, 429, 503, 504),
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": OpenAIRequest.model_json_schema()}},
            }
        },
    )
    async def embeddings(request: Request) -> Response:
        async with accepted(service, request):
            try:
                async with read_json(request, OpenAIRequest, service.settings, service.bodies) as (asked, deadline):
                    found = await while_connected(request, embed(service, asked, deadline))
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            if isinstance(found, Problem):
                observation().error = found.code
                return response(found)
            return await written(found)

    @router.get("/models", summary="List the served models", response_model=OpenAIModels, responses=errors(401))
    async def models() -> OpenAIModels:
        return OpenAIModels(data=[OpenAIModel(id=name, created=created) for name in service.models])

    @router.get(
        "/models/{name}", summary="Describe one model", response_model=OpenAIModel, responses=errors(401, 404, 422, 503)
    )
    async def model(name: str) -> OpenAIModel:
        return OpenAIModel(id=service.model(name).name, created=created)

    return router


async def embed(service: Service, asked: OpenAIRequest, deadline: float) -> dict[str, Any] | Problem:
    """Answer a valid request, or say what is wrong with the first input that cannot be embedded."""
    items = asked.input
    is_image = [asked.is_image(item) for item in items]
    texts = ["" if image else item for item, image in zip(items, is_image, strict=True)]
    check_items(len(items), {"input": texts}, service.settings)
    dim = service.model(asked.model).engine.info.dim
    if asked.dimensions not in (None, dim):
        raise SchemaError(
            f"{asked.model} gives embeddings of {dim} dimensions, and no others; leave dimensions out.",
            param="dimensions",
        )
    # /embed answers images before texts
    order = sorted(range(len(items)), key=lambda index: not is_image[index])
    images = [items[index] for index in order if is_image[index]]
    request = EmbedRequest.model_validate(
        {"model": asked.model, "texts": [text for text in texts if text], "encoding_format": asked.encoding_format}
    )
    try:
        found = await fetched(answers.embed)(service, Inputs(request, deadline, [*images], "input", len(images)))
    except ItemError as error:
        raise ItemError(error.cause, param="input", index=order[error.index or 0]) from None
    entries = dict(zip(order, found["data"], strict=True))
    for index in range(len(items)):
        wrong = entries[index].get("error")
        if wrong is not None:
            return Problem(STATUS_OF[wrong["code"]], wrong["message"], wrong["code"], "input", index)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": entries[index]["embedding"]}
            for index in range(len(items))
        ],
        "model": found["model"],
        "usage": {"prompt_tokens": len(items), "total_tokens": len(items)},
    }
