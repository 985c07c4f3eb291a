"""Batches of images and masks for semantic segmentation, keyed and read like photographs (``train.loader``)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray

from digpt.data.ade20k import MaskSource
from digpt.data.source import SampleError
from digpt.errors import DataError
from train.keyed import keeping_generators, keyed_uniform
from train.loader import ATTEMPTS, SHOWN, SPARE, LoaderConfig, PhotoBatch, PhotoTraining, Reader, Request
from train.segment_augment import SegmentAugment, segment_generator


class _MaskReader(Reader):
    """Reads and augments the pairs of one request; runs in the loader's processes."""

    def __init__(self, source: MaskSource, augment: SegmentAugment, seed: int) -> None:
        self.masks, self.crop, self.seed = source, augment, seed

    def _batch(self, request: Request) -> PhotoBatch:
        errors: Counter[str] = Counter()
        problems: list[str] = []
        with keeping_generators():
            keys = zip(request.epochs.tolist(), request.items.tolist(), strict=True)
            pairs = [self._pair(epoch, index, errors, problems) for epoch, index in keys]
        images = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2).contiguous()
        labels = torch.from_numpy(np.stack([labels for _, labels in pairs])).long()
        draws = torch.from_numpy(keyed_uniform(self.seed, request.epochs, request.items, SPARE))
        place = (request.epochs, request.items, request.step, request.first)
        return PhotoBatch(images, labels, draws, *place, errors=dict(errors), problems=tuple(problems[:SHOWN]))

    def _pair(
        self, epoch: int, index: int, errors: Counter[str], problems: list[str]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image and labels. A bad pair is replaced, keeping the place's key."""
        for attempt in range(ATTEMPTS):
            chosen = self.masks.neighbour(index, attempt) if attempt else index
            try:
                image, labels = self.masks.pixels(chosen)
            except SampleError as error:
                errors[error.kind] += 1
                problems.append(str(error))
            else:
                return self.crop(image, labels, segment_generator(self.seed, epoch, index))
        raise DataError(f"{ATTEMPTS} samples of {self.masks.name} in a row cannot be used; the last: {problems[-1]}")


class MaskTraining(PhotoTraining):
    """Keyed batches: ``images`` uint8 ``[B,3,S,S]`` (float32 in [0, 1] after ``to``), ``labels`` int64 ``[B,S,S]``."""

    def __init__(
        self, source: MaskSource, seed: int, batch_size: int, augment: SegmentAugment, loader: LoaderConfig
    ) -> None:
        self.source, self.seed, self.batch_size, self.loader = source, seed, batch_size, loader
        self.mixes = False
        self.reader = _MaskReader(source, augment, seed)
        self.order = None
        self.errors, self.seen = Counter(), 0
        self._problems: list[str] = []
