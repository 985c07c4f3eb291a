"""What a request and an answer look like: validation of the one, documentation of both."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints, field_validator

PIXEL = (  # a red 1 x 1 PNG
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)

Strings = Annotated[list[str] | None, FailFast()]  # the first wrong item is the answer, so the others are not looked at
Texts = Annotated[list[Annotated[str, StringConstraints(min_length=1)]] | None, FailFast()]


class InferenceRequest(BaseModel):
    """What every question about images may say. ``null`` is the same as leaving a field out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    images: Strings = Field(None, description="Images as base64 or as data URIs.")
    model: str | None = Field(None, max_length=256, description="Name of a served model; the first one if left out.")
    preprocessed: bool = Field(
        False, description="The images are cropped to the model's size already: they are decoded and nothing else."
    )


class EmbedRequest(InferenceRequest):
    """Images and texts to embed."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"images": [PIXEL], "texts": ["a red square"]}]})

    texts: Texts = Field(None, description="Texts, answered after the images.")
    encoding_format: Literal["float", "base64", "int8"] = Field(
        "float",
        description="`base64`: little-endian float32, a quarter of the size. `int8`: whole numbers from -127 to 127, "
        "as byte vectors of vector databases want them; times `scale` they are the embedding again.",
    )
    normalize: bool = Field(True, description="Scale each embedding to length 1.")


class ClassifyRequest(InferenceRequest):
    """Images to classify among free-text labels, or the model's own."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"images": [PIXEL], "labels": ["red apple", "dog face"], "top_k": 2}]}
    )

    labels: Texts = Field(None, min_length=1, description="Names to choose from; without them the model's own.")
    class_set: str | None = Field(
        None, max_length=64, description="Name of a stored class set, instead of `labels` and `templates`."
    )
    templates: Texts = Field(
        None, min_length=1, description="Sentences with `{}` for the label; without them the model's own."
    )
    top_k: int = Field(5, ge=1, description="How many labels per image, best first.")
    multi_label: bool = Field(
        False, description="Independent scores instead of a distribution; only models with a learned logit bias."
    )
    abstain: bool = Field(
        False,
        description='Allow the answer "none of these"; only models with a calibrated threshold. It was measured with '
        "the model's own templates and with labels drawn at random: with other templates, or labels much alike, its "
        "error rates are others.",
    )
    logits: Literal["float", "base64"] | None = Field(
        None,
        description="Instead of predictions the raw outputs of the linear head, in the order of the model's labels, as "
        "numbers or as base64 of little-endian float32; only models with a linear head.",
    )

    @field_validator("templates")
    @classmethod
    def _has_a_place(cls, templates: list[str] | None) -> list[str] | None:
        return with_places(templates)


def with_places(templates: list[str] | None) -> list[str] | None:
    """Return ``templates`` if each has a place for the label; ValueError otherwise."""
    for template in templates or []:
        if "{}" not in template:
            raise ValueError(f"template {template[:80]!r} has no {{}} to put the label into")
    return templates


class ErrorDetail(BaseModel):
    """What went wrong. ``index`` is the item's position in ``data``, or the position in the list ``param``."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str
    index: int | None


class ErrorResponse(BaseModel):
    """Every error, whatever its status."""

    error: ErrorDetail


class Usage(BaseModel):
    """How many images and texts (for classify: labels) were asked about."""

    images: int
    texts: int


class Timings(BaseModel):
    """Milliseconds: decoding, waiting for the model, computing, and from request to answer."""

    decode: float
    queue: float
    inference: float
    total: float


class Embedding(BaseModel):
    """One input's embedding or its error; ``scale`` stands beside whole numbers (``encoding_format`` "int8")."""

    index: int
    type: Literal["image", "text"]
    embedding: list[int] | list[float] | str | None = None
    scale: float | None = None
    error: ErrorDetail | None = None


class Answer(BaseModel):
    """What every answer says about itself."""

    model: str
    fingerprint: str
    usage: Usage
    timings_ms: Timings


class EmbedResponse(Answer):
    """One entry per input, images before texts."""

    dim: int
    data: list[Embedding]


class Scored(BaseModel):
    """A label and its score between 0 and 1."""

    label: str
    score: float


class Classification(BaseModel):
    """One image's best labels, or the linear head's outputs where these were asked for, or its error."""

    index: int
    predictions: list[Scored] | None = None
    logits: list[float] | str | None = None
    error: ErrorDetail | None = None


class ClassifyResponse(Answer):
    """One entry per image."""

    data: list[Classification]


class Limits(BaseModel):
    """What one request may ask for: bytes, images and texts, images times labels, characters of a text."""

    max_request_bytes: int
    max_items: int
    max_scores: int
    max_text_chars: int


class ModelCard(BaseModel):
    """A served model. ``labels`` stands only in the answer about one model."""

    id: str
    object: Literal["model"] = "model"
    state: Literal["starting", "ready", "failed", "stalled"]
    detail: str
    fingerprint: str
    backend: str
    precision: str
    engine: str | None
    providers: list[str]
    dim: int
    preprocess: dict[str, Any]
    has_text: bool
    has_head: bool
    head: Literal["linear", "upernet"] | None
    segment_crop: int | None
    templates: list[str]
    logit_scale: float | None
    logit_bias: float | None
    abstain: dict[str, list[float]] | None
    num_labels: int
    limits: Limits
    labels: list[str] | None = None


class AbsentCard(BaseModel):
    """A model that an administrator may load, and how far that is."""

    id: str
    object: Literal["model"] = "model"
    state: Literal["unloaded", "loading", "unloading", "failed", "stalled", "ready"]
    detail: str


class ModelList(BaseModel):
    """The served models, the first being the default; ``available`` are those that may be loaded and are not."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
    available: list[AbsentCard]


class Health(BaseModel):
    """``live``: the process answers. ``ready``: every model proved itself; ``models`` says how."""

    status: Literal["live", "ready"]
    models: dict[str, str] | None = None
