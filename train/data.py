"""Batches of the bundled data set for training: decoded once, then a pure function of (seed, epoch, index)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from digpt.data.emoji import SIZE, TRAIN_STYLES, EmojiSet
from digpt.errors import ConfigError
from train.augment import DRAWS, AugmentConfig, augment, compose_on_white
from train.keyed import keyed_permutations, keyed_uniform, sample_stream


@dataclass(frozen=True)
class Batch:
    """``images`` float32 RGB ``[B,3,S,S]`` in [0, 1]; ``concepts`` int64 ``[B]``; ``draws`` ``[B,k]`` uniforms."""

    images: Tensor
    concepts: Tensor
    draws: Tensor
    epochs: np.ndarray
    items: np.ndarray

    def permutations(self, seed: int, size: int) -> Tensor:
        """One permutation of ``range(size)`` per sample, int64 ``[B,size]``, keyed like the augmentation."""
        return torch.from_numpy(keyed_permutations(seed, self.epochs, self.items, size))


class EmojiTraining:
    """The training images (``seen``) in memory as uint8 RGBA ``[N,4,64,64]``, and keyed batches of them."""

    SPARE = 4  # uniforms handed on with each sample

    def __init__(
        self, seed: int, batch_size: int, config: AugmentConfig, root: Path | None = None, image_size: int = SIZE
    ) -> None:
        if image_size != SIZE:
            raise ConfigError(
                f"image_size={image_size}: the bundled images are {SIZE} px and are trained on as they are."
            )
        self.emoji = EmojiSet.load(root)
        self.seed, self.batch_size, self.config = seed, batch_size, config
        rgba, concepts = self.emoji.rgba_array("seen")
        self.rgba = torch.from_numpy(np.ascontiguousarray(rgba.transpose(0, 3, 1, 2)))
        self.concepts = torch.from_numpy(concepts)

    @property
    def fingerprint(self) -> str:
        """Of the data set's decoded pixels and metadata."""
        return self.emoji.fingerprint

    def __len__(self) -> int:
        return len(self.rgba)

    def batch(self, step: int) -> Batch:
        """The batch of one step: every epoch visits each training image once."""
        epochs, items = sample_stream(step, self.batch_size, len(self), self.seed)
        draws = torch.from_numpy(keyed_uniform(self.seed, epochs, items, DRAWS + self.SPARE))
        chosen = torch.from_numpy(items)
        images = augment(self.rgba[chosen], draws[:, :DRAWS], self.config)
        return Batch(images, self.concepts[chosen], draws[:, DRAWS:], epochs, items)

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Un-augmented images of a split over white, float32 ``[N,3,64,64]`` in [0, 1], and their concepts ``[N]``."""
        rgba, concepts = self.emoji.rgba_array(name)
        tensor = torch.from_numpy(np.ascontiguousarray(rgba.transpose(0, 3, 1, 2))).float() / 255
        return compose_on_white(tensor), torch.from_numpy(concepts)

    def reference(self) -> tuple[Tensor, Tensor]:
        """Noto and Twemoji training images, for kNN: Fluent 3D is left out because ``flat`` is its twin."""
        chosen = torch.tensor([image.style in TRAIN_STYLES[:2] for image in self.emoji.images("seen")])
        images, concepts = self.split("seen")
        return images[chosen], concepts[chosen]
