"""Metrics and their uncertainty, in numpy: top-k with fixed tie-breaking, percentile bootstrap.

Shapes: N images, C classes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

BOOTSTRAP_RESAMPLES = 1000
_CHUNK_DRAWS = 4_000_000  # resampled indices held at a time: 32 MB


def target_ranks(scores: NDArray[np.floating], targets: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return how many classes stand before the target of each image, int64 ``[N]``; 0 is a top-1 hit.

    Equal scores stand in class order, as ``argmax`` has it: a model that gives every class the same score is not
    credited with every answer.

    Args:
        scores: ``[N, C]``, larger is likelier.
        targets: int ``[N]`` in ``0..C-1``.

    Raises:
        ValueError: shapes or targets out of range, or scores that hold NaN.
    """
    scores, targets = np.asarray(scores), np.asarray(targets, dtype=np.int64)
    if scores.ndim != 2 or targets.shape != scores.shape[:1]:
        raise ValueError(f"Scores [N, C] and targets [N] do not fit: {scores.shape} and {targets.shape}.")
    if targets.size and (targets.min() < 0 or targets.max() >= scores.shape[1]):
        raise ValueError(f"Targets must lie in 0..{scores.shape[1] - 1}.")
    if np.isnan(scores).any():
        raise ValueError("Scores hold NaN.")
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < targets[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1, dtype=np.int64)


def topk_correct(scores: NDArray[np.floating], targets: NDArray[np.integer], k: int) -> NDArray[np.bool_]:
    """Return bool ``[N]``: is the target among the k best scores? See `target_ranks` for shapes, ties and errors."""
    return target_ranks(scores, targets) < k


def bootstrap_ci(
    values: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    seed: int = 0,
    n: int = BOOTSTRAP_RESAMPLES,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval ``(low, high)`` of the mean of ``values``.

    Without ``clusters`` the values are resampled; with them (one id per value) whole clusters are, and a resample's
    mean is its sum over its count, for values that are not independent: several drawings of one concept. Values that
    are all alike give an interval of no width: no resample can show what was never seen.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval).

    Raises:
        ValueError: no values, or a number of ids other than that of the values.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not data.size:
        raise ValueError(f"A bootstrap needs a list of at least one value, got shape {data.shape}.")
    sums, counts = _per_cluster(data, clusters)
    generator = np.random.default_rng(seed)
    means = np.empty(n)
    step = max(1, _CHUNK_DRAWS // len(sums))
    for start in range(0, n, step):
        draws = generator.integers(0, len(sums), size=(min(step, n - start), len(sums)))
        means[start : start + step] = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _per_cluster(
    values: NDArray[np.float64], clusters: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum and the count of the values of each cluster; every value is its own without ``clusters``."""
    if clusters is None:
        return values, np.ones_like(values)
    ids = np.asarray(clusters)
    if ids.shape != values.shape:
        raise ValueError(f"{len(values)} values need as many cluster ids, got shape {ids.shape}.")
    _, inverse = np.unique(ids, return_inverse=True)
    return np.bincount(inverse, values).astype(np.float64), np.bincount(inverse).astype(np.float64)


# Two-sided 95 % quantiles of Student's t, by degrees of freedom from 1 on.
_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


def t_half_width(values: Sequence[float]) -> float:
    """Half of the 95 % t-interval of the mean of 2 to 21 values, such as one figure over several seeds.

    Raises:
        ValueError: fewer or more values.
    """
    if not 2 <= len(values) <= len(_T_95) + 1:
        raise ValueError(f"{len(values)} values: an interval over seeds is given for 2 to {len(_T_95) + 1}.")
    return _T_95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
