"""Training data behind one seam: the bundled set in memory, or pictures on disk, named by ``data``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from digpt.data.images import open_images
from digpt.errors import ConfigError
from train.augment import AugmentConfig, normalise
from train.config import TrainConfig
from train.data import Batch, EmojiTraining, emoji_training
from train.loader import LoaderConfig, PhotoBatch, PhotoTraining
from train.photo_augment import CropConfig, FinetuneAugment, check_pairs, mix
from train.share import Share


class TrainingData(Protocol):
    """Endless batches as a function of the step alone."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def batches(self, first: int, share: Share) -> Iterator[list[Batch]] | Iterator[list[PhotoBatch]]:
        """For every step from ``first`` on, the micro-batches of one process."""

    def pictures(self, count: int) -> Tensor:
        """Some pictures in [0, 1], float32 ``[count,3,S,S]``."""

    def notes(self) -> dict[str, float]:
        """Counters of samples that could not be read."""


def pretraining_data(config: TrainConfig, augment: AugmentConfig, crop: CropConfig, image_size: int) -> TrainingData:
    """The data of a run without labels."""
    if config.data == "emoji":
        return emoji_training(config, augment, image_size)
    source = open_images(config.data, split="train", limit=config.limit, cache=config.output)
    return PhotoTraining(source, config.seed, config.batch_size, crop, image_size, loader(config))


def refuse_unused(given: frozenset[str], data: str, *names: str) -> None:
    """Raise ConfigError when the command line gave an option that ``data`` have no use for."""
    for name in names:
        if any(flag.removeprefix("no_").partition(".")[0] == name for flag in given):
            raise ConfigError(f"--{name.replace('_', '-')} changes nothing with --data {data}: leave it out.")


def loader(config: TrainConfig) -> LoaderConfig:
    """How pictures are read."""
    return LoaderConfig(config.workers, config.prefetch, config.window, config.max_errors)


class EmojiClasses:
    """The bundled set with the emoji's subgroups as classes, mixed and smoothed as photographs are."""

    name = "emoji"

    def __init__(self, config: TrainConfig, augment: AugmentConfig, tune: FinetuneAugment, image_size: int) -> None:
        self.emoji = emoji_training(config, augment, image_size)
        self.tune, self.seed = tune, config.seed
        concepts = self.emoji.emoji.concepts
        self.classes = tuple(sorted({concept.subgroup for concept in concepts}))
        self.number = torch.tensor([self.classes.index(concept.subgroup) for concept in concepts])

    @property
    def fingerprint(self) -> str:
        return self.emoji.fingerprint

    def __len__(self) -> int:
        return len(self.emoji)

    def batches(self, first: int, share: Share) -> Iterator[list[PhotoBatch]]:
        """See ``TrainingData``; ``targets`` are soft labels float32 ``[B,classes]``.

        Raises:
            ConfigError: a micro-batch cuts a pair of images in two.
        """
        for rows in share.rows(self.emoji.batch_size) if self.tune.mixes else ():
            check_pairs(rows.start, rows.stop - rows.start)
        return ([self._mixed(batch) for batch in step] for step in self.emoji.batches(first, share))

    def _mixed(self, batch: Batch) -> PhotoBatch:
        labels = self.number[batch.labels]
        images, targets = mix(
            normalise(batch.images, self.tune.mean, self.tune.std),
            labels,
            seed=self.seed,
            step=batch.step,
            first_row=batch.first,
            config=self.tune,
            num_classes=len(self.classes),
        )
        place = (batch.epochs, batch.items, batch.step, batch.first)
        return PhotoBatch(images, labels, batch.draws, *place, targets=targets)

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Un-augmented images in [0, 1], float32 ``[N,3,S,S]``, and their classes, int64 ``[N]``."""
        images, concepts = self.emoji.split(name)
        return images, self.number[concepts]

    def notes(self) -> dict[str, float]:
        """None: every image is in memory."""
        return {}


class PhotoClasses(PhotoTraining):
    """Labelled pictures on disk, augmented, mixed and smoothed; ``named`` says whether they name their classes."""

    classes: tuple[str, ...]

    def __init__(self, config: TrainConfig, tune: FinetuneAugment, image_size: int, count: int = 0) -> None:
        source = open_images(config.data, split="train", limit=config.limit, cache=config.output)
        self.named = source.classes is not None
        if not self.named and not count:
            raise ConfigError(f"{source.name} does not name its classes: say how many there are with --classes N.")
        self.classes = source.classes or tuple(str(number) for number in range(count))
        super().__init__(
            source, config.seed, config.batch_size, tune, image_size, loader(config), num_classes=len(self.classes)
        )


def finetuning_data(
    config: TrainConfig, augment: AugmentConfig, tune: FinetuneAugment, image_size: int, classes: int = 0
) -> EmojiClasses | PhotoClasses:
    """The labelled data of a run; ``classes`` is their number where the data do not tell.

    Raises:
        ConfigError: the data do not tell and it is 0, or they tell another number.
    """
    data: EmojiClasses | PhotoClasses
    if config.data == "emoji":
        data = EmojiClasses(config, augment, tune, image_size)
    else:
        data = PhotoClasses(config, tune, image_size, classes)
    if classes not in (0, len(data.classes)):
        raise ConfigError(f"{data.name} names {len(data.classes)} classes, not {classes}: leave --classes out.")
    return data


__all__ = [
    "EmojiClasses",
    "EmojiTraining",
    "PhotoClasses",
    "TrainingData",
    "finetuning_data",
    "pretraining_data",
    "refuse_unused",
]
