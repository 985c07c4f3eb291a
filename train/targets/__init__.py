"""What to learn from: a teacher's tokens, pixels, or a tokenizer's codes (``target_from_spec``)."""

from __future__ import annotations

from typing import Any

from digpt.errors import ConfigError, SpecError, near_misses
from train.objective.spaces import TargetKind
from train.targets.base import Target, VisionTarget
from train.targets.check import CodeReport, PixelReport, TargetReport, TeacherReport, check_teacher
from train.targets.codes import CodeTarget, code_target, load_tokenizer
from train.targets.convolution import ConvolutionTarget, is_convolutional
from train.targets.named import NAMED, NamedTeacher, named_teacher
from train.targets.open_clip_vision import OpenClipTarget
from train.targets.pixels import PixelTarget
from train.targets.skeleton import teacher_skeleton
from train.targets.timm_vit import TimmVitTarget


def target_from_spec(spec: str, image_size: int | tuple[int, int], patch_size: int | None = None) -> Target:
    """The target named by ``spec``, at the student's crop ``image_size`` and patch ``patch_size``.

    ``pixels``; ``codes:FILE``, a tokenizer; a teacher's name (``clip-l``, see ``NAMED``), with ``NAME@FILE`` for its
    weights in a local file; or what ``digpt.sources.load_model`` takes: ``open_clip:NAME/TAG_OR_FILE``,
    ``timm:NAME[@FILE]``, ``ckpt.pt``, ``bundled-teacher``. A model is loaded at its own size, then its position table
    is interpolated. Only pixels and codes need ``patch_size``.

    Raises:
        SpecError, CheckpointError: as ``load_model``.
        ConfigError: the model has no patch tokens, or its patch does not divide the crop.
    """
    kind = target_kind(spec)
    if kind != "tokens":
        if patch_size is None:
            raise ConfigError(f"The target {spec!r} needs the student's patch size.")
        if kind == "pixels":
            return PixelTarget(patch_size, image_size)
        return code_target(spec.partition(":")[2], image_size, patch_size)
    named = named_teacher(spec)
    if named is not None:
        teacher, file = named
        return target_from_model(_load(teacher.spec(file)), image_size, pool=teacher.pool)
    return target_from_model(_load(spec), image_size)


def target_kind(spec: str) -> TargetKind:
    """The kind of target that ``spec`` names, without loading it."""
    if spec == "pixels":
        return "pixels"
    return "codes" if spec.partition(":")[0] == "codes" else "tokens"


def _load(spec: str) -> Any:
    from digpt.sources import load_model

    try:
        return load_model(spec)
    except SpecError as error:
        close = near_misses(spec.lower(), [*NAMED, "pixels", "codes:FILE"]) if ":" not in spec else ""
        raise SpecError(f"{error}{close and f' Among teachers:{close}'}") from None


def target_from_model(
    model: Any, image_size: int | tuple[int, int], quick_gelu: bool = False, pool: str = ""
) -> VisionTarget:
    """The teacher of a loaded ``digpt.sources.Model``, with the statistics of its preprocessing.

    ``pool`` overrides how a timm model pools its class target.
    """
    if pool:
        model.module.encoder.global_pool = pool
    target = _build_target(model, image_size, quick_gelu)
    target.fingerprint = f"{model.fingerprint}/{pool}" if pool else model.fingerprint
    target.provenance = dict(model.provenance)
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
    "NAMED",
    "CodeReport",
    "CodeTarget",
    "ConvolutionTarget",
    "NamedTeacher",
    "OpenClipTarget",
    "PixelReport",
    "PixelTarget",
    "Target",
    "TargetReport",
    "TeacherReport",
    "TimmVitTarget",
    "VisionTarget",
    "check_teacher",
    "load_tokenizer",
    "named_teacher",
    "target_from_model",
    "target_from_spec",
    "target_kind",
    "teacher_skeleton",
]
