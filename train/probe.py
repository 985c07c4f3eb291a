"""A kNN probe that shows, without labels in training, whether an encoder learns: a progress figure.

``evaluate.knn`` decides; this one is small enough to run every few hundred steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digpt.neighbors import knn_classify
from train.data import EmojiTraining


@dataclass(frozen=True)
class KnnProbe:
    """Reference and query images in [0, 1], float32 ``[N,3,S,S]``, with their labels, int64 ``[N]``."""

    reference: Tensor
    reference_labels: NDArray[np.int64]
    queries: Tensor
    labels: NDArray[np.int64]
    neighbours: int

    def top1(self, features: Callable[[Tensor], Tensor]) -> float:
        """Fraction of queries whose nearest references agree with their label; ``features`` maps images to rows."""

        def embed(images: Tensor) -> NDArray[np.float32]:
            found: NDArray[np.float32] = torch.cat([features(part) for part in images.split(256)]).float().cpu().numpy()
            return found

        predicted = knn_classify(
            embed(self.reference),
            self.reference_labels,
            embed(self.queries),
            k=min(self.neighbours, len(self.reference)),
            n_classes=int(max(self.reference_labels.max(), self.labels.max())) + 1,
        )
        return float((predicted == self.labels).mean())


def emoji_probe(data: EmojiTraining, neighbours: int) -> KnnProbe:
    """The bundled set's: subgroups of ``flat``, by reference images of Noto and Twemoji."""
    subgroups = sorted({concept.subgroup for concept in data.emoji.concepts})
    number = np.array([subgroups.index(concept.subgroup) for concept in data.emoji.concepts])
    reference, reference_concepts = data.reference()
    queries, query_concepts = data.split("flat")
    return KnnProbe(reference, number[reference_concepts.numpy()], queries, number[query_concepts.numpy()], neighbours)
