"""Training data behind one seam: the bundled set in memory, or pictures on disk, named by ``data``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from train.augment import AugmentConfig
from train.config import TrainConfig
from train.data import Batch, emoji_training
from train.share import Share


class TrainingData(Protocol):
    """Endless batches as a function of the step alone."""

    name: str

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def batches(self, first: int, share: Share) -> Iterator[list[Batch]]:
        """For every step from ``first`` on, the micro-batches of one process."""

    def samples(self, count: int) -> Tensor:
        """Some pictures in [0, 1], float32 ``[count,3,S,S]``."""

    def notes(self) -> dict[str, float]:
        """Counters of samples that could not be read."""


def pretraining_data(config: TrainConfig, augment: AugmentConfig, image_size: int) -> TrainingData:
    """The data of a run without labels."""
    return emoji_training(config, augment, image_size)
