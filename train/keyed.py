"""Randomness as a pure function of (seed, epoch, index): no stream to save, so a resumed run repeats itself exactly.

Every use has a number of its own (``ORDER``, ``AUGMENT``, ...) in the key, so that no two share their bits.

The generator is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), used as a counter-based hash and vectorised by NumPy.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ORDER, AUGMENT, PERMUTE, SHARDS, PHOTO, MIX, DROP, SEGMENT, CHANNELS = 1, 2, 3, 4, 5, 6, 7, 8, 9


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def keyed_bits(
    seed: int, epoch: NDArray[np.int64], index: NDArray[np.int64], count: int, use: int
) -> NDArray[np.uint64]:
    """Return 64 random bits per draw, uint64 ``[B,count]``, for ``epoch`` and ``index`` of shape ``[B]``."""
    with np.errstate(over="ignore"):
        key = _mix(np.atleast_1d(np.uint64(seed & 0xFFFFFFFFFFFFFFFF)) + _GOLDEN)
        key = _mix(key + np.uint64(use))
        key = _mix(key + epoch.astype(np.uint64) * _GOLDEN + np.uint64(1))
        key = _mix(key + index.astype(np.uint64) * _GOLDEN + np.uint64(2))
        draws = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        return _mix(key[:, None] + draws[None])


def keyed_uniform(seed: int, epoch: NDArray[np.int64], index: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Return float32 ``[B,count]`` in [0, 1) for augmentation, a function of (seed, epoch, index) alone."""
    bits = keyed_bits(seed, epoch, index, count, AUGMENT) >> np.uint64(40)
    return bits.astype(np.float32) * np.float32(2.0**-24)


def keyed_order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Return a permutation of ``range(size)`` for one epoch."""
    numbers = np.arange(size, dtype=np.int64)
    return _sorting(keyed_bits(seed, np.full(size, epoch), numbers, 1, ORDER)[:, 0])


def _sorting(bits: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The stable ``argsort``. The other kind is several times faster, and equal unless two of the numbers are."""
    order = np.argsort(bits)
    ordered = bits[order]
    if (ordered[1:] == ordered[:-1]).any():
        order = np.argsort(bits, kind="stable")
    return order.astype(np.int64, copy=False)


def keyed_permutations(
    seed: int, epoch: NDArray[np.int64], index: NDArray[np.int64], size: int, orders: int = 1
) -> NDArray[np.int64]:
    """Return ``orders`` permutations of ``range(size)`` per sample, int64 ``[B*orders,size]``, a sample's together."""
    bits = keyed_bits(seed, epoch, index, size * orders, PERMUTE).reshape(-1, size)
    return np.argsort(bits, axis=1, kind="stable").astype(np.int64)


@lru_cache(maxsize=2)  # a batch may span two epochs; the order of 14 million images takes seconds and 112 MB
def _epoch_order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    order = keyed_order(seed, epoch, size)
    order.flags.writeable = False
    return order


def sample_stream(step: int, batch_size: int, size: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (epoch, item), int64 ``[batch_size]`` each: the samples of one step in an endless shuffled stream.

    Every epoch visits each of ``size`` items once, whatever the batch size; a batch may span two epochs.
    """
    epochs, position = _positions(step, batch_size, size)
    items = np.empty_like(position)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        items[chosen] = _epoch_order(seed, int(epoch), size)[position[chosen]]
    return epochs, items


def _positions(step: int, batch_size: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(epoch, position in it), int64 ``[batch_size]`` each, of one step."""
    counter = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    return counter // size, counter % size


class WindowedOrder:
    """An order that stays within ``window`` shards at a time, for data too large to be read in any order.

    Every epoch the shards are permuted, and the samples of every ``window`` consecutive ones are shuffled together. It
    is a function of (seed, epoch, position), and needs memory for the shards and two windows, not for all samples.
    """

    def __init__(self, seed: int, counts: NDArray[np.int64], window: int) -> None:
        if window < 1:
            raise ValueError(f"window={window}")
        self.seed, self.counts, self.window = seed, np.asarray(counts, dtype=np.int64), window
        self.starts = np.cumsum(self.counts) - self.counts
        self._epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._windows: dict[tuple[int, int], NDArray[np.int64]] = {}

    def stream(self, step: int, batch_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `sample_stream`, in this order."""
        epochs, position = _positions(step, batch_size, int(self.counts.sum()))
        items = np.empty_like(position)
        for epoch in np.unique(epochs):
            shards, ends = self._epoch(int(epoch))
            number = np.searchsorted(ends, position, side="right")
            for window in np.unique(number[epochs == epoch]):
                chosen = (epochs == epoch) & (number == window)
                first = int(ends[window - 1]) if window else 0
                items[chosen] = self._pool(int(epoch), int(window), shards)[position[chosen] - first]
        return epochs, items

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards' permutation, and the position where each window of them ends."""
        if epoch not in self._epochs:
            numbers = np.arange(len(self.counts), dtype=np.int64)
            bits = keyed_bits(self.seed, np.full(len(numbers), epoch), numbers, 1, SHARDS)[:, 0]
            shards = np.argsort(bits, kind="stable").astype(np.int64)
            sums = np.add.reduceat(self.counts[shards], np.arange(0, len(shards), self.window))
            _keep_two(self._epochs, epoch, (shards, np.cumsum(sums)))
        return self._epochs[epoch]

    def _pool(self, epoch: int, window: int, shards: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples of one window, shuffled."""
        key = (epoch, window)
        if key not in self._windows:
            pooled = shards[window * self.window : (window + 1) * self.window]
            items = np.concatenate([np.arange(self.counts[shard]) + self.starts[shard] for shard in pooled])
            bits = keyed_bits(self.seed, np.full(len(items), epoch), items, 1, ORDER)[:, 0]
            _keep_two(self._windows, key, items[_sorting(bits)])
        return self._windows[key]


def _keep_two(cache: dict[Any, Any], key: object, value: object) -> None:
    """A batch spans two epochs or windows at most, unless they are smaller than a batch."""
    while len(cache) >= 2:
        cache.pop(next(iter(cache)))
    cache[key] = value


@contextmanager
def keeping_generators() -> Iterator[None]:
    """Give the global generators of Python, NumPy and torch (on the CPU) back as they were found."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_generators(bits: NDArray[np.uint64]) -> None:
    """Seed the same three with 64 bits each, uint64 ``[3]``, for libraries that draw from nothing else."""
    random.seed(int(bits[0]))
    np.random.seed([int(bits[1]) & 0xFFFFFFFF, int(bits[1]) >> 32])
    torch.default_generator.manual_seed(int(bits[2]) >> 1)  # not torch.manual_seed: it would seed the GPUs as well
