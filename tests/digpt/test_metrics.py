"""Top-k with ties, and the bootstrap interval against what theory gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from digpt import resampling
from digpt.metrics import bootstrap_ci, target_ranks, topk_correct


def test_ranks_equal_a_stable_sort():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (200, 12)).astype(np.float32)  # few values, so many ties
    targets = rng.integers(0, 12, 200)
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = [row.tolist().index(target) for row, target in zip(order, targets, strict=True)]
    assert target_ranks(scores, targets).tolist() == expected
    assert topk_correct(scores, targets, 1).tolist() == (scores.argmax(axis=1) == targets).tolist()
    assert topk_correct(scores, targets, 5).tolist() == [rank < 5 for rank in expected]
    assert topk_correct(scores, targets, 12).all()


def test_a_collapsed_model_gets_no_credit_for_ties():
    assert topk_correct(np.zeros((10, 10)), np.arange(10), 1).sum() == 1
    assert topk_correct(np.zeros((10, 10)), np.arange(10), 5).sum() == 5


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (np.array([[0.0, np.nan]]), np.array([0]), "NaN"),
        (np.zeros((2, 3)), np.array([0, 3]), r"lie in 0\.\.2"),
        (np.zeros((2, 3)), np.array([0]), "do not fit"),
    ],
)
def test_ranks_refuse(scores, targets, message):
    with pytest.raises(ValueError, match=message):
        target_ranks(scores, targets)


@pytest.mark.parametrize(("size", "accuracy"), [(1000, 0.5), (1400, 0.9), (400, 0.25)])
def test_interval_of_an_accuracy_is_the_normal_one(size, accuracy):
    values = np.arange(size) < round(size * accuracy)
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / size)
    low, high = bootstrap_ci(values, n=4000)
    assert low == pytest.approx(accuracy - half, abs=0.12 * half)
    assert high == pytest.approx(accuracy + half, abs=0.12 * half)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = sum(low <= 0.3 <= high for low, high in (bootstrap_ci(rng.random(300) < 0.3, n=300) for _ in range(300)))
    assert 0.91 < hits / 300 < 0.98


def test_clusters_of_copies_widen_the_interval_by_the_root_of_their_size():
    values = np.arange(300) % 2
    low, high = bootstrap_ci(values, n=4000)
    copies = np.repeat(values, 4)
    clustered = bootstrap_ci(copies, clusters=np.repeat(np.arange(300), 4), n=4000)
    naive = bootstrap_ci(copies, n=4000)
    assert clustered == pytest.approx((low, high), abs=1e-12)  # copies carry no information
    assert (naive[1] - naive[0]) == pytest.approx((high - low) / 2, rel=0.1)


def test_uneven_clusters_keep_the_mean_per_image():
    """Nine images right in one cluster, one wrong alone: the resamples are 0.9, 1.0 and 0.0, never 0.5."""
    values, clusters = [1] * 9 + [0], ["a"] * 9 + ["b"]
    assert bootstrap_ci(values, clusters=clusters, level=0.2) == (0.9, 0.9)
    assert bootstrap_ci(values, clusters=clusters) == (0.0, 1.0)


def test_seeded_and_independent_of_the_chunk(monkeypatch):
    values = np.random.default_rng(2).random(100)
    first = bootstrap_ci(values, seed=3)
    assert bootstrap_ci(values, seed=3) == first != bootstrap_ci(values, seed=4)
    monkeypatch.setattr(resampling, "_CHUNK_DRAWS", 700)
    assert bootstrap_ci(values, seed=3) == first


def test_extremes_have_no_width_and_nothing_is_refused():
    assert bootstrap_ci(np.ones(50)) == (1.0, 1.0)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_ci([])
    with pytest.raises(ValueError, match="3 values need as many"):
        bootstrap_ci([1, 0, 1], clusters=[1, 2])
