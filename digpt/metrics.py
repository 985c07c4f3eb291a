"""Metrics and their uncertainty, in numpy: top-k with fixed tie-breaking, multi-label, per class, bootstrap.

Shapes: N images, C classes, K of them kept.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digpt.resampling import BOOTSTRAP_RESAMPLES, Resamples

Score = TypeVar("Score", bound=np.floating)


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
    _check_range(targets, scores.shape[1], "Targets")
    if np.isnan(scores).any():
        raise ValueError("Scores hold NaN.")
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < targets[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1, dtype=np.int64)


def topk_correct(scores: NDArray[np.floating], targets: NDArray[np.integer], k: int) -> NDArray[np.bool_]:
    """Return bool ``[N]``: is the target among the k best scores? See `target_ranks` for shapes, ties and errors."""
    return target_ranks(scores, targets) < k


def multilabel_correct(scores: NDArray[np.floating], label_lists: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
    """Return bool ``[N]``: is the best class of each image one of its labels?

    This is ReaL accuracy (Beyer et al. 2020, "Are we done with ImageNet?"), which leaves images without labels out:
    the caller does, together with their scores.

    Args:
        scores: ``[N, C]``, larger is likelier; of equal scores the smaller class wins.
        label_lists: N lists of at least one class in ``0..C-1``.

    Raises:
        ValueError: shapes or labels out of range, an image without labels, or scores that hold NaN.
    """
    scores = _checked_scores(scores)
    lengths = np.array([len(labels) for labels in label_lists], dtype=np.int64)
    if len(lengths) != len(scores):
        raise ValueError(f"{len(scores)} images need as many lists of labels, got {len(lengths)}.")
    if not lengths.all():
        raise ValueError(f"{int((lengths == 0).sum())} images have no label; leave them out, with their scores.")
    labels = np.array([label for labels in label_lists for label in labels], dtype=np.int64)
    _check_range(labels, scores.shape[1], "Labels")
    images = np.repeat(np.arange(len(scores)), lengths)
    hits = labels == scores.argmax(axis=1)[images]
    return np.bincount(images[hits], minlength=len(scores)) > 0


def restrict(scores: NDArray[Score], classes: ArrayLike) -> NDArray[Score]:
    """Keep the columns ``classes`` of ``scores [N, C]``, in that order: ``[N, K]``.

    ImageNet-A and -R name 200 of the 1000 classes, and only these compete there (hendrycks/natural-adv-examples and
    hendrycks/imagenet-r slice the logits before ``argmax``). `relabel` turns labels into positions in ``classes``.

    Raises:
        ValueError: scores that are not ``[N, C]`` or hold NaN, or classes that repeat or lie outside ``0..C-1``.
    """
    checked = _checked_scores(scores)
    kept: NDArray[Score] = checked[:, _checked_classes(classes, checked.shape[1])]
    return kept


def relabel(labels: ArrayLike, classes: ArrayLike) -> NDArray[np.int64]:
    """Return the position in ``classes [K]`` of each label: int64 ``[N]`` in ``0..K-1``.

    Raises:
        ValueError: classes that repeat, or a label that is none of them.
    """
    wanted, known = np.asarray(labels, dtype=np.int64), _checked_classes(classes)
    order = np.argsort(known)
    found = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
    strange = np.unique(wanted[known[found] != wanted])
    if len(strange):
        raise ValueError(f"Labels {strange[:5].tolist()} are not among the {len(known)} classes that were kept.")
    return found.astype(np.int64)


def per_class_accuracy(
    correct: ArrayLike, labels: ArrayLike, n_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the accuracy of each class, float64 ``[C]`` in 0..1, and its number of images, int64 ``[C]``.

    A class without images has accuracy NaN.

    Args:
        correct: bool ``[N]``.
        labels: int ``[N]`` in ``0..C-1``.
        n_classes: C.

    Raises:
        ValueError: shapes that differ, or labels out of range.
    """
    hits, classes = np.asarray(correct, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if hits.ndim != 1 or hits.shape != classes.shape:
        raise ValueError(f"Answers and labels are lists of one length, got shapes {hits.shape} and {classes.shape}.")
    _check_range(classes, n_classes, "Labels")
    counts = np.bincount(classes, minlength=n_classes).astype(np.int64)
    right = np.bincount(classes, hits, minlength=n_classes)
    return np.divide(right, counts, out=np.full(n_classes, np.nan), where=counts > 0), counts


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
    are all alike give an interval of no width: no resample can show what was never seen. Several figures on the same
    images share one `digpt.resampling.Resamples` instead, which gives the same interval.

    Raises:
        ValueError: no values, NaN or infinity among them, or a number of ids other than that of the values.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not data.size:
        raise ValueError(f"A bootstrap needs a list of at least one value, got shape {data.shape}.")
    if clusters is not None and np.shape(clusters) != data.shape:
        raise ValueError(f"{len(data)} values need as many cluster ids, got shape {np.shape(clusters)}.")
    resamples = Resamples(len(data) if clusters is None else clusters, seed=seed, n_resamples=n)
    return resamples.interval(resamples.means(data), level)


def _checked_scores(scores: NDArray[Score]) -> NDArray[Score]:
    scores = np.asarray(scores)
    if scores.ndim != 2:
        raise ValueError(f"Scores must be [N, C], not of shape {scores.shape}.")
    if np.isnan(scores).any():
        raise ValueError("Scores hold NaN.")
    return scores


def _checked_classes(classes: ArrayLike, n_classes: int | None = None) -> NDArray[np.int64]:
    array = np.asarray(classes, dtype=np.int64)
    if array.ndim != 1 or not array.size or len(np.unique(array)) != len(array):
        raise ValueError("Classes to keep must be a list of at least one class, each named once.")
    if n_classes is not None:
        _check_range(array, n_classes, "Classes")
    return array


def _check_range(labels: NDArray[np.integer], n_classes: int, what: str) -> None:
    if labels.size and (labels.min() < 0 or labels.max() >= n_classes):
        raise ValueError(f"{what} must lie in 0..{n_classes - 1}.")


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
