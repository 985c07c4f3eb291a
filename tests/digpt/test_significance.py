"""Paired tests against statsmodels, exact enumeration and simulation."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what statsmodels warns of while it is imported is not ours
    from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
    from statsmodels.stats.multitest import multipletests

from digpt import significance
from digpt.calibration import ece, ece_resampled
from digpt.resampling import Resamples
from digpt.significance import difference, holm, mcnemar, paired_bootstrap, paired_permutation


def answers(both, b, c, neither):
    """Two models' answers with the given table, in a seeded order."""
    a_right = np.repeat([True, True, False, False], [both, b, c, neither])
    b_right = np.repeat([True, False, True, False], [both, b, c, neither])
    order = np.random.default_rng(0).permutation(len(a_right))
    return a_right[order], b_right[order]


@pytest.mark.parametrize(
    "table", [(50, 3, 9, 4), (10, 0, 6, 0), (30, 7, 7, 1), (0, 12, 13, 0), (900, 60, 95, 200), (40_000, 1500, 1630, 99)]
)
def test_mcnemar_is_that_of_statsmodels(table):
    result = mcnemar(*answers(*table))
    assert (result.both, result.b, result.c, result.neither) == table
    both, b, c, neither = table
    expected = statsmodels_mcnemar([[both, b], [c, neither]], exact=True).pvalue
    assert result.p_value == pytest.approx(expected, abs=1e-6, rel=1e-6)
    assert mcnemar(*reversed(answers(*table))).p_value == pytest.approx(result.p_value, rel=1e-12)


def test_mcnemar_by_hand_and_without_disagreement():
    assert mcnemar(*answers(5, 0, 6, 5)).p_value == pytest.approx(2 / 2**6)
    assert mcnemar(*answers(5, 0, 0, 5)).p_value == 1.0
    assert mcnemar(*answers(5, 0, 6, 5)).method == "exact binomial"


@pytest.mark.parametrize(
    "p_values", [[0.01, 0.04, 0.03, 0.005], [0.5, 0.9, 0.6], [0.02, 0.02, 0.02], [0.2], [0.0, 1.0]]
)
def test_holm_is_that_of_statsmodels(p_values):
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1], atol=1e-12)


def test_holm_by_hand():
    assert holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])  # 0.04 is raised to its predecessor's 2 * 0.03
    many = np.random.default_rng(1).random(50) ** 3
    np.testing.assert_allclose(holm(many), multipletests(many, method="holm")[1], atol=1e-12)
    assert holm([]).tolist() == []


def test_few_clusters_are_enumerated():
    rng = np.random.default_rng(2)
    diff, clusters = rng.normal(0.4, 1, 24), np.arange(24) % 8
    sums = np.array([diff[clusters == k].sum() for k in range(8)])
    flipped = np.array([abs(np.dot(sums, signs)) for signs in itertools.product((-1, 1), repeat=8)])
    result = paired_permutation(diff, clusters)
    assert result.p_value == np.mean(flipped >= abs(sums.sum()) - 1e-12)
    assert result.method == "exact sign flips"
    assert result.value == pytest.approx(diff.mean())
    drawn = paired_permutation(diff, clusters, n=200)
    assert drawn.method == "200 random sign flips"
    assert drawn.p_value == pytest.approx(result.p_value, abs=4 * np.sqrt(0.25 / 200))
    named = [f"concept {k}" for k in clusters]
    assert paired_permutation(diff, named).p_value == result.p_value


def test_sign_flips_of_single_answers_are_mcnemars_test():
    right_a, right_b = answers(30, 9, 2, 4)
    diff = right_a.astype(int) - right_b
    assert paired_permutation(diff).p_value == pytest.approx(mcnemar(right_a, right_b).p_value, rel=1e-12)
    right_a, right_b = answers(300, 60, 45, 40)
    sampled = paired_permutation(right_a.astype(int) - right_b, n=20_000)
    exact = mcnemar(right_a, right_b).p_value
    assert 0.1 < exact < 0.3
    assert sampled.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000))


def test_random_flips_are_seeded_never_zero_and_independent_of_the_chunk(monkeypatch):
    diff = np.random.default_rng(3).normal(0.2, 1, 60)
    first = paired_permutation(diff, seed=1, n=500)
    monkeypatch.setattr(significance, "_CHUNK_SIGNS", 3 * 60)
    assert paired_permutation(diff, seed=1, n=500).p_value == pytest.approx(first.p_value, abs=0.06)
    assert paired_permutation(diff, seed=2, n=500) != first == paired_permutation(diff, seed=1, n=500)
    assert paired_permutation(np.ones(2000), n=99).p_value == 1 / 100
    assert paired_permutation(np.zeros(2000)).p_value == 1.0


def test_clusters_keep_the_level_where_mcnemar_does_not():
    """Five drawings that stand or fall together: no model is better, yet image by image the test often says so."""
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(60), 5)
    naive = clustered = 0
    for seed in range(200):
        a, b = (np.repeat(rng.random(60) < 0.5, 5) for _ in range(2))
        naive += mcnemar(a, b).p_value <= 0.05
        clustered += paired_permutation(a.astype(int) - b, clusters, n=199, seed=seed).p_value <= 0.05
    assert naive / 200 > 0.25
    assert clustered / 200 < 0.10


def test_paired_bootstrap_uses_the_pairs():
    rng = np.random.default_rng(5)
    shared = rng.random(2000) < 0.7
    right_a, right_b = shared | (rng.random(2000) < 0.1), shared
    resamples = Resamples(2000, seed=0, n_resamples=4000)
    result = paired_bootstrap(right_a, right_b, resamples)
    gain = right_a.mean() - right_b.mean()
    half = 1.96 * np.sqrt(gain * (1 - gain) / 2000)  # of the paired difference, which is 0 or 1 here
    assert result.value == pytest.approx(gain)
    assert result.ci95 == pytest.approx((gain - half, gain + half), abs=0.12 * half)
    assert result.p_value == pytest.approx(2 / 4001)
    unpaired = 1.96 * np.sqrt(right_a.var() / 2000 + right_b.var() / 2000)
    assert unpaired > 3 * half


def test_bootstrap_p_value_goes_with_the_interval_and_keeps_its_level():
    rng = np.random.default_rng(6)
    resamples = Resamples(150, seed=1, n_resamples=400)
    results = [paired_bootstrap(rng.normal(size=150), rng.normal(size=150), resamples) for _ in range(300)]
    excluded = [result.ci95[0] > 0 or result.ci95[1] < 0 for result in results]
    significant = [result.p_value <= 0.05 for result in results]
    assert np.mean(np.equal(excluded, significant)) > 0.99
    assert 0.02 < np.mean(significant) < 0.09
    assert difference(0.0, [0.0, 0.0]).p_value == 1.0


def test_difference_of_a_figure_that_is_no_mean():
    rng = np.random.default_rng(7)
    confidence = rng.uniform(0.5, 1, 3000)
    correct = rng.random(3000) < confidence
    sure = np.minimum(confidence + 0.2, 1)
    resamples = Resamples(3000, seed=0, n_resamples=300)
    samples = ece_resampled(sure, correct, resamples) - ece_resampled(confidence, correct, resamples)
    result = difference(ece(sure, correct) - ece(confidence, correct), samples)
    assert 0.1 < result.ci95[0] < result.value < result.ci95[1] < 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mcnemar([1, 0], [1]), "the same images"),
        (lambda: mcnemar([], []), "the same images"),
        (lambda: mcnemar([0.3], [1]), "use paired_permutation"),
        (lambda: paired_permutation([]), "finite differences"),
        (lambda: paired_permutation([np.nan]), "finite differences"),
        (lambda: paired_permutation([1.0], n=0), "at least one permutation"),
        (lambda: paired_permutation([1.0, 2.0], [1]), "2 differences need as many"),
        (lambda: holm([0.1, np.nan]), r"0\.\.1"),
        (lambda: holm([1.1]), r"0\.\.1"),
        (lambda: paired_bootstrap([1, 0], [1, 0], Resamples(3)), "Values of 3 images"),
        (lambda: difference(0.0, [np.nan]), "without NaN"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
