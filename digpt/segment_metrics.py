"""Figures of semantic segmentation in numpy: confusion matrix, mIoU, mAcc, aAcc, and the bootstrap of mIoU.

    matrix = sum(confusion(prediction, label, 150) for prediction, label in pairs)
    Scores.of(matrix).miou

Intersections and unions are summed over the whole set before they are divided, as mmsegmentation's ``IoUMetric`` does:
a mean of the images' own mIoU is another figure. Shapes: K classes, N images, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digpt.resampling import Resamples


def confusion(prediction: ArrayLike, label: ArrayLike, n_classes: int, ignore: int = 255) -> NDArray[np.int64]:
    """Count pixels by label (rows) and prediction (columns): int64 ``[K,K]``.

    Pixels whose label is ``ignore`` count nowhere, not even in the union of what was predicted there.

    Args:
        prediction: integers of any shape, in ``0..K-1`` wherever the label counts.
        label: integers of the same shape, in ``0..K-1`` or ``ignore``.
        n_classes: K.
        ignore: the label of pixels that do not count.

    Raises:
        ValueError: shapes that differ, or a class out of range.
    """
    predicted, wanted = np.asarray(prediction), np.asarray(label)
    if predicted.shape != wanted.shape:
        raise ValueError(f"Prediction {predicted.shape} and label {wanted.shape} must be of one shape.")
    counted = wanted != ignore
    predicted, wanted = predicted[counted].astype(np.int64), wanted[counted].astype(np.int64)
    for values, what in ((predicted, "Predictions"), (wanted, "Labels")):
        if values.size and not 0 <= values.min() <= values.max() < n_classes:
            raise ValueError(f"{what} must lie in 0..{n_classes - 1}, got {values.min()}..{values.max()}.")
    cells = np.bincount(wanted * n_classes + predicted, minlength=n_classes**2)
    return cells.reshape(n_classes, n_classes).astype(np.int64)


def class_parts(matrix: ArrayLike) -> NDArray[np.int64]:
    """Pixels of each class in a confusion matrix ``[K,K]``: intersection, predicted, labelled; int64 ``[K,3]``.

    All that the figures here need, at 3 numbers a class instead of K: what to keep of every image.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"A confusion matrix is [K, K], not of shape {counts.shape}.")
    return np.stack([counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)], axis=1)


@dataclass(frozen=True, eq=False)
class Scores:
    """Figures of a set, as fractions in 0..1.

    Attributes:
        iou: float64 ``[K]``, intersection over union; NaN for a class that is neither labelled nor predicted. A class
            that is predicted but nowhere labelled has 0, as in mmsegmentation.
        accuracy: float64 ``[K]``, the share of its labelled pixels that were found; NaN for a class without any.
        miou: mean of ``iou`` over the classes that have one.
        macc: mean of ``accuracy``, likewise.
        aacc: share of all labelled pixels that are right.

    The three means are NaN when no pixel is labelled.
    """

    iou: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    miou: float
    macc: float
    aacc: float

    @classmethod
    def of(cls, matrix: ArrayLike) -> Scores:
        """From a confusion matrix ``[K,K]``, the sum over the set; see `confusion`."""
        return cls.of_parts(class_parts(matrix))

    @classmethod
    def of_parts(cls, parts: ArrayLike) -> Scores:
        """From `class_parts` ``[K,3]``, summed over the set."""
        counts = _checked_parts(parts, 2)
        intersection, _, labelled = np.moveaxis(counts, -1, 0)
        iou, accuracy = _iou(counts), _ratio(intersection, labelled)
        overall = _ratio(intersection.sum(), labelled.sum())
        return cls(iou, accuracy, float(_present_mean(iou)), float(_present_mean(accuracy)), float(overall))


def scores_resampled(parts: ArrayLike, resamples: Resamples) -> dict[str, NDArray[np.float64]]:
    """The means of `Scores` on each bootstrap resample of the images: float64 ``[R]`` by name (miou, macc, aacc).

    Every resample sums intersections and unions over its own images; a class that it lacks is left out of its mean,
    and one without any labelled pixel has NaN.

    Args:
        parts: `class_parts` of every image, ``[N,K,3]``.
        resamples: of the N images; models to be compared share one object.

    Raises:
        ValueError: parts of another shape or number of images.
    """
    counts = _checked_parts(parts, 3)
    sums = resamples.sums(counts.reshape(len(counts), -1))
    counts = sums.reshape(len(sums), *counts.shape[1:])
    hits, _, labelled = np.moveaxis(counts, -1, 0)
    return {
        "miou": _present_mean(_iou(counts)),
        "macc": _present_mean(_ratio(hits, labelled)),
        "aacc": _ratio(hits.sum(axis=1), labelled.sum(axis=1)),
    }


def miou_resampled(parts: ArrayLike, resamples: Resamples) -> NDArray[np.float64]:
    """mIoU of each bootstrap resample of the images, ``[R]``; see `scores_resampled`."""
    return scores_resampled(parts, resamples)["miou"]


def _checked_parts(parts: ArrayLike, ndim: int) -> NDArray[np.float64]:
    counts = np.asarray(parts, dtype=np.float64)
    if counts.ndim != ndim or counts.shape[-1] != 3:
        shape = "[K, 3]" if ndim == 2 else "[N, K, 3]"
        raise ValueError(f"Intersections, predicted and labelled pixels are {shape}, not of shape {counts.shape}.")
    return counts


def _iou(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[...,K,3]`` -> ``[...,K]``, NaN where the union is empty."""
    intersection, predicted, labelled = np.moveaxis(counts, -1, 0)
    return _ratio(intersection, predicted + labelled - intersection)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _present_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis without NaN, and NaN where nothing is left; unlike ``np.nanmean`` without a warning."""
    return _ratio(np.nansum(values, axis=-1), (~np.isnan(values)).sum(axis=-1))
