"""Effective robustness: how much better a model is under a shift than its ImageNet accuracy lets one expect.

    baseline = fit(population, "imagenet-r")
    gain = effective(baseline, clean=(0.862, (0.859, 0.865)), shifted=(0.643, (0.637, 0.648)))

Source: Taori et al. 2020, "Measuring Robustness to Natural Distribution Shifts in Image Classification": over standard
models the logit of the shifted accuracy is a linear function of the logit of the clean one; effective robustness is
the accuracy above that line. Accuracies and gains are fractions.

Shapes: M models of the population, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digpt.errors import DataError
from digpt.resampling import BOOTSTRAP_RESAMPLES
from evaluate.population import CLEAN, Population

LEVEL = 0.95
_QUANTILE = NormalDist().inv_cdf(0.5 + LEVEL / 2)
_EDGE = 1e-6  # drawn accuracies stay this far from 0 and 1, where the logit ends

Measured = tuple[float, tuple[float, float] | None]  # value and 95 % interval


def logit(p: ArrayLike) -> NDArray[np.float64]:
    """``log(p / (1 - p))`` of fractions between 0 and 1, both excluded."""
    p = np.asarray(p, np.float64)
    return np.asarray(np.log(p) - np.log1p(-p))


def expit(x: ArrayLike) -> NDArray[np.float64]:
    """The inverse of `logit`."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64))))


@dataclass(frozen=True)
class Baseline:
    """``logit(shifted) = slope * logit(clean) + intercept`` over ``models`` standard models.

    ``r2`` is that of the fit, on the logit scale. ``left_out`` models have an accuracy of exactly 0 or 1, which has no
    logit. ``clean_range`` are the lowest and highest clean accuracy of the models behind it: beyond, the line is an
    extrapolation. ``draws`` ``[R, 2]`` are slope and intercept over resampled populations.
    """

    dataset: str
    slope: float
    intercept: float
    r2: float
    models: int
    left_out: int
    clean_range: tuple[float, float]
    draws: NDArray[np.float64]

    def at(self, clean: ArrayLike) -> NDArray[np.float64]:
        """The accuracy expected under the shift of a standard model with the accuracy ``clean``."""
        return expit(self.slope * logit(clean) + self.intercept)


@dataclass(frozen=True)
class Gain:
    """Effective robustness. ``beyond``: the clean accuracy lies outside the population's."""

    value: float
    ci95: tuple[float, float] | None
    expected: float
    beyond: bool


def fit(population: Population, dataset: str, *, seed: int = 0, resamples: int = BOOTSTRAP_RESAMPLES) -> Baseline:
    """Least squares on the logits, and again on ``resamples`` populations drawn with replacement.

    Raises:
        DataError: fewer than three models with both accuracies, or all of one clean accuracy.
    """
    clean, shifted = population.top1[CLEAN], population.top1[dataset]
    measured = ~np.isnan(clean) & ~np.isnan(shifted)
    usable = measured & (clean > 0) & (clean < 1) & (shifted > 0) & (shifted < 1)
    x, y = logit(clean[usable]), logit(shifted[usable])
    if len(x) < 3 or np.ptp(x) == 0:
        raise DataError(f"{population.source} has too few models with an accuracy on {dataset} to fit a line.")
    slope, intercept = _line(x[None], y[None])[0]
    spread = float(np.sum((y - y.mean()) ** 2))
    r2 = 1 - float(np.sum((y - slope * x - intercept) ** 2)) / spread if spread else 1.0
    rows = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
    rows = rows[np.ptp(x[rows], axis=1) > 0]  # a draw of one model alone has no line
    return Baseline(
        dataset=dataset,
        slope=float(slope),
        intercept=float(intercept),
        r2=r2,
        models=len(x),
        left_out=int(measured.sum() - usable.sum()),
        clean_range=(float(clean[usable].min()), float(clean[usable].max())),
        draws=_line(x[rows], y[rows]),
    )


def effective(baseline: Baseline, clean: Measured, shifted: Measured, *, seed: int = 1) -> Gain | None:
    """Accuracy under the shift minus the one expected; None where the clean accuracy has no logit.

    The 95 % interval carries three things over: the interval of the shifted accuracy, that of the clean one (it moves
    the expectation), and the resampled populations of ``baseline``. The first two are drawn as independent normals
    with the half-width of their intervals. Where both accuracies are of the same images (ReaL) they rise and fall
    together, so the interval is wider than needed. Without both intervals there is none.
    """
    if not 0 < clean[0] < 1:
        return None
    expected = float(baseline.at(clean[0]))
    low, high = baseline.clean_range
    beyond = not low <= clean[0] <= high
    if clean[1] is None or shifted[1] is None:
        return Gain(shifted[0] - expected, None, expected, beyond)
    generator = np.random.default_rng(seed)
    count = len(baseline.draws)
    x = np.clip(_drawn(generator, clean[0], clean[1], count), _EDGE, 1 - _EDGE)
    y = np.clip(_drawn(generator, shifted[0], shifted[1], count), 0, 1)
    gains = y - expit(baseline.draws[:, 0] * logit(x) + baseline.draws[:, 1])
    ends = np.quantile(gains, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Gain(shifted[0] - expected, (float(ends[0]), float(ends[1])), expected, beyond)


def _drawn(
    generator: np.random.Generator, value: float, interval: tuple[float, float], count: int
) -> NDArray[np.float64]:
    spread = (interval[1] - interval[0]) / (2 * _QUANTILE)
    return generator.normal(value, spread, count)


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slope and intercept of each row: ``[R, M]`` twice -> ``[R, 2]``."""
    x_mean, y_mean = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
    slope = ((x - x_mean) * (y - y_mean)).sum(axis=1) / ((x - x_mean) ** 2).sum(axis=1)
    return np.stack([slope, y_mean[:, 0] - slope * x_mean[:, 0]], axis=1)
