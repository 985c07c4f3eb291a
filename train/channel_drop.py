"""Dropout of whole channels (``nn.Dropout2d``) whose draws are a function of (seed, epoch, index), like all others.

torch's own draws from its global generator, so a resumed run, or one with another number of processes, would drop other
channels for the same image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.keyed import CHANNELS, keyed_bits


class KeyedDropout2d(nn.Module):
    """Zeroes a share ``rate`` of each sample's channels and scales the rest by ``1 / (1 - rate)``; only in training."""

    def __init__(self, rate: float, channels: int, number: int, seed: int) -> None:
        super().__init__()
        self.rate, self.channels, self.number, self.seed = rate, channels, number, seed
        self.scale: Tensor | None = None

    def draw(self, epochs: NDArray[np.int64], items: NDArray[np.int64], device: torch.device) -> None:
        """Decide for the samples of the next forward pass."""
        bits = keyed_bits(self.seed + self.number * 1_000_003, epochs, items, self.channels, CHANNELS) >> np.uint64(40)
        kept = bits.astype(np.float64) * 2.0**-24 >= self.rate
        scale = torch.from_numpy(kept.astype(np.float32) / np.float32(1 - self.rate))
        self.scale = scale[:, :, None, None].to(device, non_blocking=True)

    def forward(self, maps: Tensor) -> Tensor:
        """``[B,C,H,W]`` -> the same."""
        if not self.training:
            return maps
        if self.scale is None or self.scale.shape[:2] != maps.shape[:2]:
            raise RuntimeError("KeyedDropout2d.draw must be called with the samples of each batch.")
        return maps * self.scale.to(maps.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def key_dropout(heads: list[nn.Module], seed: int) -> list[KeyedDropout2d]:
    """Replace the ``dropout`` that each head applies before its ``classifier``, in place; returns the new ones."""
    found: list[KeyedDropout2d] = []
    for head in heads:
        old, classifier = head.get_submodule("dropout"), head.get_submodule("classifier")
        assert isinstance(old, nn.Dropout2d) and isinstance(classifier, nn.Conv2d)
        if old.p:
            found.append(KeyedDropout2d(old.p, classifier.in_channels, len(found), seed))
            head.dropout = found[-1]
    return found
