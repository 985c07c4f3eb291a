"""What the recipes for photographs share: the paper's settings (section 3.3), and MAE's finetuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.finetune import FinetuneConfig
from train.objective import DigptConfig, MaeConfig
from train.photo_augment import CropConfig
from train.pretrain import PretrainConfig
from train.segment import SegmentTrainConfig
from train.zeroshot import ZeroshotConfig

STATISTICS: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
LARGE: dict[str, Any] = {
    "precision": "bf16",
    "compile": "inductor",
    "log_every": 50,
    "eval_every": 5000,
    "save_every": 1000,
    "workers": 12,
    "threads": 8,
}


def pretraining(
    name: str, variant: str, data: str, epochs: float, warmup_epochs: float, **changes: Any
) -> PretrainConfig:
    """D-iGPT at 224 px with OpenCLIP-H as the teacher and decoders of two blocks of width 1024.

    Under ``--paradigm mae`` the decoder is MAE's own: eight blocks of width 512.
    """
    settings: dict[str, Any] = {
        "teacher": "openclip-h",
        "variant": variant,
        "image_size": 224,
        "depth": None,
        "objective": DigptConfig(),
        "mae": MaeConfig(),
        "crop": CropConfig(scale=(0.2, 1.0)),
        "data": data,
        "batch_size": 4096,
        "epochs": epochs,
        "warmup_epochs": warmup_epochs,
        "base_lr": 1.5e-4,
        "min_lr": 0.0,
        "weight_decay": 0.05,
        "betas": (0.9, 0.95),
        "clip": 0.0,
        "output": Path(f"runs/{name}/pretrain"),
        **STATISTICS,
        **LARGE,
    }
    return PretrainConfig(**{**settings, **changes})


def finetuning(name: str, variant: str, data: str, encoder: str, **changes: Any) -> FinetuneConfig:
    """MAE's finetuning at 224 px; the defaults of ``FinetuneConfig.photo`` are its augmentation."""
    settings: dict[str, Any] = {
        "encoder": encoder,
        "variant": variant,
        "image_size": 224,
        "depth": None,
        "data": data,
        "batch_size": 1024,
        "warmup_epochs": 5,
        "min_lr": 1e-6,
        "weight_decay": 0.05,
        "output": Path(f"runs/{name}/finetune"),
        **LARGE,
    }
    return FinetuneConfig(**{**settings, **changes})


def text_tuning(name: str, variant: str, teacher: str, encoder: str, **changes: Any) -> ZeroshotConfig:
    """CLIPA's finetuning on LAION shards: both towers, one pass over a part of the data."""
    settings: dict[str, Any] = {
        "encoder": encoder,
        "teacher": teacher,
        "variant": variant,
        "image_size": 224,
        "depth": None,
        "data": "wds:data/laion400m",
        "betas": (0.9, 0.95),
        "weight_decay": 0.2,
        "min_lr": 0.0,
        "clip": 1.0,
        "distill": 0.0,
        "output": Path(f"runs/{name}/zeroshot"),
        **LARGE,
        "checkpointing": True,
    }
    return ZeroshotConfig(**{**settings, **changes})


def segmenting(name: str, variant: str, encoder: str, **changes: Any) -> SegmentTrainConfig:
    """UperNet on ADE20K at 512 px by the configurations of mmsegmentation: 160,000 steps of 16 crops."""
    settings: dict[str, Any] = {
        "encoder": encoder,
        "variant": variant,
        "depth": None,
        "data": "ade20k:data/ADEChallengeData2016",
        "crop": 512,
        "batch_size": 16,
        "steps": 160_000,
        "warmup": 1500,
        "weight_decay": 0.05,
        "output": Path(f"runs/{name}/segment"),
        **LARGE,
        "eval_every": 16_000,
        "workers": 4,
    }
    return SegmentTrainConfig(**{**settings, **changes})
