"""Batches of the bundled data set for training: decoded once, then a pure function of (seed, epoch, index)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from digpt.data.emoji import SIZE, TRAIN_STYLES, EmojiSet
from digpt.data.source import seeded_choice
from digpt.errors import ConfigError
from train.augment import DRAWS, AugmentConfig, augment, compose_on_white
from train.config import TrainConfig
from train.keyed import keyed_permutations, keyed_uniform, sample_stream
from train.share import Share


@dataclass(frozen=True)
class Batch:
    """``images`` float32 RGB ``[B,3,S,S]`` in [0, 1]; ``labels`` int64 ``[B]``; ``draws`` ``[B,k]`` uniforms.

    ``step`` and ``first`` say where it belongs: the step, and its first row in the global batch.
    """

    images: Tensor
    labels: Tensor
    draws: Tensor
    epochs: np.ndarray
    items: np.ndarray
    step: int
    first: int

    def permutations(self, seed: int, size: int, orders: int = 1) -> Tensor:
        """``orders`` permutations of ``range(size)`` per sample, int64 ``[B*orders,size]``, keyed like the rest."""
        return torch.from_numpy(keyed_permutations(seed, self.epochs, self.items, size, orders))

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        if device.type == "cpu":
            return self
        images, labels, draws = (t.to(device, non_blocking=True) for t in (self.images, self.labels, self.draws))
        return replace(self, images=images, labels=labels, draws=draws)


class EmojiTraining:
    """The training images (``seen``) in memory as uint8 RGBA ``[N,4,64,64]``, and keyed batches of them.

    ``limit``: of a seeded choice of so many only; the splits to evaluate on stay whole.
    """

    SPARE = 4  # uniforms handed on with each sample
    name = "emoji"

    def __init__(
        self,
        seed: int,
        batch_size: int,
        config: AugmentConfig,
        root: Path | None = None,
        image_size: int = SIZE,
        limit: int | None = None,
    ) -> None:
        if image_size != SIZE:
            raise ConfigError(
                f"image_size={image_size}: the bundled images are {SIZE} px and are trained on as they are."
            )
        self.emoji = EmojiSet.load(root)
        self.seed, self.batch_size, self.config = seed, batch_size, config
        rgba, concepts = self.emoji.rgba_array("seen")
        self.limited = limit is not None and limit < len(rgba)
        if limit is not None and self.limited:
            chosen = seeded_choice(len(rgba), limit)
            rgba, concepts = rgba[chosen], concepts[chosen]
        self.rgba = torch.from_numpy(np.ascontiguousarray(rgba.transpose(0, 3, 1, 2)))
        self.concepts = torch.from_numpy(concepts)

    @property
    def fingerprint(self) -> str:
        """Of the data set's decoded pixels and metadata, and of how many images are used."""
        return self.emoji.fingerprint + (f"-limit{len(self)}" if self.limited else "")

    def __len__(self) -> int:
        return len(self.rgba)

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """``rows`` of the batch of one step (default: all); every epoch visits each training image once."""
        rows = rows or slice(0, self.batch_size)
        epochs, items = (part[rows] for part in sample_stream(step, self.batch_size, len(self), self.seed))
        draws = torch.from_numpy(keyed_uniform(self.seed, epochs, items, DRAWS + self.SPARE))
        chosen = torch.from_numpy(items)
        images = augment(self.rgba[chosen], draws[:, :DRAWS], self.config)
        return Batch(images, self.concepts[chosen], draws[:, DRAWS:], epochs, items, step, rows.start)

    def batches(self, first: int, share: Share) -> Iterator[list[Batch]]:
        """For every step from ``first`` on, the micro-batches of one process."""
        for step in itertools.count(first):
            yield [self.batch(step, rows) for rows in share.rows(self.batch_size)]

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Un-augmented images of a split over white, float32 ``[N,3,64,64]`` in [0, 1], and their concepts ``[N]``."""
        rgba, concepts = self.emoji.rgba_array(name)
        tensor = torch.from_numpy(np.ascontiguousarray(rgba.transpose(0, 3, 1, 2))).float() / 255
        return compose_on_white(tensor), torch.from_numpy(concepts)

    def notes(self) -> dict[str, float]:
        """Counters of samples that could not be read: none here."""
        return {}

    def pictures(self, count: int) -> Tensor:
        """Some pictures in [0, 1], float32 ``[count,3,S,S]``, to look at a target with."""
        return self.split("val")[0][:count]

    def reference(self) -> tuple[Tensor, Tensor]:
        """Noto and Twemoji training images, for kNN: Fluent 3D is left out because ``flat`` is its twin."""
        chosen = torch.tensor([image.style in TRAIN_STYLES[:2] for image in self.emoji.images("seen")])
        images, concepts = self.split("seen")
        return images[chosen], concepts[chosen]


def emoji_training(config: TrainConfig, augment: AugmentConfig, image_size: int) -> EmojiTraining:
    """The bundled set for a training command.

    Raises:
        ConfigError: the configuration names other data, which this command cannot use.
    """
    if config.data != "emoji":
        raise ConfigError(f"This command trains on the bundled data only: --data emoji, not {config.data!r}.")
    return EmojiTraining(config.seed, config.batch_size, augment, config.data_root, image_size, config.limit)
