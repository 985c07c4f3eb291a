"""Turns a model spec into a model.

    bundled                       the package's own checkpoint, emoji-tiny
    bundled-teacher               what emoji-tiny was tuned with; bundled-early-teacher: what it was pretrained with
    ckpt.pt                       a digpt checkpoint
    timm:NAME[@FILE]              timm's pretrained weights, or a local file (safetensors, pt)
    open_clip:NAME/TAG_OR_FILE    open_clip's pretrained weights, or a local file
    weights.pth                   the D-iGPT authors' released checkpoints

An artifact directory is a runtime: ``digpt.runtime.load_runtime`` takes that too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from digpt.artifact import Checkpoint, read_checkpoint
from digpt.errors import CheckpointError, ConfigError, SpecError, near_misses
from digpt.model import InferenceModel, TextModel, build_from_config
from digpt.preprocess import Preprocess
from digpt.runtime.base import URLS

BUNDLED = Path(__file__).resolve().parent / "bundled" / "emoji-tiny"
BUNDLED_FILES = {"bundled": "ckpt.pt", "bundled-teacher": "teacher.pt", "bundled-early-teacher": "early_teacher.pt"}
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
FORMS = "bundled, CKPT.pt, an artifact directory, timm:NAME[@FILE], open_clip:NAME/TAG_OR_FILE, an authors' .pth"


@dataclass
class Model:
    """A loaded model with everything needed to use it. ``config`` has the keys of a checkpoint's config.

    ``logit_scale`` is the multiplier itself (not its logarithm). ``labels`` are those of the linear head, or the
    model's own default class names.
    """

    spec: str
    name: str
    module: InferenceModel
    preprocess: Preprocess
    config: dict[str, Any]
    fingerprint: str
    text: TextModel | None = None
    labels: list[str] | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    templates: tuple[str, ...] = ("{}",)
    provenance: dict[str, Any] = field(default_factory=dict)


def load_model(spec: str, *, image_size: int | None = None) -> Model:
    """Load any model spec (see the module's docstring) in float32 on the CPU.

    ``image_size`` rebuilds timm and open_clip models for another input side, by their libraries' own means; of a
    checkpoint the position table is interpolated, see ``at_image_size``.

    Raises:
        SpecError: nothing known is named; the message names what is close, or says what to do.
        CheckpointError: a file that is missing, damaged, foreign or too new.
        ConfigError: the model does not take images of that size.
    """
    family, colon, rest = spec.partition(":")
    if colon and family == "timm":
        from digpt.source_timm import load_timm

        return load_timm(spec, rest, image_size)
    if colon and family == "open_clip":
        from digpt.source_open_clip import load_open_clip

        return load_open_clip(spec, rest, image_size)
    path = checkpoint_path(spec)
    if path.suffix == ".pth":
        from digpt.source_authors import read_authors

        checkpoint = read_authors(path)
    else:
        checkpoint = read_checkpoint(path)
    if image_size is not None:
        checkpoint = at_image_size(checkpoint, image_size, spec)
    return model_from_checkpoint(checkpoint, spec=spec)


def at_image_size(checkpoint: Checkpoint, size: int, spec: str = "checkpoint") -> Checkpoint:
    """The same model for crops of ``size`` pixels a side: another preprocessing, position table and fingerprint.

    What was resized is its parent in the provenance. At its own size a checkpoint is returned as it is.

    Raises:
        ConfigError: a size that is no multiple of the patch, an encoder that is no plain ViT, or a segmenter.
    """
    config, own = checkpoint.config, Preprocess.from_dict(checkpoint.config["preprocess"])
    if size == own.size:
        return checkpoint
    segmenter = (config["head"] or {}).get("type") == "upernet"
    if segmenter or config["architecture"] != "timm":
        what = "a segmenter, which looks through windows of its crop" if segmenter else "no ViT of timm"
        raise ConfigError(f"{spec} is {what}, so it takes no other image size than its own, {own.size}.")
    from digpt.segmentation import at_image_size as resized

    encoder, weights = resized(config["encoder"], checkpoint.weights["encoder"], size)
    return Checkpoint(
        {**config, "encoder": encoder, "preprocess": replace(own, size=size).to_dict()},
        {**checkpoint.weights, "encoder": weights},
        {
            "command": f"--image-size {size}",
            "parents": [{"role": model_name(spec), "fingerprint": checkpoint.fingerprint, **checkpoint.provenance}],
        },
    )


def checkpoint_path(spec: str) -> Path:
    """The file of a spec without a library prefix."""
    if spec in BUNDLED_FILES:
        path = BUNDLED / BUNDLED_FILES[spec]
        if not path.is_file():
            raise SpecError(f"The bundled checkpoint {path} is missing; restore it with git checkout -- {path}.")
        return path
    if spec.startswith(URLS):
        raise SpecError(f"{spec} is a running server, not weights; only a runtime can use it.")
    path = Path(spec)
    if (path / "manifest.json").is_file():
        raise SpecError(f"{spec} is an exported artifact: it runs, but has no weights to load here. Use its ckpt.pt.")
    if path.exists() or path.suffix in CHECKPOINT_SUFFIXES:
        return path
    close = near_misses(spec, [*BUNDLED_FILES, "timm:", "open_clip:"])
    raise SpecError(f"Unknown model {spec!r}.{close} A model is one of: {FORMS}.")


def model_from_checkpoint(checkpoint: Checkpoint, spec: str = "checkpoint") -> Model:
    """Build the model of a checkpoint that is in memory.

    Raises:
        CheckpointError: its weights do not fit its config.
    """
    try:
        module, text = build_from_config(checkpoint.config, checkpoint.weights)
    except CheckpointError as error:
        raise CheckpointError(f"{spec}: {error}") from None
    config = checkpoint.config
    text_config = config["text"] or {}
    return Model(
        spec=spec,
        name=model_name(spec),
        module=module,
        preprocess=Preprocess.from_dict(config["preprocess"]),
        config=config,
        fingerprint=checkpoint.fingerprint,
        text=text,
        labels=config["labels"],
        logit_scale=text_config.get("logit_scale"),
        logit_bias=text_config.get("logit_bias"),
        templates=tuple(text_config.get("templates") or ("{}",)),
        provenance=checkpoint.provenance,
    )


def model_name(spec: str) -> str:
    """A short name for tables and URLs: ``runs/a/ckpt.pt`` -> ``a``, ``timm:vit_tiny@w.pt`` -> ``vit_tiny``."""
    if spec in BUNDLED_FILES:
        return spec.replace("bundled", "emoji-tiny", 1)
    family, colon, rest = spec.partition(":")
    if colon and family == "timm":
        return rest.partition("@")[0]
    if colon and family == "open_clip":
        return rest.partition("/")[0]
    path = Path(spec)
    return path.resolve().parent.name if path.stem == "ckpt" else path.stem
