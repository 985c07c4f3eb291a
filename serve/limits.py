"""How much one request may ask for: held against a parsed body before it is validated, and against its strings after.

Counting comes first: validating a hundred thousand items to refuse them takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve.errors import SchemaError
from serve.settings import Settings


def check_counts(body: Mapping[str, Any], files: int, settings: Settings) -> None:
    """Count the lists of a parsed body, whatever is in them; ``files`` are images that came otherwise.

    Raises:
        SchemaError: too many images and texts, labels, or prompts made of them.
    """
    counts = {name: len(given) for name, given in body.items() if isinstance(given, list)}
    if counts.get("input") and not isinstance(body["input"][0], str):
        del counts["input"]  # tokens, which are refused as what they are
    items = files + counts.get("images", 0) + counts.get("texts", 0) + counts.get("input", 0)
    labels, templates = counts.get("labels", 0), counts.get("templates", 0)
    if items > settings.max_items:
        raise SchemaError(f"{items} items in one request, at most {settings.max_items} are allowed; send several.")
    if labels > settings.max_labels:
        raise SchemaError(f"{labels} labels, at most {settings.max_labels} are allowed.", param="labels")
    if labels * templates > settings.max_prompts or templates > settings.max_labels:
        raise SchemaError(
            f"{labels} labels in {templates} templates make more than the {settings.max_prompts} prompts allowed.",
            param="templates",
        )


def check_items(count: int, fields: Mapping[str, list[str] | None], settings: Settings) -> None:
    """Hold a valid request against the limits: ``count`` images and texts, and the lists of strings by field name.

    Raises:
        SchemaError: nothing to work on, or too long a string.
    """
    if count == 0:
        raise SchemaError("The request holds nothing to work on; give at least one image.", param="images")
    for name, texts in fields.items():
        for index, text in enumerate(texts or []):
            if len(text) > settings.max_text_chars:
                raise SchemaError(
                    f"{name}[{index}] has {len(text)} characters, at most {settings.max_text_chars} are allowed.",
                    param=name,
                    index=index,
                )


def check_scores(images: int, labels: int, top_k: int, settings: Settings) -> None:
    """Raise SchemaError if the answer, the best labels of every image, would hold more scores than allowed."""
    scores = images * min(top_k, labels)
    if scores > settings.max_scores:
        raise SchemaError(
            f"{images} images times {min(top_k, labels)} labels are {scores} scores in one answer, at most "
            f"{settings.max_scores} are allowed; send fewer images or a smaller top_k.",
            param="top_k",
        )
