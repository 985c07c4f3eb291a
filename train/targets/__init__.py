"""Teachers: frozen vision towers whose tokens are the pretraining target. ``target_from_spec(spec, image_size)``."""

from __future__ import annotations

from typing import Any

from digpt.errors import ConfigError
from train.targets.base import Target, VisionTarget
from train.targets.check import TeacherReport, check_teacher
from train.targets.convolution import ConvolutionTarget, is_convolutional
from train.targets.open_clip_vision import OpenClipTarget
from train.targets.timm_vit import TimmVitTarget


def target_from_spec(spec: str, image_size: int | tuple[int, int]) -> VisionTarget:
    """The teacher named by a model spec, at the student's crop ``image_size``.

    Takes what ``digpt.sources.load_model`` takes: ``open_clip:NAME/TAG_OR_FILE``, ``timm:NAME[@FILE]``, ``ckpt.pt``,
    ``bundled-teacher``. The model is loaded at its own size, then its position table is interpolated.

    Raises:
        SpecError, CheckpointError: as ``load_model``.
        ConfigError: the model has no patch tokens, or its patch does not divide the crop.
    """
    from digpt.sources import load_model

    return target_from_model(load_model(spec), image_size)


def target_from_model(model: Any, image_size: int | tuple[int, int], quick_gelu: bool = False) -> VisionTarget:
    """The teacher of a loaded ``digpt.sources.Model``, with the statistics of its preprocessing."""
    target = _build_target(model, image_size, quick_gelu)
    target.fingerprint, target.provenance = model.fingerprint, dict(model.provenance)
    return target


def _build_target(model: Any, image_size: int | tuple[int, int], quick_gelu: bool) -> VisionTarget:
    encoder, mean, std = model.module.encoder, model.preprocess.mean, model.preprocess.std
    projection = getattr(model.module, "projection", None)
    if model.config["architecture"] == "timm":
        return TimmVitTarget(encoder, image_size, mean, std, projection)
    if projection is not None:
        raise ConfigError("An open_clip tower with a further projection head cannot teach; use the tower itself.")
    if is_convolutional(encoder):
        return ConvolutionTarget(encoder, image_size, mean, std)
    return OpenClipTarget(encoder, image_size, mean, std, quick_gelu)


__all__ = [
    "ConvolutionTarget",
    "OpenClipTarget",
    "Target",
    "TeacherReport",
    "TimmVitTarget",
    "VisionTarget",
    "check_teacher",
    "target_from_model",
    "target_from_spec",
]
