"""From logits or scores to the best labels. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from digpt.errors import InputError


@dataclass(frozen=True)
class Prediction:
    """One label and its score in ``[0, 1]``."""

    label: str
    score: float


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float32; rows sum to 1."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (shifted / shifted.sum(axis=-1, keepdims=True)).astype(np.float32)


def top_predictions(scores: np.ndarray, labels: Sequence[str], top_k: int) -> list[list[Prediction]]:
    """The ``top_k`` highest of each row of ``scores`` ``[B,C]``, best first; equal scores keep the labels' order."""
    if top_k < 1:
        raise InputError(f"top_k={top_k} must be at least 1.")
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [
        [Prediction(labels[column], float(row[column])) for column in columns]
        for row, columns in zip(scores, order, strict=True)
    ]
