"""Decides whether an engine may be shipped: its answers against torch float32, on real images.

    report = measure(reference, candidate, crops, labels)
    report.passed, report.faults

Both sides are runtimes, so that every backend is measured by the same few lines.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from digpt.engine import Engine
from digpt.runtime.base import Runtime
from digpt.runtime.golden import row_cosine
from digpt.runtime.precision import THRESHOLDS, Thresholds

BATCH_SIZES = (1, 2, 3, 7, 64)


@dataclass(frozen=True)
class ParityReport:
    """What was measured and what was asked for. Absent capabilities (text, a head) are None.

    ``max_abs_error`` is over all values of the embeddings as the model gives them; ``batch_sizes`` maps each size that
    was tried to its lowest cosine. ``faults`` are sentences; an engine without any has passed.
    """

    images: int
    cosine_median: float
    cosine_min: float
    max_abs_error: float
    batch_sizes: dict[str, float]
    agreement: float | None
    classes: int | None
    text_cosine_min: float | None
    logits_max_abs_error: float | None
    patch_tokens_max_abs_error: float | None
    pixel_agreement: float | None
    pixel_logits_max_abs_error: float | None
    precision: str
    thresholds: Thresholds
    faults: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with ``passed``."""
        return {**asdict(self), "faults": list(self.faults), "passed": self.passed}


def measure(
    reference: Runtime, candidate: Runtime, crops: np.ndarray, labels: Sequence[str], precision: str = "fp32"
) -> ParityReport:
    """Compare ``candidate`` with ``reference`` on ``crops`` uint8 ``[n,H,W,3]`` and, through text, on ``labels``.

    Agreement is that of zero-shot classification among ``labels`` where there is a text tower, else that of the
    linear head, else None. Patch tokens and a segmenter's pixels are compared on a sixteenth of the crops.
    """
    thresholds = THRESHOLDS[precision]
    ours, theirs = Engine(reference), Engine(candidate)
    expected = ours.embed_images(crops, normalize=False)
    live = theirs.embed_images(crops, normalize=False, batch_size=max(BATCH_SIZES))
    cosine = row_cosine(live, expected)
    figures: dict[str, Any] = {
        "images": len(crops),
        "cosine_median": float(np.median(cosine)),
        "cosine_min": float(cosine.min()),
        "max_abs_error": _max_abs(live, expected),
        "batch_sizes": {str(size): _batch_cosine(theirs, crops, expected, size) for size in BATCH_SIZES},
        "agreement": None,
        "classes": None,
        "text_cosine_min": None,
        "logits_max_abs_error": None,
        "patch_tokens_max_abs_error": None,
        "pixel_agreement": None,
        "pixel_logits_max_abs_error": None,
    }
    few = crops[: max(3, len(crops) // 16)]
    if reference.info.head == "linear":
        logits = [engine.logits(crops) for engine in (ours, theirs)]
        figures["logits_max_abs_error"] = _max_abs(*logits)
        figures["classes"] = logits[0].shape[1]
        figures["agreement"] = _agreement(*logits)
    if candidate.info.has_text:
        figures |= _text_figures(ours, theirs, (expected, live), labels)
    if candidate.info.patch_tokens:
        figures["patch_tokens_max_abs_error"] = _max_abs(ours.patch_tokens(few), theirs.patch_tokens(few))
    if reference.info.head == "upernet":
        figures |= _pixel_figures(ours, theirs, few)
    faults = find_faults(figures, thresholds)
    return ParityReport(**figures, precision=precision, thresholds=thresholds, faults=faults)


def find_faults(figures: dict[str, Any], thresholds: Thresholds) -> tuple[str, ...]:
    """The sentences for every figure beyond its threshold; a figure that is not a number is beyond it."""
    lowest = {"cosine_median": thresholds.cosine_median, "agreement": thresholds.agreement}
    lowest["pixel_agreement"] = thresholds.agreement
    lowest |= {name: thresholds.cosine_min for name in ("cosine_min", "text_cosine_min")}
    faults = [
        f"{name} is {figures[name]:.7f}, below {bound}"
        for name, bound in lowest.items()
        if figures.get(name) is not None and not figures[name] >= bound
    ]
    faults += [
        f"cosine_min at batch size {size} is {cosine:.7f}, below {thresholds.cosine_min}"
        for size, cosine in figures["batch_sizes"].items()
        if not cosine >= thresholds.cosine_min
    ]
    return tuple(faults)


def _text_figures(
    ours: Engine, theirs: Engine, embeddings: tuple[np.ndarray, np.ndarray], labels: Sequence[str]
) -> dict[str, Any]:
    expected, live = (engine.class_matrix(labels) for engine in (ours, theirs))
    return {
        "classes": len(labels),
        "text_cosine_min": float(row_cosine(live, expected).min()),
        "agreement": _agreement(Engine.similarity(embeddings[0], expected), Engine.similarity(embeddings[1], live)),
    }


def _pixel_figures(ours: Engine, theirs: Engine, crops: np.ndarray) -> dict[str, Any]:
    """One, two and three crops at a time, in turn: logits of all pixels are large."""
    equal, largest, rest, sizes = 0, 0.0, crops, itertools.cycle((1, 2, 3))
    while len(rest):
        size = next(sizes)
        part, rest = rest[:size], rest[size:]
        expected, live = (engine.pixel_logits(part) for engine in (ours, theirs))
        equal += int((live.argmax(axis=1) == expected.argmax(axis=1)).sum())
        largest = max(largest, float(np.abs(live - expected).max()))
    return {
        "classes": expected.shape[1],
        "pixel_agreement": equal / crops[..., 0].size,
        "pixel_logits_max_abs_error": largest,
    }


def _batch_cosine(engine: Engine, crops: np.ndarray, expected: np.ndarray, size: int) -> float:
    """Lowest cosine when exactly ``size`` images go through at once (repeating images where there are fewer)."""
    rows = np.arange(size) % len(crops)
    live = engine.embed_images(crops[rows], normalize=False, batch_size=size)
    return float(row_cosine(live, expected[rows]).min())


def _max_abs(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())
