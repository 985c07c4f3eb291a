"""The model of a segmentation: what gives logits at every pixel, and what is recorded of it.

with closing(load_pixel_model(EvaluateOptions("runs/segment/ckpt.pt"))) as model:
    model.pixels.pixel_logits(images)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from digpt.engine import Engine
from digpt.errors import CapabilityError, near_misses
from digpt.results import ModelRef
from digpt.runtime.base import no_pixels
from digpt.segment_inference import PixelModel
from evaluate.cli import EvaluateOptions, load_engine

CLASSIFIER = "segmentation head"


def _nothing() -> None:
    """Release nothing."""


@dataclass(frozen=True)
class SegmentModel:
    """A loaded model.

    ``classes`` are the names of its labels 0..K-1, ``crop`` the side in pixels of its windows, ``max_batch`` how many
    it takes at once, ``reduce_zero`` whether 0 was no class in the files it was trained on.
    """

    ref: ModelRef
    classes: tuple[str, ...]
    crop: int
    pixels: PixelModel
    close: Callable[[], None] = _nothing
    max_batch: int | None = None
    reduce_zero: bool = False


@dataclass(frozen=True)
class EnginePixels:
    """Any runtime as a `PixelModel`, on the CPU."""

    engine: Engine

    def pixel_logits(self, images: Tensor) -> Tensor:
        """uint8 ``[B,H,W,3]`` -> float32 ``[B,K,H,W]``."""
        return torch.from_numpy(self.engine.pixel_logits(images.numpy()))


def load_pixel_model(options: EvaluateOptions) -> SegmentModel:
    """Load a model that has a segmentation head, on any backend.

    Raises:
        CapabilityError: a model without one.
        SpecError, CheckpointError, BackendError: see ``digpt.runtime.load_runtime``.
    """
    engine = load_engine(options)
    info = engine.info
    if info.head != "upernet" or info.labels is None or info.segment_crop is None:
        engine.close()
        raise no_pixels(info)
    # Torch's own module keeps the logits on its device, where they are resized and compared.
    segmenter = getattr(getattr(getattr(engine.runtime, "model", None), "module", None), "segmenter", None)
    pixels: PixelModel = EnginePixels(engine) if segmenter is None else segmenter
    return SegmentModel(
        ModelRef.of(info, CLASSIFIER),
        info.labels,
        info.segment_crop,
        pixels,
        engine.close,
        info.max_batch,
        info.segment_reduce_zero,
    )


def refuse_other_classes(model: SegmentModel, classes: Sequence[str], data: str) -> None:
    """Raise CapabilityError unless the model's classes are those of the data, in their order."""
    if tuple(classes) == model.classes:
        return
    name, own = model.ref.name, model.classes
    advice = "Give the data that it was trained for (--data or --data-root), or a model of these classes."
    if len(classes) != len(own):
        raise CapabilityError(f"{name} tells {len(own)} classes apart, and {data} show {len(classes)}. {advice}")
    label = next(n for n, (mine, theirs) in enumerate(zip(own, classes, strict=True)) if mine != theirs)
    order = "the same classes in another order" if sorted(classes) == sorted(own) else "other classes"
    close = "" if classes[label] in own else near_misses(classes[label], own)
    raise CapabilityError(
        f"{name} was trained on {order} than {data} has: number {label} is {own[label]!r} for the model and "
        f"{classes[label]!r} in the data.{close} {advice}"
    )
