"""kNN: DINO's protocol against a brute-force loop, and the refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from digpt import neighbors
from digpt.neighbors import knn_classify, knn_classify_many, l2_normalize


def brute_force(reference, labels, query, k, temperature, n_classes):
    """One query, written straight from the definition in float64."""
    similarity = [float(r @ query / (np.linalg.norm(r) * np.linalg.norm(query))) for r in reference.astype(np.float64)]
    nearest = sorted(range(len(reference)), key=lambda i: -similarity[i])[:k]
    votes = [0.0] * n_classes
    for i in nearest:
        votes[labels[i]] += math.exp(similarity[i] / temperature)
    return max(range(n_classes), key=lambda c: votes[c])


@pytest.fixture
def clusters():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(7, 5))
    labels = rng.integers(0, 7, 300)
    reference = (centres[labels] + rng.normal(size=(300, 5))) * rng.uniform(0.1, 10, (300, 1))
    return reference.astype(np.float32), labels, rng.normal(size=(90, 5)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 10, 20, 300])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_brute_force(clusters, k, temperature):
    reference, labels, queries = clusters
    expected = [brute_force(reference, labels, q, k, temperature, 7) for q in queries.astype(np.float64)]
    got = knn_classify(reference, labels, queries, k=k, temperature=temperature, n_classes=7)
    assert got.dtype == np.int64
    assert got.tolist() == expected


def test_several_k_at_once_equal_each_alone_and_chunks_change_nothing(clusters, monkeypatch):
    reference, labels, queries = clusters
    alone = {k: knn_classify(reference, labels, queries, k=k, n_classes=7).tolist() for k in (1, 10, 200)}
    monkeypatch.setattr(neighbors, "_CHUNK_ENTRIES", 7 * len(reference))
    together = knn_classify_many(reference, labels, queries, ks=(10, 1, 200), n_classes=7)
    assert {k: p.tolist() for k, p in together.items()} == alone
    assert alone[1] != alone[200]


def test_weights_fall_with_temperature():
    """Two far neighbours outvote one near neighbour when the temperature is high, not when it is low."""
    reference = np.array([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]], dtype=np.float32)
    query, labels = np.array([[2.0, 0.0]], dtype=np.float32), np.array([0, 1, 1])
    assert knn_classify(reference, labels, query, k=3, temperature=0.07, n_classes=2).tolist() == [0]
    assert knn_classify(reference, labels, query, k=3, temperature=1.0, n_classes=2).tolist() == [1]


def test_low_temperature_does_not_overflow():
    reference, labels = np.eye(3, dtype=np.float32), np.array([2, 1, 0])
    assert knn_classify(reference, labels, reference, k=3, temperature=1e-4, n_classes=3).tolist() == [2, 1, 0]


def test_normalise_keeps_zero_rows_and_refuses_nan():
    out = l2_normalize(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(out, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert out.dtype == np.float32
    with pytest.raises(ValueError, match="NaN or infinity"):
        l2_normalize(np.array([[np.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        l2_normalize(np.ones(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ks": (0,)}, "k must lie in 1..4"),
        ({"ks": (5,)}, "k must lie in 1..4"),
        ({"ks": ()}, "k must lie in 1..4"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"n_classes": 2}, r"lie in 0\.\.1"),
        ({"reference_labels": np.array([0, 1, 2])}, "4 reference features need as many labels"),
        ({"queries": np.ones((2, 3), np.float32)}, "width 4, queries 3"),
    ],
)
def test_refusals(change, message):
    arguments = {
        "reference": np.eye(4, dtype=np.float32),
        "reference_labels": np.array([0, 1, 2, 2]),
        "queries": np.eye(4, dtype=np.float32),
        "ks": (1,),
        "temperature": 0.07,
        "n_classes": 3,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        knn_classify_many(**arguments)
