"""What is said about class sets, in requests and answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints, field_validator

from serve.schemas import Texts, with_places


class ClassSetRequest(BaseModel):
    """The content of a class set."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"labels": ["red apple", "dog face", "rocket"], "templates": ["a photo of a {}."]}]
        },
    )

    labels: Annotated[
        list[Annotated[str, StringConstraints(min_length=1)]],
        FailFast(),
        Field(min_length=1, description="Names to choose from."),
    ]
    templates: Texts = Field(
        None, min_length=1, description="Sentences with `{}` for the label; without them the model's own."
    )
    model: str | None = Field(None, max_length=256, description="Name of a served model; the first one if left out.")

    @field_validator("templates")
    @classmethod
    def _has_a_place(cls, templates: list[str] | None) -> list[str] | None:
        return with_places(templates)


class ClassSetCard(BaseModel):
    """A stored class set. ``content_hash`` is of its labels, templates and the model's weights, and is its ETag."""

    id: str
    object: Literal["class_set"] = "class_set"
    model: str
    fingerprint: str
    content_hash: str
    num_labels: int
    templates: list[str]


class ClassSetDetail(ClassSetCard):
    """A stored class set with its labels."""

    labels: list[str]


class ClassSetStored(ClassSetCard):
    """What a PUT did: ``unchanged`` if the content was there already."""

    status: Literal["created", "replaced", "unchanged"]


class ClassSetList(BaseModel):
    """The stored class sets by name."""

    object: Literal["list"] = "list"
    data: list[ClassSetCard]


class Deleted(BaseModel):
    """What is no longer stored."""

    id: str
    object: Literal["class_set"] = "class_set"
    deleted: Literal[True] = True
