"""A validated request -> decode, wait for the model, compute, answer. Items fail one by one.

A request whose items all fail is answered with the first item's error; one in which some succeed is answered 200.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from digpt.engine import Prediction
from digpt.errors import CapabilityError, InputError
from digpt.runtime.base import RuntimeInfo, no_logits, no_text
from serve.errors import DeadlineError, InferenceError, ItemError, SchemaError, problem
from serve.images import decode_all
from serve.inputs import Inputs
from serve.limits import check_items, check_scores
from serve.schemas import ClassifyRequest, EmbedRequest
from serve.service import ServedModel, Service

T = TypeVar("T")

NONE_OF_THESE = "none of these"


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """The error of each item that has one, the value computed from the others, and the times it took."""

    errors: list[InputError | None]
    value: T
    timings_ms: dict[str, float]


async def embed(service: Service, inputs: Inputs[EmbedRequest]) -> dict[str, Any]:
    """Answer ``POST /embed``; see ``schemas.EmbedResponse``."""
    request, texts = inputs.request, inputs.request.texts or []
    check_items(inputs.count + len(texts), {"texts": texts}, service.settings)
    model = service.model(request.model)
    engine = model.engine
    refused = no_text(engine.info) if texts and not engine.info.has_text else None

    def compute(crops: list[np.ndarray]) -> np.ndarray:
        rows = [engine.embed_images(crops, normalize=request.normalize)]
        if texts and refused is None:
            rows.append(engine.embed_texts(texts, normalize=request.normalize))
        return finite(np.concatenate(rows))

    outcome = await run(service, model, inputs, [refused] * len(texts), compute)
    rows, data = iter(outcome.value), []
    for index, error in enumerate(outcome.errors):
        is_image = index < inputs.count
        entry: dict[str, Any] = {"index": index, "type": "image" if is_image else "text"}
        if error is None:
            entry |= encoded(next(rows), request.encoding_format)
        else:
            entry["error"] = problem(error, param=inputs.param if is_image else "texts", index=index).body()
        data.append(entry)
    return envelope(model, outcome, data, {"images": inputs.count, "texts": len(texts)}, dim=engine.info.dim)


async def classify(service: Service, inputs: Inputs[ClassifyRequest]) -> dict[str, Any]:
    """Answer ``POST /classify``; see ``schemas.ClassifyResponse``."""
    request, labels, templates = inputs.request, inputs.request.labels, inputs.request.templates
    check_items(inputs.count, {"labels": labels, "templates": templates}, service.settings)
    stored = service.class_sets.asked_for(request)
    model = service.model(request.model if stored is None else stored.model)
    if request.logits is not None:
        return await head_logits(service, model, inputs, request.logits)
    engine = model.engine
    threshold = abstain_threshold(engine.info) if request.abstain else None
    names: Sequence[str] | None = labels
    matrix: np.ndarray | None = None
    if stored is not None:
        names, matrix = stored.labels, stored.matrix_for(engine.info.fingerprint)
    if templates and names is None and engine.info.head == "linear":
        raise SchemaError("templates say how to word labels; give labels, or leave templates out.", param="templates")
    check_scores(inputs.count, len(names or engine.info.choices or ()), request.top_k, service.settings)

    def compute(crops: list[np.ndarray]) -> list[list[Prediction]]:
        return engine.classify(
            crops, names, templates, matrix=matrix, top_k=request.top_k, multi_label=request.multi_label
        )

    outcome = await run(service, model, inputs, [], compute)
    rows, data = iter(outcome.value), []
    for index, error in enumerate(outcome.errors):
        if error is None:
            best = abstaining(next(rows), threshold)
            data.append({"index": index, "predictions": [{"label": p.label, "score": p.score} for p in best]})
        else:
            data.append({"index": index, "error": problem(error, param=inputs.param, index=index).body()})
    return envelope(model, outcome, data, {"images": inputs.count, "texts": len(names or [])})


async def head_logits(
    service: Service, model: ServedModel, inputs: Inputs[ClassifyRequest], encoding_format: str
) -> dict[str, Any]:
    """Answer ``POST /classify`` with the linear head's outputs instead of its best labels."""
    request, engine = inputs.request, model.engine
    if request.labels or request.templates or request.multi_label or request.abstain:
        raise SchemaError(
            "logits are those of the model's own linear head; leave labels, templates, multi_label and abstain out.",
            param="logits",
        )
    if engine.info.head != "linear":
        raise no_logits(engine.info)
    classes = len(engine.info.labels or ())
    check_scores(inputs.count, classes, classes, service.settings)
    outcome = await run(service, model, inputs, [], lambda crops: finite(engine.logits(crops)))
    rows = iter(outcome.value)
    data: list[dict[str, Any]] = []
    for index, error in enumerate(outcome.errors):
        if error is None:
            data.append({"index": index, "logits": encode(next(rows), encoding_format)})
        else:
            data.append({"index": index, "error": problem(error, param=inputs.param, index=index).body()})
    return envelope(model, outcome, data, {"images": inputs.count, "texts": 0})


async def run(
    service: Service,
    model: ServedModel,
    inputs: Inputs[Any],
    texts: Sequence[InputError | None],
    compute: Callable[[list[np.ndarray]], T],
) -> Outcome[T]:
    """Decode the images and let the model's worker compute over those that could be.

    ``texts`` has one entry per text that is an item of its own: its error, or None.

    Raises:
        ItemError: every item failed.
        NotReadyError, QueueFullError, DeadlineError: the model is not ready, has too much to do, took too long.
    """
    model.require_ready()
    started = time.perf_counter()
    pixels = (inputs.count + len(texts)) * model.engine.info.preprocess.size**2
    limit = service.settings.deadline_s
    try:
        with model.worker.admit(pixels):
            async with asyncio.timeout(limit):
                decoded = await decode_all(
                    service.decoders, model.engine, inputs.images, preprocessed=inputs.request.preprocessed
                )
                inputs.drop()  # what waits for the model is crops; the files would only wait with them
                decoded_at = time.perf_counter()
                errors = [item if isinstance(item, InputError) else None for item in decoded] + list(texts)
                if errors[0] is not None and None not in errors:
                    raise ItemError(errors[0], param=inputs.param if inputs.count else "texts", index=0)
                crops = [item for item in decoded if not isinstance(item, InputError)]
                ran = await model.worker.run(lambda: compute(crops), pixels=pixels)
    except TimeoutError:
        raise DeadlineError(f"No answer within {limit:g} seconds; send fewer images at a time, or try later.") from None
    seconds = {"decode": decoded_at - started, "queue": ran.queue_s, "inference": ran.inference_s}
    seconds["total"] = time.perf_counter() - started
    return Outcome(errors, ran.value, {stage: round(1000 * value, 3) for stage, value in seconds.items()})


def envelope(
    model: ServedModel, outcome: Outcome[Any], data: list[dict[str, Any]], usage: dict[str, int], **more: object
) -> dict[str, Any]:
    """Put ``data`` into what every answer says about itself."""
    said = {"model": model.name, "fingerprint": model.engine.info.fingerprint, **more}
    return {**said, "data": data, "usage": usage, "timings_ms": outcome.timings_ms}


def encode(row: np.ndarray, encoding_format: str) -> list[float] | str:
    """One embedding float32 ``[D]`` as a list of numbers, or as base64 of its little-endian bytes."""
    if encoding_format == "base64":
        return base64.b64encode(np.ascontiguousarray(row, "<f4").tobytes()).decode("ascii")
    numbers: list[float] = row.tolist()
    return numbers


def encoded(row: np.ndarray, encoding_format: str) -> dict[str, Any]:
    """The fields of an embedding float32 ``[D]``; those of "int8" are ``embedding`` and its ``scale``."""
    if encoding_format != "int8":
        return {"embedding": encode(row, encoding_format)}
    numbers, scale = quantize(row)
    return {"embedding": numbers.tolist(), "scale": scale}


def quantize(row: np.ndarray) -> tuple[np.ndarray, float]:
    """float32 ``[D]`` -> int8 ``[D]`` in -127..127, and the scale that makes them the row again: off by half of it."""
    scale = float(np.abs(row).max(initial=0.0)) / 127 or 1.0  # a row of zeros has any scale
    return np.clip(np.rint(row.astype(np.float64) / scale), -127, 127).astype(np.int8), scale


def finite(embeddings: np.ndarray) -> np.ndarray:
    """Return ``embeddings`` if they are numbers; NaN has no JSON, and no meaning for a client."""
    if not np.isfinite(embeddings).all():
        raise InferenceError("The model answered with numbers that are not finite.")
    return embeddings


def abstain_threshold(info: RuntimeInfo) -> float:
    """Return the score below which a model's best label means nothing; CapabilityError if none was calibrated."""
    if info.abstain_threshold is None:
        raise CapabilityError(
            f"{info.name} has no calibrated threshold, so it cannot abstain; leave abstain out, "
            "or serve an artifact that was exported with one."
        )
    return info.abstain_threshold


def abstaining(predictions: list[Prediction], threshold: float | None) -> list[Prediction]:
    """Put "none of these" before predictions whose best score is below the threshold."""
    if threshold is None or predictions[0].score >= threshold:
        return predictions
    return [Prediction(NONE_OF_THESE, 1.0 - predictions[0].score), *predictions]
