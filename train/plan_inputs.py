"""What a plan has to know of data and encoders that may not be here yet: how many images, which shapes."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from digpt.data.ade20k import ADE20K_CLASSES, ADE20K_COUNTS, open_masks
from digpt.data.emoji import EmojiSet
from digpt.data.images import open_images
from digpt.errors import ConfigError
from digpt.segmentation import SegmentConfig
from train.config import TrainConfig
from train.segment import SCENES, SegmentTrainConfig, segment_heads, start_segmenter
from train.starts import start_encoder

# Training images: ImageNet-1K (ILSVRC 2012), ImageNet-21K (fall 2011), the paper's count of the merged set, and ADE20K.
PUBLISHED = {
    "in1k": 1_281_167,
    "in21k": 14_197_122,
    "intermediate": 14_197_122,
    "merged": 36_000_000,
    "ade20k": ADE20K_COUNTS["train"],
}
TITLES = {
    "in1k": "ImageNet-1K",
    "in21k": "ImageNet-21K",
    "intermediate": "ImageNet-21K",
    "merged": "the merged set",
    "ade20k": "ADE20K",
}
JPEG_BYTES = 115_440  # ImageNet-1K's training archive, 147,897,477,120 bytes, by its images


def images_in(recipe: str, command: str, config: TrainConfig, given: int | None) -> int | None:
    """How many images the training data has; None where the recipe counts steps and nobody needs to know.

    Data on this machine are listed; a recipe's published set is known by name, before anybody has it.

    Raises:
        ConfigError: the recipe counts epochs of a data set whose size is unknown.
        DataError: the data are here and cannot be listed.
    """
    if given is not None:
        return given
    if isinstance(config, SegmentTrainConfig) and config.data == SCENES:
        return min(config.scenes, config.limit or config.scenes)
    if config.data == "emoji":
        size = len(EmojiSet.load(config.data_root).images("seen"))
        return min(size, config.limit or size)
    if _is_here(config):
        if isinstance(config, SegmentTrainConfig):
            zero = config.reduce_zero or None
            return len(open_masks(config.data, "train", reduce_zero=zero, limit=config.limit))
        return len(open_images(config.data, split="train", limit=config.limit))
    name = _published(recipe, command, config)
    if name is not None:
        return min(PUBLISHED[name], config.limit or PUBLISHED[name])
    if config.epochs is None:
        return None
    raise ConfigError(f"How many images --data {config.data} holds is not known: add --images N.")


def bytes_of(config: TrainConfig, images: int | None) -> int | None:
    """Their size on disk, at ImageNet's mean; None where nobody can know: the number, or masks and what they show."""
    if images is None or config.data == "emoji" or isinstance(config, SegmentTrainConfig):
        return None
    return images * JPEG_BYTES


def size_note(recipe: str, command: str, config: TrainConfig, images: int | None) -> list[str]:
    """What to say where the size of the data is not their own."""
    name = _published(recipe, command, config)
    if config.data == "emoji" or name is None or _is_here(config):
        return []
    return [f"{config.data} is not listed here: {images:,} images, by {TITLES[name]}; --images N says otherwise"]


def _is_here(config: TrainConfig) -> bool:
    """Whether the training data can be listed."""
    kind, _, path = config.data.partition(":")
    return kind in ("folder", "tar", "ade20k", "masks") and Path(path).exists()


def _published(recipe: str, command: str, config: TrainConfig) -> str | None:
    """The key in ``PUBLISHED`` of the set that a recipe trains on: of ADE20K by the data, of others by its name."""
    if command == "segment":
        return "ade20k" if config.data.startswith("ade20k:") else None
    name = recipe.rpartition("_")[2]
    if command == "finetune" and name != "intermediate":
        return "in1k"
    return name if name in PUBLISHED else None


# --------------------------------------------------------------------------------------------------------- the shapes


def tuned_encoder(config: Any) -> tuple[dict[str, Any], list[str]]:
    """timm's arguments of the encoder that is tuned: its checkpoint's, or the configuration's while there is none."""
    missing = _missing(config.encoder)
    start = "random" if missing else config.encoder
    options = start_encoder(start, config.variant, config.image_size, config.depth).config
    return options, _taken_for(config) if missing else []


def planned_segmenter(config: SegmentTrainConfig) -> tuple[dict[str, Any], SegmentConfig, list[str]]:
    """timm's arguments of the encoder, the heads over it, and what was assumed about them."""
    missing = _missing(config.encoder)
    with torch.device("meta") if missing else nullcontext():  # shapes are enough where nothing is read
        options = start_segmenter(dataclasses.replace(config, encoder="random") if missing else config)[0]
    notes = _taken_for(config) if missing else []
    classes: tuple[str, ...] = ADE20K_CLASSES
    if config.data == SCENES:
        classes = tuple(str(number) for number in range(config.scene_classes))
    elif _is_here(config):
        classes = open_masks(config.data, "train", reduce_zero=config.reduce_zero or None).classes
    elif not config.data.startswith("ade20k:"):
        notes.append(f"the heads are counted with ADE20K's {len(classes)} classes: {config.data} is not listed here")
    return options, segment_heads(config, options, classes), notes


def _missing(encoder: str) -> bool:
    return encoder.endswith((".pt", ".pth")) and not Path(encoder).is_file()


def _taken_for(config: Any) -> list[str]:
    return [f"{config.encoder} is not there yet: taken to be a {config.variant}"]
