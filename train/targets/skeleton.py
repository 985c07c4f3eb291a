"""Targets without their weights, for planning: shapes and parameter counts, nothing downloaded."""

from __future__ import annotations

from typing import Any, cast

import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel

from digpt.errors import ConfigError, SpecError, near_misses
from digpt.model import build_encoder
from digpt.source_open_clip import needs_quick_gelu
from train.targets.base import Target, VisionTarget
from train.targets.convolution import ConvolutionTarget, is_convolutional
from train.targets.named import NamedTeacher, named_teacher
from train.targets.open_clip_vision import OpenClipTarget
from train.targets.timm_vit import TimmVitTarget


def teacher_skeleton(
    spec: str,
    image_size: int | tuple[int, int],
    patch_size: int | None = None,
    *,
    layers: int | None = None,
    device: str = "meta",
) -> Target:
    """The target of ``spec`` as ``target_from_spec`` would give it, but with fresh weights, on ``device``.

    Named teachers and ``timm:`` and ``open_clip:`` specs are built from their architecture alone; other specs are local
    files, which are read. ``layers`` keeps only so many blocks: a dry run of the real widths, patches and pooling.

    Raises:
        SpecError: a name that neither library knows.
        ConfigError: as ``target_from_spec``; ``layers`` for something that is not a vision transformer.
    """
    teacher = _parse(spec)
    if teacher is None:
        from train.targets import target_from_spec

        target = target_from_spec(spec, image_size, patch_size)
        return cast(Target, target.to(device))
    built = _open_clip_target if teacher.library == "open_clip" else _timm_target
    target = built(teacher, image_size, layers, torch.device(device))
    target.provenance = {"source": spec, "weights": "none"}
    return target


def _parse(spec: str) -> NamedTeacher | None:
    """The library, model and tag of a spec; None for anything else than a library's model."""
    named = named_teacher(spec)
    if named is not None:
        return named[0]
    family, _, rest = spec.partition(":")
    if family == "timm":
        name, _, tag = rest.partition("@")[0].partition(".")
        return NamedTeacher("timm", name, tag)
    if family == "open_clip":
        name, _, tag = rest.partition("/")
        return NamedTeacher("open_clip", name, tag)
    return None


def _timm_target(
    teacher: NamedTeacher, image_size: int | tuple[int, int], layers: int | None, device: torch.device
) -> VisionTarget:
    if not timm.is_model(teacher.model):
        raise SpecError(f"timm has no model {teacher.model!r}.{near_misses(teacher.model, timm.list_models())}")
    name = f"{teacher.model}.{teacher.tag}" if teacher.tag else teacher.model
    options: dict[str, Any] = {} if layers is None else {"depth": layers}
    try:
        with device:
            model: Any = timm.create_model(name, pretrained=False, **options)
    except TypeError:
        raise ConfigError(f"{teacher.model} cannot be built with {layers} blocks.") from None
    if teacher.pool:
        model.global_pool = teacher.pool
    return TimmVitTarget(model, image_size)


def _open_clip_target(
    teacher: NamedTeacher, image_size: int | tuple[int, int], layers: int | None, device: torch.device
) -> VisionTarget:
    library = open_clip.get_model_config(teacher.model)
    if library is None:
        known = open_clip.list_models()
        raise SpecError(f"open_clip has no model {teacher.model!r}.{near_misses(teacher.model, known)}")
    vision, wrapped = dict(library["vision_cfg"]), "timm_model_name" in library["vision_cfg"]
    vision.pop("timm_model_pretrained", None)
    if layers is not None and not wrapped:
        vision["layers"] = layers
    quick_gelu = library.get("quick_gelu", False) or needs_quick_gelu(teacher.model, teacher.tag)
    arguments = {"embed_dim": library["embed_dim"], "vision_cfg": vision, "quick_gelu": quick_gelu}
    with torch.device("meta") if wrapped and layers is not None else device:
        visual: Any = build_encoder({"architecture": "open_clip", "encoder": arguments})[0]
    if wrapped and layers is not None:
        _shorten(visual, layers, device)
    pretrained = open_clip.get_pretrained_cfg(teacher.model, teacher.tag) or {}
    mean = pretrained.get("mean", open_clip.OPENAI_DATASET_MEAN)
    std = pretrained.get("std", open_clip.OPENAI_DATASET_STD)
    kind = ConvolutionTarget if is_convolutional(visual) else OpenClipTarget
    return kind(visual, image_size, mean, std)


def _shorten(visual: Any, layers: int, device: torch.device) -> None:
    """Exchange the trunk of open_clip's wrapper for one of ``layers`` blocks; open_clip itself cannot shorten it."""
    trunk = visual.trunk
    if not isinstance(visual, TimmModel) or not hasattr(trunk, "blocks") or len(visual.head):
        raise ConfigError(f"A {type(trunk).__name__} in open_clip's wrapper cannot be built with {layers} blocks.")
    name, options = trunk.pretrained_cfg["architecture"], {"num_classes": trunk.num_classes, "depth": layers}
    with device:
        visual.trunk = timm.create_model(name, pretrained=False, global_pool=trunk.global_pool, **options)
