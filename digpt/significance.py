"""Is one model better than another on the same images? McNemar's test, sign flips, paired bootstrap, Holm.

Which one: `mcnemar` for right and wrong answers on independent images; `paired_permutation` when images come in
clusters (several drawings of a concept) or the figure is any other mean over images (NLL, a contribution to mCE);
`paired_bootstrap` and `difference` for the interval of a difference; `holm` when several data sets are tested at once.

Shapes: N images, M clusters, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digpt.resampling import Resamples

PERMUTATIONS = 10_000
_CHUNK_SIGNS = 2_000_000  # random signs held at a time: 16 MB as float64


@dataclass(frozen=True)
class McNemar:
    """The 2 x 2 table of two models' answers, and the two-sided p-value of its off-diagonal."""

    both: int  # images that both models get right
    b: int  # only A is right
    c: int  # only B is right
    neither: int
    p_value: float
    method: str = "exact binomial"


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """Test whether two models err equally often on the same independent images.

    Only images that one model alone gets right say anything: under the null hypothesis b of these b + c are
    binomial with probability 1/2. The exact test is used for any number of them, so there is no approximation to
    choose; it errs on the careful side (the mid-p variant would not, and is not offered). Without any such image the
    p-value is 1.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions or
    percentages"; Dietterich 1998 recommends it for two classifiers and one test set.

    Args:
        correct_a: bool ``[N]``.
        correct_b: bool ``[N]``, the same images in the same order.

    Raises:
        ValueError: no images, lists of different lengths, or values other than true and false.
    """
    from scipy.stats import binomtest  # takes a moment to import

    a, b = _paired(correct_a, correct_b)
    if not np.isin(np.concatenate([a, b]), (0, 1)).all():
        raise ValueError("McNemar's test compares right and wrong answers; use paired_permutation for other values.")
    only_a, only_b = int((a > b).sum()), int((a < b).sum())
    discordant = only_a + only_b
    p_value = float(binomtest(only_a, discordant, 0.5).pvalue) if discordant else 1.0
    return McNemar(int((a * b).sum()), only_a, only_b, int(((1 - a) * (1 - b)).sum()), p_value)


@dataclass(frozen=True)
class PermutationTest:
    """The mean paired difference and its two-sided p-value."""

    value: float
    p_value: float
    method: str  # "exact sign flips", or "N random sign flips"


def paired_permutation(
    diff: ArrayLike, clusters: ArrayLike | None = None, *, seed: int = 0, n: int = PERMUTATIONS
) -> PermutationTest:
    """Test whether the mean of paired differences is 0, by exchanging the two models per image or per cluster.

    Under the null hypothesis the models are exchangeable, so that each cluster's sum may as well have the other sign;
    the images of one cluster change sign together. Up to ``n`` assignments of signs are all gone through; beyond that
    ``n`` random ones are, and the observed one counts as one more, so that p is never 0 but at least 1 / (n + 1).

    Source: Fisher's randomisation test; p-values of random permutations by Phipson and Smyth 2010, "Permutation
    p-values should never be zero". For 0/1 answers on single images the exact form is the exact McNemar test.

    Args:
        diff: float ``[N]``, A's value minus B's on each image.
        clusters: N ids of what is exchanged together; every image by itself without them.
        seed: of numpy's default generator.
        n: number of random assignments.

    Raises:
        ValueError: no differences, NaN or infinity among them, a number of ids other than theirs, or n below 1.
    """
    values = np.asarray(diff, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all() or n < 1:
        raise ValueError("A permutation test needs a list of finite differences and at least one permutation.")
    ids = np.arange(len(values)) if clusters is None else np.asarray(clusters)
    if ids.shape != values.shape:
        raise ValueError(f"{len(values)} differences need as many cluster ids, got shape {ids.shape}.")
    sums = np.bincount(np.unique(ids, return_inverse=True)[1], values).astype(np.float64)
    sums = sums[sums != 0]  # the sign of 0 changes nothing
    if 2 ** len(sums) <= n:
        signs = 1 - 2 * (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1)
        return PermutationTest(float(values.mean()), float(_extreme(sums, signs).mean()), "exact sign flips")
    generator, hits = np.random.default_rng(seed), 0
    step = max(1, _CHUNK_SIGNS // len(sums))
    for start in range(0, n, step):
        signs = 1 - 2 * generator.integers(0, 2, size=(min(step, n - start), len(sums)), dtype=np.int8)
        hits += int(_extreme(sums, signs).sum())
    return PermutationTest(float(values.mean()), (1 + hits) / (1 + n), f"{n} random sign flips")


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return p-values adjusted for testing all of them, float64 ``[M]`` in 0..1, in the order given.

    Rejecting those at most alpha keeps the probability of any false rejection at alpha, whatever their dependence.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    Raises:
        ValueError: values that are no flat list of probabilities.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must be a flat list of numbers in 0..1.")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


@dataclass(frozen=True)
class Difference:
    """A's figure minus B's, its 95 % percentile interval, and a two-sided bootstrap p-value."""

    value: float
    ci95: tuple[float, float]
    p_value: float


def paired_bootstrap(values_a: ArrayLike, values_b: ArrayLike, resamples: Resamples) -> Difference:
    """Compare the means of two models' values ``[N]`` on the same images, in the order that ``resamples`` knows.

    Raises:
        ValueError: lists of different lengths, of other images than the resamples', or with NaN or infinity.
    """
    a, b = _paired(values_a, values_b)
    return difference(float(a.mean() - b.mean()), resamples.means(a - b))


def difference(value: float, samples: ArrayLike) -> Difference:
    """Wrap up any difference between two models, given its value on each resample, float ``[R]``.

    For figures that are no mean over images: ``ece_resampled(a) - ece_resampled(b)`` on the same resamples.

    The p-value belongs to the percentile interval: twice the smaller share of resamples on either side of 0, the
    observed one counted in, hence never below 2 / (R + 1) (Davison and Hinkley 1997, "Bootstrap Methods and their
    Application", chapter 4). It is coarse; prefer `mcnemar` or `paired_permutation` where they apply.

    Raises:
        ValueError: samples that are no flat list of numbers.
    """
    ci95 = Resamples.interval(samples)
    array = np.asarray(samples, dtype=np.float64)
    tail = 1 + min(int((array <= 0).sum()), int((array >= 0).sum()))
    return Difference(float(value), ci95, min(1.0, 2 * tail / (len(array) + 1)))


def _paired(values_a: ArrayLike, values_b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(f"Two models are compared on the same images, got shapes {a.shape} and {b.shape}.")
    return a, b


def _extreme(sums: NDArray[np.float64], signs: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tell for each row of signs whether its sum is at least as large, either way, as the observed one."""
    # Sums that are equal but for rounding are ties, and ties count.
    return np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
