"""Shared resamples: the numbers of the plain bootstrap, jointly for all columns, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from digpt import resampling
from digpt.metrics import bootstrap_ci
from digpt.resampling import Resamples


def plain_means(values, clusters, seed, n):
    """The bootstrap without a count matrix: the values (or clusters) that were drawn, taken out and averaged."""
    ids = np.arange(len(values)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    members = [np.flatnonzero(ids == cluster) for cluster in range(ids.max() + 1)]
    draws = np.random.default_rng(seed).integers(0, len(members), size=(n, len(members)))
    return np.array([values[np.concatenate([members[i] for i in row])].mean() for row in draws])


@pytest.mark.parametrize("clusters", [None, np.random.default_rng(5).integers(0, 30, 120)])
def test_equals_drawing_the_images_themselves(clusters):
    rng = np.random.default_rng(0)
    right, loss = rng.random(120) < 0.4, rng.random(120)
    resamples = Resamples(120 if clusters is None else clusters, seed=3, n_resamples=50)
    np.testing.assert_allclose(resamples.means(right), plain_means(right, clusters, 3, 50), rtol=1e-14)
    np.testing.assert_allclose(resamples.means(loss), plain_means(loss, clusters, 3, 50), rtol=1e-13)
    both = resamples.means(np.stack([right, loss], axis=1))
    assert both.shape == (50, 2)
    np.testing.assert_allclose(both[:, 1], resamples.means(loss), rtol=1e-13)
    np.testing.assert_allclose(resamples.sums(right), resamples.means(right) * resamples.sizes, rtol=1e-14)
    assert (resamples.sizes == 120).all() == (clusters is None)


@pytest.mark.parametrize("clusters", [None, np.repeat(np.arange(100), 5)])
def test_bootstrap_ci_is_its_interval(clusters):
    right = np.random.default_rng(1).random(500) < 0.7
    resamples = Resamples(500 if clusters is None else clusters, seed=9)
    interval = resamples.interval(resamples.means(right))
    assert bootstrap_ci(right, clusters=clusters, seed=9) == interval
    draws = plain_means(right, clusters, 9, 1000)
    assert interval == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=1e-14)


def test_one_object_resamples_all_columns_alike():
    """The difference of two models that always agree has no spread; with separate resamples it would."""
    a = np.random.default_rng(2).random(300) < 0.5
    shared = Resamples(300, seed=0, n_resamples=200)
    assert np.ptp(shared.means(a) - shared.means(~a) - 2 * shared.means(a)) < 1e-12
    assert np.ptp(shared.means(a) - Resamples(300, seed=1, n_resamples=200).means(a)) > 0.05


def test_neither_the_block_nor_what_is_kept_changes_a_number(monkeypatch):
    values = np.random.default_rng(3).integers(0, 2, (70, 3))
    first = Resamples(70, seed=4, n_resamples=90)
    means, again = first.means(values), first.means(values)
    monkeypatch.setattr(resampling, "_CHUNK_DRAWS", 700)
    monkeypatch.setattr(resampling, "_KEEP_BYTES", 0)
    drawn_anew = Resamples(70, seed=4, n_resamples=90)
    assert (means == again).all() and (means == drawn_anew.means(values)).all()
    assert (drawn_anew.means(values) == means).all() and drawn_anew._counts is None
    assert first._counts is not None and first._counts.nbytes == 70 * 90
    assert not (Resamples(70, seed=5, n_resamples=90).means(values) == means).all()


def test_interval_agrees_with_scipy_within_sampling_error():
    values = np.random.default_rng(6).exponential(size=400)
    resamples = Resamples(400, seed=0, n_resamples=8000)
    ours = np.array(resamples.interval(resamples.means(values), level=0.9))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=8000, confidence_level=0.9, method="percentile", rng=np.random.default_rng(1)
    )
    # The 5 % quantile of 8,000 normal draws has a standard error of 0.024 standard deviations.
    tolerance = 4 * np.sqrt(2) * 0.024 * theirs.standard_error
    np.testing.assert_allclose(ours, [theirs.confidence_interval.low, theirs.confidence_interval.high], atol=tolerance)
    assert ours[1] - ours[0] > 30 * tolerance / 4  # so the tolerance could fail
    assert resamples.means(values).std() == pytest.approx(theirs.standard_error, rel=0.04)


def test_refusals():
    with pytest.raises(ValueError, match="got 0 and 1000"):
        Resamples(0)
    with pytest.raises(ValueError, match="got 0 and 1000"):
        Resamples([])
    with pytest.raises(ValueError, match="got 3 and 0"):
        Resamples(3, n_resamples=0)
    with pytest.raises(ValueError, match="flat list"):
        Resamples(np.zeros((2, 2)))
    resamples = Resamples(["a", "a", "b"], n_resamples=10)
    assert (resamples.n_images, resamples.n_clusters, resamples.n_resamples) == (3, 2, 10)
    with pytest.raises(ValueError, match=r"Values of 3 images .* \(2,\)"):
        resamples.means([1, 0])
    with pytest.raises(ValueError, match="leave out the images"):
        resamples.means([1, 0, np.nan])
    with pytest.raises(ValueError, match="without NaN"):
        resamples.interval([1, np.nan])
    with pytest.raises(ValueError, match="got 95"):
        resamples.interval([1, 2], level=95)
