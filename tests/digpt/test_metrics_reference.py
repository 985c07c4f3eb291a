"""Top-k, multi-label and per-class accuracy, restriction to classes, and kNN, against independent implementations."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score
from sklearn.neighbors import KNeighborsClassifier

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torchmetrics warns of while it is imported is not ours
    from torchmetrics.functional.classification import multiclass_accuracy

from digpt import neighbors
from digpt.metrics import multilabel_correct, per_class_accuracy, relabel, restrict, topk_correct
from digpt.neighbors import knn_classify_many


@pytest.fixture
def scores():
    return np.random.default_rng(0).normal(size=(600, 20)).astype(np.float32)


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, 20, 600)


@pytest.mark.parametrize("k", [1, 5, 19])
def test_top_k_is_torchmetrics(scores, labels, k):
    expected = multiclass_accuracy(
        torch.from_numpy(scores), torch.from_numpy(labels), num_classes=20, top_k=k, average="micro"
    )
    assert topk_correct(scores, labels, k).mean() == pytest.approx(float(expected), abs=1e-6)


def test_multilabel_is_top_1_in_the_list(scores, labels):
    sizes = (rng := np.random.default_rng(2)).integers(0, 4, 600)
    lists = [sorted({label, *rng.integers(0, 20, size).tolist()}) for label, size in zip(labels, sizes, strict=True)]
    expected = [int(row.argmax()) in wanted for row, wanted in zip(scores, lists, strict=True)]
    assert multilabel_correct(scores, lists).tolist() == expected
    single = multilabel_correct(scores, [[label] for label in labels])
    assert (single == topk_correct(scores, labels, 1)).all()
    assert single.sum() < sum(expected)
    assert multilabel_correct(np.zeros((2, 3)), [[0], [1, 2, 2]]).tolist() == [True, False]  # ties: the smaller class


def test_restricted_classes_compete_alone():
    scores = np.array([[9.0, 1.0, 3.0, 2.0], [0.0, 5.0, 4.0, 1.0]])
    kept = [3, 1]
    assert restrict(scores, kept).tolist() == [[2.0, 1.0], [1.0, 5.0]]
    assert relabel([3, 1], kept).tolist() == [0, 1]
    assert topk_correct(restrict(scores, kept), relabel([3, 1], kept), 1).all()
    assert not topk_correct(scores, np.array([3, 1]), 1).all()  # without it, class 0 wins the first image
    assert restrict(scores.astype(np.float16), kept).dtype == np.float16


def test_restricting_is_masking_the_other_classes(scores, labels):
    kept = np.random.default_rng(3).permutation(20)[:7]
    images = np.isin(labels, kept)
    masked = np.where(np.isin(np.arange(20), kept), scores, -np.inf)
    ours = topk_correct(restrict(scores[images], kept), relabel(labels[images], kept), 1)
    assert (ours == (masked[images].argmax(axis=1) == labels[images])).all()


def test_per_class_accuracy_is_the_recall_of_each_class(scores, labels):
    present = labels[labels != 4]
    rows = scores[labels != 4]
    accuracy, counts = per_class_accuracy(topk_correct(rows, present, 1), present, 20)
    expected = recall_score(present, rows.argmax(axis=1), labels=np.arange(20), average=None, zero_division=np.nan)
    np.testing.assert_allclose(accuracy, expected, atol=1e-12)
    assert np.isnan(accuracy[4]) and np.isnan(accuracy).sum() == 1
    assert counts.tolist() == np.bincount(present, minlength=20).tolist()


@pytest.mark.parametrize("k", [1, 10, 20, 200])
def test_knn_is_scikit_learns(k):
    """The same predictions, and votes to 1e-6 after normalising them to 1."""
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(9, 16))
    labels = rng.integers(0, 9, 500)
    reference = (centres[labels] + 1.5 * rng.normal(size=(500, 16))).astype(np.float32)
    queries = (centres[rng.integers(0, 9, 120)] + 1.5 * rng.normal(size=(120, 16))).astype(np.float32)
    theirs = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(reference.astype(np.float64), labels)
    ours = knn_classify_many(reference, labels, queries, ks=(k,), n_classes=9)[k]
    assert ours.tolist() == theirs.predict(queries.astype(np.float64)).tolist()
    similarity = neighbors.l2_normalize(queries) @ neighbors.l2_normalize(reference).T
    nearest, order = neighbors._nearest(similarity, k)
    votes = neighbors._votes(np.exp(nearest.astype(np.float64) / 0.07), labels[order], 9)
    expected = theirs.predict_proba(queries.astype(np.float64))
    np.testing.assert_allclose(votes / votes.sum(axis=1, keepdims=True), expected, atol=1e-6)
    assert k == 1 or 0.01 < np.median(expected.max(axis=1)) < 0.99  # the votes are divided


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: multilabel_correct(np.zeros((2, 3)), [[0], []]), "1 images have no label; leave them out"),
        (lambda: multilabel_correct(np.zeros((2, 3)), [[0]]), "2 images need as many lists of labels, got 1"),
        (lambda: multilabel_correct(np.zeros((1, 3)), [[3]]), r"lie in 0\.\.2"),
        (lambda: multilabel_correct(np.array([[np.nan]]), [[0]]), "NaN"),
        (lambda: restrict(np.zeros((2, 3)), [0, 3]), r"Classes must lie in 0\.\.2"),
        (lambda: restrict(np.zeros((2, 3)), [1, 1]), "each named once"),
        (lambda: restrict(np.zeros(3), [1]), r"\[N, C\]"),
        (lambda: relabel([5, 7, 8], [7, 5]), r"\[8\] are not among the 2 classes"),
        (lambda: relabel([5], []), "at least one class"),
        (lambda: per_class_accuracy([1, 0], [0], 3), "one length"),
        (lambda: per_class_accuracy([1], [3], 3), r"lie in 0\.\.2"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
