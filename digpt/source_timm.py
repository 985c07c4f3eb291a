"""timm's models behind our ``Model``, with timm's own pixels and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import Tensor, nn

from digpt.artifact import fingerprint, require_file
from digpt.errors import SpecError, near_misses
from digpt.model import InferenceModel
from digpt.preprocess import Preprocess
from digpt.sources import Model, model_name
from digpt.weight_files import downloaded, misfit, read_weights

_TIMM_RESIZE = {"center": "shortest", "squash": "squash", "border": "longest"}
_HUB_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")


def load_timm(spec: str, rest: str, image_size: int | None) -> Model:
    """``NAME`` downloads timm's weights, ``NAME@FILE`` reads a local file (safetensors, pt, npz).

    The classifier stays inside the encoder and gives ``logits``; the embedding is what it reads (``pre_logits``).
    """
    name, at, file = rest.partition("@")
    _check_timm_name(spec, name)
    arguments: dict[str, Any] = {"model_name": name}
    if at:
        encoder = _timm_from_file(arguments, Path(file), image_size)
    else:
        encoder = downloaded(spec, f"timm:{name}@FILE", lambda: _create_sized(arguments, image_size, pretrained=True))
    arguments["num_classes"] = encoder.num_classes
    preprocess = timm_preprocess(spec, encoder, arguments.get("img_size", image_size))
    pool, classes, width = getattr(encoder, "global_pool", None), encoder.num_classes, int(encoder.head_hidden_size)
    labels = _imagenet_labels(encoder)
    config: dict[str, Any] = {
        "architecture": "timm",
        "encoder": arguments,
        "preprocess": preprocess.to_dict(),
        "pooling": pool if isinstance(pool, str) and pool else "timm",
        # The classifier stays inside the encoder, so that timm's own names and head options hold.
        "head": {"type": "linear", "in": width, "out": classes, "in_encoder": True} if classes else None,
        "text": None,
        "labels": labels,
        "objective": None,
    }
    module = InferenceModel(encoder, preprocess.mean, preprocess.std, dim=width)
    return Model(
        spec=spec,
        name=model_name(spec),
        module=module.eval(),
        preprocess=preprocess,
        config=config,
        fingerprint=fingerprint({"encoder": encoder.state_dict()}, config),
        labels=labels,
        provenance={"source": spec},
    )


def _check_timm_name(spec: str, name: str) -> None:
    if name.startswith(_HUB_PREFIXES):
        return
    if not timm.is_model(name):
        architecture = name.partition(".")[0]
        raise SpecError(
            f"timm has no model {name!r}.{near_misses(architecture, timm.list_models())} "
            "List them with: python -c \"import timm; print(*timm.list_models('vit*'), sep='\\n')\""
        )
    architecture, dot, tag = name.partition(".")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(architecture + ".*")] if dot else []
    if dot and tag not in tags:
        raise SpecError(
            f"timm has no weights {tag!r} of {architecture}.{near_misses(tag, tags)} "
            f"Valid: {', '.join(tags) or 'none'}."
        )


def _create_sized(arguments: dict[str, Any], image_size: int | None, **options: Any) -> Any:
    """Create the model for ``image_size``; models without the argument (convolutional ones) take any size."""
    if image_size is not None:
        try:
            encoder = timm.create_model(**arguments, **options, img_size=image_size)
        except TypeError:
            return timm.create_model(**arguments, **options)
        arguments["img_size"] = image_size
        return encoder
    return timm.create_model(**arguments, **options)


def _timm_from_file(arguments: dict[str, Any], path: Path, image_size: int | None) -> Any:
    """Build the model that fits the file (number of classes, input size) and load it strictly."""
    require_file(path)
    if path.suffix == ".npz":  # foreign layouts that timm itself converts
        converted = _create_sized(arguments, image_size)
        converted.load_pretrained(str(path))
        return converted
    state = read_weights(path, timm.models.load_state_dict)
    encoder: Any = timm.create_model(**arguments)
    classifier = encoder.pretrained_cfg.get("classifier")
    if isinstance(classifier, str):
        weight = state.get(f"{classifier}.weight")
        arguments["num_classes"] = 0 if weight is None else int(weight.shape[0])
    stored_size = _stored_image_size(encoder, state)
    wanted = image_size or stored_size
    if wanted is not None or arguments.get("num_classes", encoder.num_classes) != encoder.num_classes:
        encoder = _create_sized(arguments, wanted)
    try:
        if image_size is not None and getattr(encoder, "pos_embed", None) is not None:
            from timm.models.vision_transformer import checkpoint_filter_fn  # resamples the position table

            state = checkpoint_filter_fn(state, encoder)
        encoder.load_state_dict(state, strict=True)
    except (RuntimeError, AttributeError) as error:
        raise misfit(path, arguments["model_name"], error) from None
    return encoder


def _stored_image_size(encoder: Any, state: Mapping[str, Tensor]) -> int | None:
    """The input side a ViT file was saved at when it is not the architecture's default, by its position table."""
    stored, own = state.get("pos_embed"), getattr(encoder, "pos_embed", None)
    if stored is None or own is None or stored.ndim != 3 or stored.shape[1] == own.shape[1]:
        return None
    grid_h, grid_w = encoder.patch_embed.grid_size
    side = math.isqrt(stored.shape[1] - (own.shape[1] - grid_h * grid_w))
    return int(side * encoder.patch_embed.patch_size[0])


def timm_preprocess(spec: str, encoder: nn.Module, image_size: int | None = None) -> Preprocess:
    """timm's evaluation transform of a model: ``create_transform(**resolve_model_data_config(model))``."""
    data = resolve_model_data_config(encoder, {"img_size": image_size} if image_size else {})
    channels, height, width = data["input_size"]
    if channels != 3 or height != width:
        raise SpecError(f"{spec} takes {channels} x {height} x {width} inputs; only square RGB ones are supported.")
    mean = tuple(data["mean"])
    return Preprocess(
        size=height,
        resize=_TIMM_RESIZE[data["crop_mode"]],  # type: ignore[arg-type]
        crop_pct=data["crop_pct"],
        interpolation=data["interpolation"],
        mean=mean,
        std=tuple(data["std"]),
        alpha="drop",
        exif=False,
        fill=tuple(round(255 * v) for v in mean) if data["crop_mode"] == "border" else (0, 0, 0),
    )


def _imagenet_labels(encoder: nn.Module) -> list[str] | None:
    """The label names of an ImageNet classifier, recognised by its number of classes as timm does."""
    subset = infer_imagenet_subset(encoder) if getattr(encoder, "num_classes", 0) else None
    if not subset:
        return None
    info = ImageNetInfo(subset)
    return [info.index_to_description(index) for index in range(info.num_classes())]
