"""Any recipe shrunk to the bundled data: the same objective, schedule and regularisation, in minutes on a laptop.

    python -m train.pretrain b16_in1k --miniature

Kept: paradigm, weight decay, betas, clipping, layer decay, drop path, mixing, smoothing, the power of a polynomial
schedule, and the share of the run that is warm-up. Replaced: data (pictures by the bundled set, masks by scenes
composed from it), sizes of encoder, decoders and heads, teacher, batch, number of steps, learning rate, precision.
The miniature of a text tuning is the bundled set's own task (frozen text tower, its distribution distilled): it does
not run the code that tunes both towers on pairs from disk (``train.imagetext``).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from digpt.errors import ConfigError
from train.config import TrainConfig, load_recipe
from train.finetune import FinetuneConfig
from train.pretrain import PretrainConfig
from train.segment import SegmentTrainConfig
from train.zeroshot import ZeroshotConfig

# What the emoji recipes say about the machine and the data; everything else is the recipe's own.
_MACHINE = ("data", "data_root", "workers", "threads", "precision", "compile", "checkpointing", "steps", "batch_size",
            "accumulate", "log_every", "eval_every", "save_every", "image_size", "variant", "depth",
            "augment")  # fmt: skip
_PRETRAIN = ("teacher", "mean", "std")
_SEGMENT = ("crop", "scale", "ratio", "channels", "aux_channels", "blocks", "reduce_zero", "scenes", "scene_classes",
            "eval_scenes", "splits", "inference")  # fmt: skip


def miniature(config: Any) -> Any:
    """The configuration of a recipe, shrunk to minutes on two CPU cores; folders stand below ``runs/miniature``.

    A stage that starts from another stage's checkpoint starts from that one's miniature.

    Raises:
        ConfigError: the command has no miniature.
    """
    kinds = {
        PretrainConfig: "pretrain",
        FinetuneConfig: "finetune",
        ZeroshotConfig: "zeroshot",
        SegmentTrainConfig: "segment",
    }
    command = kinds.get(type(config))
    if command is None:
        raise ConfigError(f"{type(config).__name__} has no miniature: it is small as it is.")
    small = load_recipe("emoji", command)
    copied = {name: getattr(small, name) for name in _MACHINE if hasattr(small, name)}
    changes: dict[str, Any] = {
        **copied,
        "output": _below(config.output),
        "epochs": None,
        "warmup_epochs": None,
        "base_lr": None,
        "lr": small.lr,
        "min_lr": small.min_lr,
        "warmup": round(small.steps * _warm_share(config)),
        "val_data" if command != "pretrain" else "init": "",
    }
    if command == "pretrain":
        changes |= {name: getattr(small, name) for name in _PRETRAIN}
        for options in ("objective", "mae"):
            sizes = {name: getattr(getattr(small, options), name) for name in ("decoder_width", "decoder_heads")}
            changes[options] = dataclasses.replace(getattr(config, options), **sizes)
    elif config.encoder != "random":
        changes["encoder"] = str(_below(Path(config.encoder)))
    if command == "segment":
        changes |= {name: getattr(small, name) for name in _SEGMENT}
    if command == "zeroshot":
        changes |= {"teacher": small.teacher, "distill": small.distill}
    return dataclasses.replace(config, **changes)


def _below(path: Path) -> Path:
    """``runs/x/pretrain`` -> ``runs/miniature/x/pretrain``."""
    parts = path.parts
    return Path(parts[0], "miniature", *parts[1:]) if parts and parts[0] == "runs" else Path("runs/miniature", path)


def _warm_share(config: TrainConfig) -> float:
    """The share of the run that is warm-up."""
    if config.warmup_epochs is not None and config.epochs:
        return config.warmup_epochs / config.epochs
    return config.warmup / config.steps
