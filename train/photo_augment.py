"""Augmentation of photographs from timm's building blocks, made a function of (seed, epoch, index).

timm draws from the global generators of Python, NumPy and torch. Here they are seeded for every sample from keyed bits,
and given back afterwards, so that neither the order of the work nor its division among processes changes a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from torch import Tensor

from digpt.decode import Alpha, decode
from digpt.errors import ConfigError
from train.keyed import MIX, PHOTO, keeping_generators, keyed_bits, seed_generators

Triple = tuple[float, float, float]
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class CropConfig:
    """Pretraining: a random resized crop and a flip. Images come as uint8 and are normalised on the device.

    ``scale`` is the share of the area that the crop keeps, ``ratio`` its width by its height; both as torchvision
    draws them. ``draft`` lets JPEG decode at a reduced scale from which even the smallest crop need not be enlarged.
    """

    scale: tuple[float, float] = (0.2, 1.0)  # share of the area that the crop keeps
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # its width by its height
    flip: float = 0.5  # probability of a mirror image
    interpolation: str = "bicubic"  # of the resize
    alpha: Alpha = "white"  # what becomes of transparency: white below, or dropped
    exif: bool = True  # turn the picture as its EXIF orientation says
    draft: bool = False  # let JPEG decode at a reduced scale

    def transform(self, size: int) -> Callable[[Image.Image], Tensor]:
        """A PIL image to uint8 ``[3,size,size]``."""
        return create_transform(
            size,
            is_training=True,
            scale=self.scale,
            ratio=self.ratio,
            hflip=self.flip,
            color_jitter=None,  # type: ignore[arg-type]  # as timm itself understands it
            auto_augment=None,
            interpolation=self.interpolation,
            normalize=False,
        )


@dataclass(frozen=True)
class FinetuneAugment:
    """Finetuning as in MAE (https://arxiv.org/abs/2111.06377, table 9), images normalised before erasing and mixing.

    ``randaugment`` is timm's string; ``erasing`` a probability, its pixels normal noise; ``mixup`` and ``cutmix`` the
    alphas of their Beta distributions, 0 for off; ``switch_prob`` the share of cutmix; ``smoothing`` of the labels.
    """

    scale: tuple[float, float] = (0.08, 1.0)  # share of the area that the crop keeps
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # its width by its height
    flip: float = 0.5  # probability of a mirror image
    interpolation: str = "bicubic"  # of the resize
    randaugment: str = "rand-m9-mstd0.5-inc1"  # timm's string; empty: off
    color_jitter: float = 0.0  # only without randaugment, as in timm
    erasing: float = 0.25  # probability that a part is erased
    erasing_mode: str = "pixel"  # what fills it, in timm's words
    mixup: float = 0.8  # alpha of mixup's Beta distribution; 0: off
    cutmix: float = 1.0  # alpha of cutmix's; 0: off
    mix_prob: float = 1.0  # probability that a batch is mixed
    switch_prob: float = 0.5  # share of cutmix among the mixed
    smoothing: float = 0.1  # of the labels
    mean: Triple = _IMAGENET_MEAN  # statistics that images are normalised with
    std: Triple = _IMAGENET_STD  # likewise
    alpha: Alpha = "white"  # what becomes of transparency: white below, or dropped
    exif: bool = True  # turn the picture as its EXIF orientation says
    draft: bool = False  # let JPEG decode at a reduced scale

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return self.mix_prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    def transform(self, size: int) -> Callable[[Image.Image], Tensor]:
        """A PIL image to normalised float32 ``[3,size,size]``."""
        return create_transform(
            size,
            is_training=True,
            scale=self.scale,
            ratio=self.ratio,
            hflip=self.flip,
            color_jitter=self.color_jitter or None,  # type: ignore[arg-type]
            auto_augment=self.randaugment or None,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            re_prob=self.erasing,
            re_mode=self.erasing_mode,
        )


class PhotoAugment:
    """File bytes and a key to a training image: decode, crop, flip, and what the configuration adds.

    ``augment(data, epoch, index)`` returns uint8 ``[3,size,size]`` for `CropConfig`, normalised float32 for
    `FinetuneAugment`. It leaves the global generators seeded: wrap a batch in ``keyed.keeping_generators``.
    """

    def __init__(self, config: CropConfig | FinetuneAugment, size: int, seed: int) -> None:
        self.config, self.size, self.seed = config, size, seed
        # A crop of the smallest area has about this share of the image's side.
        self.draft_size = math.ceil(size / math.sqrt(config.scale[0])) if config.draft else None
        self._transform = config.transform(size)

    def decode(self, data: bytes) -> Image.Image:
        """File bytes to RGB, oriented and over white as for inference.

        Raises:
            InputError: damaged, of an unknown format, or too large.
        """
        config = self.config
        return decode(data, alpha=config.alpha, exif=config.exif, draft=config.draft, size=self.draft_size)

    def __call__(self, data: bytes, epoch: int, index: int) -> Tensor:
        image = self.decode(data)
        seed_generators(keyed_bits(self.seed, np.array([epoch]), np.array([index]), 3, PHOTO)[0])
        return self._transform(image)


def mix(
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    step: int,
    first_row: int,
    config: FinetuneAugment,
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """Mix the rows ``2k`` and ``2k+1`` of the global batch with timm's `Mixup`, drawn from (seed, step, k).

    Args:
        images: float ``[B,3,S,S]``, normalised; changed in place.
        labels: int64 ``[B]``.
        first_row: where these rows begin in the global batch.

    Returns:
        The images, and soft targets float32 ``[B,num_classes]`` whose rows sum to 1.

    Raises:
        ConfigError: the rows do not consist of whole pairs, or a label is outside the classes.
    """
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ConfigError(
            f"Labels reach from {int(labels.min())} to {int(labels.max())}, but there are {num_classes} classes."
        )
    if not config.mixes:
        return images, smooth(labels, num_classes, config.smoothing)
    timm_mixup = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mix_prob,
        switch_prob=config.switch_prob,
        label_smoothing=config.smoothing,
        num_classes=num_classes,
    )
    check_pairs(first_row, len(images))
    pairs = np.arange(first_row // 2, (first_row + len(images)) // 2, dtype=np.int64)
    bits = keyed_bits(seed, np.full(len(pairs), step), pairs, 3, MIX)
    targets = []
    with keeping_generators():
        for number, pair in enumerate(bits):
            rows = slice(2 * number, 2 * number + 2)
            seed_generators(pair)
            targets.append(timm_mixup(images[rows], labels[rows])[1])
    return images, torch.cat(targets)


def check_pairs(first_row: int, rows: int) -> None:
    """Raise ConfigError unless ``rows`` from ``first_row`` on are whole pairs of the global batch."""
    if first_row % 2 or rows % 2:
        raise ConfigError(
            f"Mixup works on pairs of images, and a micro-batch of {rows} cuts one in two: use an even one (batch_size "
            "divided by processes and accumulate), or mixup=0 and cutmix=0."
        )


def smooth(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """One-hot targets float32 ``[B,num_classes]`` with label smoothing."""
    targets = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - smoothing + smoothing / num_classes)
