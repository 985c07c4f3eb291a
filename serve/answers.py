"""A validated request -> decode, wait for the model, compute, answer. Items fail one by one.

A request whose items all fail is answered with the first item's error; one in which some succeed is answered 200.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from digpt.engine import Engine
from digpt.predictions import Prediction, softmax, top_predictions
from digpt.runtime.base import no_logits, no_text
from digpt.text import normalize as unit_rows
from serve.errors import DeadlineError, ItemError, SchemaError, problem
from serve.images import decode_all
from serve.inputs import Inputs
from serve.limits import check_items, check_scores
from serve.observe import observation
from serve.schemas import ClassifyRequest, EmbedRequest
from serve.service import ServedModel, Service

T = TypeVar("T")

INLINE_ROWS = 16  # embeddings turned into entries on the event loop: 10 to 30 us each
INLINE_PRODUCTS = 1 << 20  # multiplications of a class matrix on the event loop: less than 1 ms


@dataclass(frozen=True)
class Words:
    """What images are classified among by text."""

    labels: Sequence[str]
    templates: Sequence[str] | None
    matrix: np.ndarray | None = None  # of a stored class set

    def kept(self, engine: Engine) -> np.ndarray | None:
        """Their matrix, if it is at hand."""
        if self.matrix is not None:
            return self.matrix
        return engine.kept_class_matrix(engine.class_matrix_key(self.labels, self.templates))

    def prompts(self, engine: Engine) -> int:
        """How many texts have to be embedded at most."""
        return len(self.labels) * len(engine.info.templates if self.templates is None else self.templates)


@dataclass(frozen=True)
class Outcome:
    """Of each image, then each text, its row float32 ``[D]`` or ``[C]`` or its error; the class matrix; the times."""

    rows: list[np.ndarray | Exception]
    matrix: np.ndarray | None
    timings_ms: dict[str, float]


async def embed(service: Service, inputs: Inputs[EmbedRequest]) -> dict[str, Any]:
    """Answer ``POST /embed``; see ``schemas.EmbedResponse``."""
    request, texts = inputs.request, inputs.request.texts or []
    check_items(inputs.count + len(texts), {"texts": texts}, service.settings)
    model = service.model(request.model)
    outcome = await run(service, model, inputs, "embed", texts)

    def entry(index: int, row: np.ndarray | Exception) -> dict[str, Any]:
        is_image = index < inputs.count
        said = {"index": index, "type": "image" if is_image else "text"}
        if isinstance(row, np.ndarray):
            return {**said, **encoded(unit_rows(row) if request.normalize else row, request.encoding_format)}
        return {**said, "error": problem(row, param=inputs.param if is_image else "texts", index=index).body()}

    def entries() -> list[dict[str, Any]]:
        return [entry(index, row) for index, row in enumerate(outcome.rows)]

    data = await aside(entries, len(outcome.rows) > INLINE_ROWS)
    usage = {"images": inputs.count, "texts": len(texts)}
    return envelope(model, outcome, data, usage, dim=model.engine.info.dim)


async def classify(service: Service, inputs: Inputs[ClassifyRequest]) -> dict[str, Any]:
    """Answer ``POST /classify``; see ``schemas.ClassifyResponse``."""
    request, labels, templates = inputs.request, inputs.request.labels, inputs.request.templates
    check_items(inputs.count, {"labels": labels, "templates": templates}, service.settings)
    stored = service.class_sets.asked_for(request)
    model = service.model(request.model if stored is None else stored.model)
    if request.logits is not None:
        return await head_logits(service, model, inputs, request.logits)
    engine = model.engine
    kept: np.ndarray | None = None
    if stored is not None:
        labels, kept = list(stored.labels), stored.matrix_for(engine.info.fingerprint)
    if request.abstain:
        engine.require_abstain(labels)
    head = labels is None and engine.info.head == "linear"
    if templates and head:
        raise SchemaError("templates say how to word labels; give labels, or leave templates out.", param="templates")
    names = engine.choices(labels, multi_label=request.multi_label)
    check_scores(inputs.count, len(names), request.top_k, service.settings)
    words = None if head else Words(names, templates, kept)
    outcome = await run(service, model, inputs, "logits" if head else "embed", words=words)

    def predict() -> list[list[Prediction]]:
        rows = np.stack([row for row in outcome.rows if isinstance(row, np.ndarray)])
        if outcome.matrix is None:
            return top_predictions(softmax(rows), names, request.top_k)
        return engine.classify_embeddings(
            unit_rows(rows),
            names,
            matrix=outcome.matrix,
            top_k=request.top_k,
            multi_label=request.multi_label,
            abstain=request.abstain,
        )

    products = inputs.count * len(names) * engine.info.dim
    predictions = iter(await aside(predict, products > INLINE_PRODUCTS))
    data: list[dict[str, Any]] = []
    for index, row in enumerate(outcome.rows):
        if isinstance(row, np.ndarray):
            best = [{"label": p.label, "score": p.score} for p in next(predictions)]
            data.append({"index": index, "predictions": best})
        else:
            data.append({"index": index, "error": problem(row, param=inputs.param, index=index).body()})
    return envelope(model, outcome, data, {"images": inputs.count, "texts": len(labels or [])})


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
    outcome = await run(service, model, inputs, "logits")
    data: list[dict[str, Any]] = []
    for index, row in enumerate(outcome.rows):
        if isinstance(row, np.ndarray):
            data.append({"index": index, "logits": encode(row, encoding_format)})
        else:
            data.append({"index": index, "error": problem(row, param=inputs.param, index=index).body()})
    return envelope(model, outcome, data, {"images": inputs.count, "texts": 0})


async def run(
    service: Service,
    model: ServedModel,
    inputs: Inputs[Any],
    kind: Literal["embed", "logits"],
    texts: Sequence[str] = (),
    words: Words | None = None,
) -> Outcome:
    """Decode the images, let the model compute what ``kind`` says of those that could be, embed the texts and words.

    Raises:
        ItemError: every item failed.
        NotReadyError, QueueFullError, DeadlineError: the model is not ready, has too much to do, took too long.
        InputError: a prompt of ``words`` cannot be embedded.
    """
    seen, metrics = observation(), service.metrics
    seen.about(model.name, images=inputs.count, texts=len(texts))
    model.require_ready()
    began, started, settings = time.perf_counter(), time.monotonic(), service.settings
    matrix = words.kept(model.engine) if words else None
    computed = 0 if words is None or matrix is not None else min(words.prompts(model.engine), settings.max_items)
    pixels = (inputs.count + len(texts) + computed) * model.item_pixels
    try:
        waiting = metrics.admitted(model.name, pixels=pixels, items=inputs.count + len(texts))
        with model.admission.admit(pixels, measured=not computed), waiting:
            async with asyncio.timeout(inputs.deadline - started):
                decoded = await decode_all(
                    service.decoders,
                    model.engine,
                    inputs.images,
                    preprocessed=inputs.request.preprocessed,
                    at_once=settings.decode_threads,
                )
                inputs.drop()  # what waits for the model is crops; the files would only wait with them
                decoded_at = time.monotonic()
                metrics.images_decoded(model.name, decoded_at - started)
                rows, queue_s, inference_s = await compute(model, kind, decoded, texts, inputs.deadline)
                for error in (row for row in rows if isinstance(row, Exception)):
                    metrics.item_failed(model.name, problem(error).code)
                if isinstance(rows[0], Exception) and all(isinstance(row, Exception) for row in rows):
                    raise ItemError(rows[0], param=inputs.param if inputs.count else "texts", index=0)
                if words is not None and matrix is None:
                    asked = time.monotonic()
                    matrix = await model.batcher.class_matrix(words.labels, words.templates, inputs.deadline)
                    inference_s += time.monotonic() - asked
    except TimeoutError:
        raise DeadlineError(
            f"No answer within {settings.deadline_s:g} seconds; send fewer images at a time, or try later."
        ) from None
    metrics.queue_left(model.name, queue_s)
    times = {"decode": decoded_at - started, "queue": queue_s, "inference": inference_s}
    seen.staged(began, **times)
    times["total"] = time.monotonic() - started
    return Outcome(rows, matrix, {stage: round(1000 * value, 3) for stage, value in times.items()})


async def compute(
    model: ServedModel,
    kind: Literal["embed", "logits"],
    images: Sequence[np.ndarray | Exception],
    texts: Sequence[str],
    deadline: float,
) -> tuple[list[np.ndarray | Exception], float, float]:
    """Return the row or the error of each image, then of each text; and the seconds waited and computed.

    ``images`` are crops, or errors of those that have none.
    """
    info = model.engine.info
    crops = [image for image in images if isinstance(image, np.ndarray)]
    jobs = [
        model.batcher.submit(kind, crops, deadline),
        model.batcher.submit("texts", texts if info.has_text else (), deadline),
    ]
    try:
        done, said = [await asyncio.wrap_future(job) for job in jobs]
    finally:
        for job in jobs:
            job.cancel()  # changes nothing where it is done
    computed = iter(done.rows)
    rows = [next(computed) if isinstance(image, np.ndarray) else image for image in images]
    rows += said.rows if info.has_text else [no_text(info)] * len(texts)
    inference_s = done.inference_s + said.inference_s
    queue_s = max(done.queue_s + done.inference_s, said.queue_s + said.inference_s) - inference_s
    return rows, max(0.0, queue_s), inference_s


async def aside(function: Callable[[], T], large: bool) -> T:
    """Return ``function()``, computed off the event loop if it is ``large``: a hop to a thread costs 0.1 ms."""
    return await asyncio.to_thread(function) if large else function()


def envelope(
    model: ServedModel, outcome: Outcome, data: list[dict[str, Any]], usage: dict[str, int], **more: object
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
