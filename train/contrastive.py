"""What the teacher and zero-shot tuning share: captions of concepts, the contrastive loss, and zero-shot figures.

Shapes: B images in the batch, C training concepts, L token positions, D joint embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from digpt.data.emoji import EmojiSet

SIDE_SPLITS = ("val", "flat", "contrast")


class Captions(nn.Module):
    """Token ids of every caption of the training concepts, and the draw of one per image.

    The concepts of split ``unseen`` are absent: no tower is ever trained on their names.
    """

    tokens: Tensor
    row: Tensor
    first: Tensor
    counts: Tensor

    def __init__(self, emoji: EmojiSet, tokenize: Callable[[Sequence[str]], NDArray[np.int64]]) -> None:
        super().__init__()
        trained = [index for index, concept in enumerate(emoji.concepts) if not concept.unseen]
        captions = [emoji.concepts[index].captions for index in trained]
        counts = np.array([len(group) for group in captions])
        rows = np.full(len(emoji.concepts), -1, dtype=np.int64)
        rows[trained] = np.arange(len(trained))
        self.count = len(trained)
        tables = {
            "tokens": tokenize([text for group in captions for text in group]),  # [sum, L]
            "row": rows,  # concept -> row among the training concepts
            "first": np.concatenate([[0], np.cumsum(counts)[:-1]]),  # [C] the name's caption
            "counts": counts,  # [C]
        }
        for name, table in tables.items():
            self.register_buffer(name, torch.from_numpy(table), persistent=False)

    def draw(self, rows: Tensor, uniform: Tensor) -> Tensor:
        """Caption numbers for training concepts ``rows``: the name half of the time, else any caption."""
        other = (((uniform - 0.5) * 2) * self.counts[rows]).long()
        return self.first[rows] + torch.where(uniform < 0.5, torch.zeros_like(other), other)


class Prototypes(nn.Module):
    """One learned unit vector per training concept, which images and texts are both drawn to.

    They stand in for the text embeddings of all concepts, so that every image is contrasted with every concept at the
    price of one small matrix product instead of a pass of the whole class set through the text tower.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, dim) * dim**-0.5)

    def forward(self) -> Tensor:
        """Unit rows ``[C,D]``."""
        return F.normalize(self.weight, dim=-1)


def all_concepts_loss(embedded: Tensor, concepts: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of each unit embedding ``[B,D]`` over all unit concepts ``[C,D]``; the true one is ``rows [B]``."""
    return F.cross_entropy(scale * embedded @ concepts.T, rows)


def text_to_image_loss(images: Tensor, texts: Tensor, positive: Tensor, scale: Tensor) -> Tensor:
    """The other direction within the batch: unit texts ``[U,D]`` over images ``[B,D]``, several positives ``[U,B]``."""
    log_share = F.log_softmax(scale * texts @ images.T, dim=1)
    return -(log_share * positive).sum(1).div(positive.sum(1)).mean()


def zero_shot_figures(
    emoji: EmojiSet,
    names: Tensor,
    embed: Callable[[Tensor], Tensor],
    split: Callable[[str], tuple[Tensor, Tensor]],
    splits: tuple[str, ...] = SIDE_SPLITS,
) -> dict[str, float]:
    """Top-1 fractions among all five-style names, per split: a progress figure; ``evaluate.robustness`` decides.

    ``names`` unit ``[M,D]`` are the embeddings of ``emoji.five_style_names()``; ``embed`` maps images in [0, 1] to
    unit ``[B,D]``.
    """
    labels = torch.from_numpy(emoji.five_style_indices())
    figures = {}
    for name in splits:
        images, concepts = split(name)
        best = torch.cat([(embed(part) @ names.T).argmax(1) for part in images.split(256)])
        figures[f"{name}_top1"] = (labels[best] == concepts).float().mean().item()
    return figures
