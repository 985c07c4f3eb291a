"""Batches of images and masks: keyed, shaped, and with unusable pairs replaced and counted."""

from __future__ import annotations

import numpy as np
import torch

from digpt.data.ade20k import MaskSource
from digpt.data.source import SampleError
from train.loader import LoaderConfig
from train.mask_loader import MaskTraining
from train.segment_augment import SegmentAugment
from train.share import Share


class Squares(MaskSource):
    """An image of one grey level whose mask is its number modulo 3."""

    name, classes = "squares", ("a", "b", "c")

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 12

    def read(self, index: int) -> tuple[bytes, bytes]:
        raise AssertionError("pixels are asked for")

    def sample_name(self, index: int) -> str:
        return f"square {index}"

    @property
    def fingerprint(self) -> str:
        return "squares"

    def pixels(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index == self.broken:
            raise SampleError("undecodable", f"square {index} is broken")
        return np.full((20, 20, 3), 10 * index, np.uint8), np.full((20, 20), index % 3, np.uint8)


def training(broken: int | None = None) -> MaskTraining:
    augment = SegmentAugment(crop=16, scale=(20, 20), ratio=(1.0, 1.0), cat_max_ratio=1.0, photometric=None)
    return MaskTraining(Squares(broken), 0, 4, augment, LoaderConfig(workers=0))


def test_a_batch_has_the_masks_of_its_images_and_depends_on_its_step_alone():
    batch = training().batch(5)
    assert batch.images.shape == (4, 3, 16, 16) and batch.images.dtype == torch.uint8
    assert batch.labels.shape == (4, 16, 16) and batch.labels.dtype == torch.int64
    numbers = batch.images[:, 0, 0, 0].long() // 10
    assert torch.equal(batch.labels[:, 0, 0], numbers % 3) and numbers.tolist() == batch.items.tolist()
    steps = training().batches(5, Share())
    assert torch.equal(next(steps)[0].images, batch.images)
    assert batch.to(torch.device("cpu")).images.max() <= 1.0


def test_a_broken_pair_is_replaced_and_counted():
    data = training(broken=3)
    seen = [item for step in range(3) for item in data.batch(step).labels[:, 0, 0].tolist()]
    assert data.notes() == {"bad_samples": 1.0, "bad_samples/undecodable": 1.0}
    assert sorted(seen) == sorted([0, 1, 2] * 3 + [1, 1, 2])  # square 4 stands in for 3
