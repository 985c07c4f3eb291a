"""NLL, Brier score and ECE against torch, torchmetrics, scikit-learn and hand-made cases."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.special import log_softmax as scipy_log_softmax
from sklearn.metrics import brier_score_loss

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torchmetrics warns of while it is imported is not ours
    from torchmetrics.functional.classification import multiclass_calibration_error

from digpt import calibration
from digpt.calibration import brier, ece, ece_resampled, log_softmax, nll, reliability, softmax, top1_confidence
from digpt.resampling import Resamples


@pytest.fixture
def logits():
    return (np.random.default_rng(0).normal(size=(700, 11)) * 3).astype(np.float32)


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, 11, 700)


def test_log_softmax_is_scipys_in_float64(logits):
    got = log_softmax(logits)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, scipy_log_softmax(logits.astype(np.float64), axis=1), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(softmax(logits).sum(axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(log_softmax(logits.astype(np.float16) * 1e3).max(), 0, atol=1e-9)  # no overflow


def test_nll_is_torchs_cross_entropy(logits, labels):
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(labels), reduction="none"
    )
    np.testing.assert_allclose(nll(logits, labels), expected.numpy(), rtol=1e-12)
    assert nll(np.zeros((1, 4)), [2]) == pytest.approx([math.log(4)])


def test_brier_is_scikit_learns_and_the_formula(logits, labels):
    p = softmax(logits)
    expected = brier_score_loss(labels, p, labels=np.arange(11), scale_by_half=False)
    assert brier(logits, labels).mean() == pytest.approx(expected, abs=1e-12)
    assert brier(np.log([[0.5, 0.3, 0.2]]), [1]) == pytest.approx([0.25 + 0.49 + 0.04])
    assert brier(np.array([[1000.0, 0.0]]), [1]) == pytest.approx([2.0])  # the range is 0 to 2
    assert brier(np.array([[1000.0, 0.0]]), [0]) == pytest.approx([0.0])


def test_blocks_change_nothing(logits, labels, monkeypatch):
    whole = nll(logits, labels), brier(logits, labels), top1_confidence(logits)
    monkeypatch.setattr(calibration, "_CHUNK_ENTRIES", 11 * 16)
    assert (nll(logits, labels) == whole[0]).all() and (brier(logits, labels) == whole[1]).all()
    assert (top1_confidence(logits)[1] == whole[2][1]).all()


def test_confidence_is_the_largest_probability(logits):
    predictions, confidence = top1_confidence(logits)
    np.testing.assert_allclose(confidence, softmax(logits).max(axis=1), rtol=1e-14)
    assert (predictions == logits.argmax(axis=1)).all()
    assert top1_confidence(np.zeros((1, 4)))[0].tolist() == [0]


@pytest.mark.parametrize("bins", [1, 10, 15, 16])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_ece_is_torchmetrics(logits, labels, bins, scale):
    predictions, confidence = top1_confidence(logits * scale)
    expected = multiclass_calibration_error(
        torch.from_numpy(logits * scale).double(), torch.from_numpy(labels), num_classes=11, n_bins=bins, norm="l1"
    )
    assert ece(confidence, predictions == labels, bins) == pytest.approx(float(expected), abs=1e-6)


def two_class_torchmetrics(confidence, correct, bins):
    """Class 0 is predicted with the confidence given, at least 0.5."""
    p = torch.tensor(np.stack([confidence, 1 - np.asarray(confidence)], axis=1))
    labels = torch.tensor(np.where(correct, 0, 1))
    return float(multiclass_calibration_error(p, labels, num_classes=2, n_bins=bins, norm="l1"))


def test_a_confidence_on_an_edge_belongs_to_the_bin_above_as_in_torchmetrics():
    confidence, correct = np.array([0.5625, 0.625, 0.6875]), np.array([True, False, True])  # 0.625 is an edge of 8 bins
    above = (abs(0.4375) + abs(-0.625 + 0.3125)) / 3
    assert ece(confidence, correct, bins=8) == pytest.approx(above, abs=1e-12)
    assert two_class_torchmetrics(confidence, correct, 8) == pytest.approx(above, abs=1e-6)
    just_below = confidence - np.array([0, 1e-12, 0])
    assert ece(just_below, correct, bins=8) == pytest.approx((abs(0.4375 - 0.625) + 0.3125) / 3, abs=1e-9)


def test_a_confidence_of_one_belongs_to_the_last_bin():
    """As Guo et al. define it: one bin of gap |(1 + 0.95) - 1| / 2. torchmetrics counts 1 apart from 0.95."""
    assert ece([1.0, 0.95], [False, True]) == pytest.approx(0.475)
    assert two_class_torchmetrics([1.0, 0.95], np.array([False, True]), 15) == pytest.approx(0.525)


def test_reliability_and_ece_by_hand():
    confidence, correct = [0.1, 0.2, 0.6, 0.7, 0.9], [0, 1, 1, 0, 1]
    bins = reliability(confidence, correct, bins=4)
    assert bins.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert bins.count.tolist() == [2, 0, 2, 1]
    np.testing.assert_allclose(bins.confidence, [0.15, np.nan, 0.65, 0.9])
    np.testing.assert_allclose(bins.accuracy, [0.5, np.nan, 0.5, 1.0])
    assert ece(confidence, correct, bins=4) == pytest.approx((2 * 0.35 + 2 * 0.15 + 1 * 0.1) / 5)


@pytest.mark.parametrize("clusters", [None, np.random.default_rng(5).integers(0, 20, 90)])
def test_resampled_ece_is_that_of_the_images_drawn(clusters):
    rng = np.random.default_rng(2)
    confidence, correct = rng.random(90), rng.random(90) < 0.5
    resamples = Resamples(90 if clusters is None else clusters, seed=6, n_resamples=8)
    ids = np.arange(90) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    draws = np.random.default_rng(6).integers(0, ids.max() + 1, size=(8, ids.max() + 1))
    expected = []
    for row in draws:
        images = np.concatenate([np.flatnonzero(ids == cluster) for cluster in row])
        expected.append(ece(confidence[images], correct[images]))
    np.testing.assert_allclose(ece_resampled(confidence, correct, resamples), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nll(np.array([[0.0, np.inf]]), [0]), "NaN or infinity"),
        (lambda: nll(np.zeros((2, 3)), [0, 3]), r"lie in 0\.\.2"),
        (lambda: brier(np.zeros((2, 3)), [0]), "do not fit"),
        (lambda: log_softmax(np.zeros(3)), r"\[N, C\]"),
        (lambda: ece([12.0], [True]), "not a logit or a percentage"),
        (lambda: ece([np.nan], [True]), "not a logit or a percentage"),
        (lambda: ece([0.5], [0.5]), "true or false"),
        (lambda: ece([], []), "one length"),
        (lambda: ece([0.5, 0.5], [True]), "one length"),
        (lambda: ece([0.5], [True], bins=0), "at least one bin"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
