"""Do the probabilities mean what they say? NLL, Brier score and expected calibration error, in float64 numpy.

NLL and Brier score need one true class per image. With several (ReaL) only the calibration of the top-1 confidence is
defined: `ece` takes the confidence and any notion of correctness, such as `digpt.metrics.multilabel_correct`.

Shapes: N images, C classes, B bins, R resamples. Logits carry their scale: those of a CLIP model come multiplied by
its learned ``logit_scale``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digpt.resampling import Resamples

ECE_BINS = 15  # Guo et al. 2017
_CHUNK_ENTRIES = 4_000_000  # float64 values held at a time: 32 MB


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the log-probabilities of ``logits [N, C]``, float64 ``[N, C]``, at most 0.

    Raises:
        ValueError: logits that are not ``[N, C]`` or hold NaN or infinity (as float16 does above 65504).
    """
    array = np.asarray(logits)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"Logits must be [N, C], not of shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError("Logits hold NaN or infinity.")
    shifted = array.astype(np.float64) - array.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the probabilities of ``logits [N, C]``, float64 ``[N, C]``; errors as `log_softmax`."""
    return np.exp(log_softmax(logits))


def top1_confidence(logits: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the best class, int64 ``[N]``, and its probability, float64 ``[N]`` in 1/C..1; errors as `log_softmax`.

    Of equal logits the smaller class is the best.
    """
    logits = np.asarray(logits)
    confidence = np.empty(len(logits))
    for rows in _row_blocks(logits):
        confidence[rows] = np.exp(log_softmax(logits[rows]).max(axis=1))
    return logits.argmax(axis=1).astype(np.int64), confidence


class Terms(NamedTuple):
    """What each image contributes, all float64 ``[N]``: `confidence` of the best class, `nll` and `brier`."""

    confidence: NDArray[np.float64]
    nll: NDArray[np.float64]
    brier: NDArray[np.float64]


def terms(logits: NDArray[np.floating], labels: ArrayLike) -> Terms:
    """Return all terms of each image from one softmax; arguments and errors as `nll`, definitions as there."""
    logits, targets = _checked(logits, labels)
    found = Terms(*(np.empty(len(targets)) for _ in Terms._fields))
    for rows in _row_blocks(logits):
        log_p = log_softmax(logits[rows])
        found.nll[rows] = -np.take_along_axis(log_p, targets[rows, None], axis=1)[:, 0]
        error = np.exp(log_p, out=log_p)
        found.confidence[rows] = error.max(axis=1)
        error[np.arange(len(error)), targets[rows]] -= 1
        found.brier[rows] = np.square(error, out=error).sum(axis=1)
    return found


def nll(logits: NDArray[np.floating], labels: ArrayLike) -> NDArray[np.float64]:
    """Return the negative log-likelihood of each label in nats, float64 ``[N]``, 0 or more (the cross entropy).

    Args:
        logits: ``[N, C]``.
        labels: int ``[N]`` in ``0..C-1``.

    Raises:
        ValueError: as `log_softmax`, or labels that do not fit.
    """
    return terms(logits, labels).nll


def brier(logits: NDArray[np.floating], labels: ArrayLike) -> NDArray[np.float64]:
    """Return the Brier score of each image, float64 ``[N]`` in 0..2: the sum over classes of (p - onehot)^2.

    This is Brier's own definition for several classes ("Verification of forecasts expressed in terms of
    probability", 1950); others halve it or divide it by C. Arguments and errors as `nll`.
    """
    return terms(logits, labels).brier


@dataclass(frozen=True)
class Reliability:
    """What a reliability diagram shows, per bin of confidence."""

    edges: NDArray[np.float64]  # [B + 1], from 0 to 1
    count: NDArray[np.int64]  # [B]
    confidence: NDArray[np.float64]  # [B], the mean in 0..1; NaN in an empty bin
    accuracy: NDArray[np.float64]  # [B], in 0..1; NaN in an empty bin


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = ECE_BINS) -> Reliability:
    """Return count, mean confidence and accuracy of each of ``bins`` bins of equal width.

    A bin holds its lower edge and not its upper one, as in torchmetrics (Guo et al. have it the other way round); the
    last holds 1 too, as in Guo et al. (torchmetrics gives confidences of exactly 1 a bin of their own).

    Args:
        confidence: float ``[N]`` in 0..1, the probability of the predicted class.
        correct: bool ``[N]``.
        bins: B, at least 1.

    Raises:
        ValueError: no images, shapes that differ, or values out of range.
    """
    probability, hits, members = _binned(confidence, correct, bins)
    count = np.bincount(members, minlength=bins)
    empty = np.full(bins, np.nan)
    mean = np.divide(np.bincount(members, probability, minlength=bins), count, out=empty.copy(), where=count > 0)
    accuracy = np.divide(np.bincount(members, hits, minlength=bins), count, out=empty.copy(), where=count > 0)
    return Reliability(_edges(bins), count.astype(np.int64), mean, accuracy)


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error, in 0..1: the mean of |accuracy - confidence| of the bins, by their images.

    Source: Naeini et al. 2015; 15 bins by Guo et al. 2017, "On Calibration of Modern Neural Networks".
    Arguments, bins and errors as `reliability`.
    """
    probability, hits, members = _binned(confidence, correct, bins)
    # Per bin, count * |accuracy - confidence| is the size of the sum of (correct - confidence).
    return float(np.abs(np.bincount(members, hits - probability, minlength=bins)).sum() / len(hits))


def ece_resampled(
    confidence: ArrayLike, correct: ArrayLike, resamples: Resamples, bins: int = ECE_BINS
) -> NDArray[np.float64]:
    """Return the expected calibration error of each resample of the images, float64 ``[R]``; see `ece`.

    ECE is biased upwards, for noise in a bin never cancels (Kumar et al. 2019, "Verified Uncertainty Calibration"), and
    a resample has that noise twice. The percentile interval shows the spread, and not where the truth lies: 2,000
    answers of a perfectly calibrated model have an ECE of 0.024 and an interval of 0.022 to 0.049 on average.
    """
    probability, hits, members = _binned(confidence, correct, bins)
    gaps = np.zeros((len(hits), bins))
    gaps[np.arange(len(hits)), members] = hits - probability
    return np.abs(resamples.sums(gaps)).sum(axis=1) / resamples.sizes


def _edges(bins: int) -> NDArray[np.float64]:
    return np.arange(bins + 1) / bins


def _binned(
    confidence: ArrayLike, correct: ArrayLike, bins: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    """Return confidence, correctness (0 or 1) and bin of each image, all ``[N]``."""
    probability, hits = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if probability.ndim != 1 or not probability.size or probability.shape != hits.shape:
        raise ValueError(
            f"Confidence and correctness are lists of one length, got shapes {probability.shape} and {hits.shape}."
        )
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("A confidence is a probability in 0..1, not a logit or a percentage.")
    if not np.isin(hits, (0, 1)).all():
        raise ValueError("Correctness is true or false for each image.")
    if bins < 1:
        raise ValueError(f"There must be at least one bin, got {bins}.")
    members = np.searchsorted(_edges(bins), probability, side="right") - 1
    return probability, hits, np.minimum(members, bins - 1)


def _checked(logits: NDArray[np.floating], labels: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    array, targets = np.asarray(logits), np.asarray(labels, dtype=np.int64)
    if array.ndim != 2 or targets.shape != array.shape[:1]:
        raise ValueError(f"Logits [N, C] and labels [N] do not fit: {array.shape} and {targets.shape}.")
    if targets.size and (targets.min() < 0 or targets.max() >= array.shape[1]):
        raise ValueError(f"Labels must lie in 0..{array.shape[1] - 1}.")
    return array, targets


def _row_blocks(logits: NDArray[np.floating]) -> Iterator[slice]:
    """Cut the images into blocks whose float64 copies stay small."""
    step = max(1, _CHUNK_ENTRIES // max(1, logits[:1].size))
    return (slice(start, start + step) for start in range(0, len(logits), step))
