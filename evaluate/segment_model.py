"""The model of a segmentation: what gives logits at every pixel, and what is recorded of it.

with closing(load_pixel_model(EvaluateOptions("runs/segment/ckpt.pt"))) as model:
    model.pixels.pixel_logits(images)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from digpt.artifact import read_checkpoint
from digpt.errors import BackendError, CapabilityError, near_misses
from digpt.preprocess import Preprocess
from digpt.results import ModelRef
from digpt.segment_inference import PixelModel
from digpt.segmentation import HEAD_TYPE, build_segmenter
from digpt.sources import model_name
from evaluate.cli import EvaluateOptions

CLASSIFIER = "segmentation head"


def _nothing() -> None:
    """Release nothing."""


@dataclass(frozen=True)
class SegmentModel:
    """A loaded model: ``classes`` are the names of its labels 0..K-1, ``crop`` the side in pixels of its windows."""

    ref: ModelRef
    classes: tuple[str, ...]
    crop: int
    pixels: PixelModel
    close: Callable[[], None] = _nothing


def load_pixel_model(options: EvaluateOptions) -> SegmentModel:
    """Load a checkpoint that has a segmentation head.

    Raises:
        CapabilityError: a model without one.
        BackendError: a backend other than torch.
        CheckpointError: a file that is missing, damaged or does not fit.
    """
    spec = options.spec
    if options.backend not in (None, "torch"):
        raise BackendError(f"The {options.backend} backend cannot segment here; leave --backend out.")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    refusal = (
        f"{spec} has no segmentation head: give a checkpoint that was trained on masks, such as runs/segment/ckpt.pt."
    )
    if not Path(spec).is_file() and Path(spec).suffix != ".pt":
        raise CapabilityError(refusal)
    checkpoint = read_checkpoint(spec)
    if (checkpoint.config["head"] or {}).get("type") != HEAD_TYPE:
        raise CapabilityError(refusal)
    segmenter = build_segmenter(checkpoint.config, checkpoint.weights)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    ref = ModelRef(
        spec=spec,
        fingerprint=checkpoint.fingerprint,
        backend="torch",
        name=model_name(spec),
        precision="fp32",
        has_text=False,
        preprocess=Preprocess.from_dict(checkpoint.config["preprocess"]).to_dict(),
        templates=(),
        classifier=CLASSIFIER,
    )
    return SegmentModel(ref, segmenter.config.classes, segmenter.config.crop, segmenter.to(chosen))


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
