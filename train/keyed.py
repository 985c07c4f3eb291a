"""Randomness as a pure function of (seed, epoch, index): no stream to save, so a resumed run repeats itself exactly.

Every use has a number of its own (``ORDER``, ``AUGMENT``, ``PERMUTE``) in the key, so that no two share their bits.

The generator is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), used as a counter-based hash and vectorised by NumPy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ORDER, AUGMENT, PERMUTE = 1, 2, 3


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
    return np.argsort(keyed_bits(seed, np.full(size, epoch), numbers, 1, ORDER)[:, 0], kind="stable").astype(np.int64)


def keyed_permutations(seed: int, epoch: NDArray[np.int64], index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return one permutation of ``range(size)`` per sample, int64 ``[B,size]``."""
    return np.argsort(keyed_bits(seed, epoch, index, size, PERMUTE), axis=1, kind="stable").astype(np.int64)


def sample_stream(step: int, batch_size: int, size: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (epoch, item), int64 ``[batch_size]`` each: the samples of one step in an endless shuffled stream.

    Every epoch visits each of ``size`` items once, whatever the batch size; a batch may span two epochs.
    """
    counter = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, position = counter // size, counter % size
    items = np.empty_like(counter)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        items[chosen] = keyed_order(seed, int(epoch), size)[position[chosen]]
    return epochs, items
