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
        return self.knn_top1(*self.rows(features))

    def rows(self, features: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Features of the reference and of the queries, float32 ``[N,D]`` each."""
        return _rows(features, self.reference), _rows(features, self.queries)

    def knn_top1(self, known: Tensor, queries: Tensor) -> float:
        """The same from the features."""
        predicted = knn_classify(
            known.numpy(),
            self.reference_labels,
            queries.numpy(),
            k=min(self.neighbours, len(self.reference)),
            n_classes=int(max(self.reference_labels.max(), self.labels.max())) + 1,
        )
        return float((predicted == self.labels).mean())

    def linear_top1(self, known: Tensor, queries: Tensor, decay: float = 1e-3, iterations: int = 100) -> float:
        """Fraction right of a logistic regression on the standardised features, trained on the reference."""
        mean, std = known.mean(0), known.std(0) + 1e-6
        known, queries = (known - mean) / std, (queries - mean) / std
        targets = torch.from_numpy(self.reference_labels)
        layer = torch.nn.Linear(known.shape[1], int(max(targets.max().item(), self.labels.max())) + 1)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(layer(known), targets) + decay * layer.weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        return float((layer(queries).argmax(1).numpy() == self.labels).mean())


def _rows(features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """float32 ``[N,D]`` on the CPU."""
    return torch.cat([features(part) for part in images.split(256)]).float().cpu()


def emoji_probe(data: EmojiTraining, neighbours: int) -> KnnProbe:
    """The bundled set's: subgroups of ``flat``, by reference images of Noto and Twemoji."""
    subgroups = sorted({concept.subgroup for concept in data.emoji.concepts})
    number = np.array([subgroups.index(concept.subgroup) for concept in data.emoji.concepts])
    reference, reference_concepts = data.reference()
    queries, query_concepts = data.split("flat")
    return KnnProbe(reference, number[reference_concepts.numpy()], queries, number[query_concepts.numpy()], neighbours)
