"""k-nearest-neighbour classification on frozen features: DINO's protocol, in numpy.

Source: facebookresearch/dino, ``eval_knn.py``: L2-normalised features, cosine similarity, each of the k nearest
reference features votes for its label with weight exp(similarity / temperature), temperature 0.07.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TEMPERATURE = 0.07
_CHUNK_ENTRIES = 8_000_000  # similarities held at a time: 32 MB


def l2_normalize(features: NDArray[np.floating], eps: float = 1e-12) -> NDArray[np.float32]:
    """Scale each row of ``[N, D]`` to unit length, in float32; a zero row stays zero.

    Raises:
        ValueError: the features are not two-dimensional, or hold NaN or infinity.
    """
    array = np.asarray(features, dtype=np.float32)
    if array.ndim != 2:
        raise ValueError(f"Features must be [N, D], not of shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError("Features hold NaN or infinity.")
    norms = np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
    return (array / np.maximum(norms, eps)).astype(np.float32)


def knn_classify_many(
    reference: NDArray[np.floating],
    reference_labels: NDArray[np.integer],
    queries: NDArray[np.floating],
    *,
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
    n_classes: int,
) -> dict[int, NDArray[np.int64]]:
    """Predict the label of every query for several k at once; the similarities are computed once.

    Args:
        reference: float ``[M, D]``, any length (normalised here).
        reference_labels: int ``[M]`` in ``0..n_classes-1``.
        queries: float ``[Q, D]``.
        ks: numbers of neighbours, each in ``1..M``.
        temperature: of the vote weights, above 0.
        n_classes: number of labels.

    Returns:
        ``{k: int64 [Q]}``. Equal votes go to the smaller label; among reference features equally similar to a query
        at the edge of its k nearest, which ones vote is not specified (but the same on every run).

    Raises:
        ValueError: shapes, labels, ``ks`` or ``temperature`` out of range, or features that are not finite.
    """
    reference, queries = l2_normalize(reference), l2_normalize(queries)
    labels = np.asarray(reference_labels, dtype=np.int64)
    _check(reference, labels, queries, ks, temperature, n_classes)
    predictions = {k: np.empty(len(queries), dtype=np.int64) for k in ks}
    step = max(1, _CHUNK_ENTRIES // len(reference))
    for start in range(0, len(queries), step):
        similarity = queries[start : start + step] @ reference.T
        nearest, order = _nearest(similarity, max(ks))
        # Shifting by the largest similarity scales all votes of a query alike and keeps exp in range.
        weights = np.exp((nearest.astype(np.float64) - nearest[:, :1]) / temperature)
        for k in ks:
            votes = _votes(weights[:, :k], labels[order[:, :k]], n_classes)
            predictions[k][start : start + step] = votes.argmax(axis=1)
    return predictions


def knn_classify(
    reference: NDArray[np.floating],
    reference_labels: NDArray[np.integer],
    queries: NDArray[np.floating],
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
    n_classes: int,
) -> NDArray[np.int64]:
    """Predict the label of every query, int64 ``[Q]``, from its k nearest; see `knn_classify_many`."""
    many = knn_classify_many(
        reference, reference_labels, queries, ks=(k,), temperature=temperature, n_classes=n_classes
    )
    return many[k]


def _nearest(similarity: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Return the k largest of each row, falling, and their columns."""
    if k < similarity.shape[1]:
        columns = np.argpartition(similarity, -k, axis=1)[:, -k:]
    else:
        columns = np.broadcast_to(np.arange(k), similarity.shape)
    values = np.take_along_axis(similarity, columns, axis=1)
    falling = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(values, falling, axis=1), np.take_along_axis(columns, falling, axis=1)


def _votes(weights: NDArray[np.float64], labels: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    """Sum the weights ``[Q, k]`` per label: ``[Q, n_classes]``."""
    rows = np.arange(len(labels))[:, None] * n_classes
    total = np.bincount((rows + labels).ravel(), weights.ravel(), minlength=len(labels) * n_classes)
    return total.reshape(len(labels), n_classes).astype(np.float64, copy=False)


def _check(
    reference: NDArray[np.float32],
    labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    ks: Sequence[int],
    temperature: float,
    n_classes: int,
) -> None:
    if reference.shape[1] != queries.shape[1]:
        raise ValueError(f"Reference features have width {reference.shape[1]}, queries {queries.shape[1]}.")
    if labels.shape != (len(reference),):
        raise ValueError(f"{len(reference)} reference features need as many labels, not shape {labels.shape}.")
    if not len(labels) or labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(f"Reference labels must exist and lie in 0..{n_classes - 1}.")
    if not ks or min(ks) < 1 or max(ks) > len(reference):
        raise ValueError(f"k must lie in 1..{len(reference)} (the reference features), got {list(ks)}.")
    if not temperature > 0:
        raise ValueError(f"The temperature must be above 0, got {temperature}.")
