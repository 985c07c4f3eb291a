"""Stochastic depth (Huang et al., 2016) whose draws are a function of (seed, epoch, index), like everything else.

timm's ``DropPath`` draws from torch's global generator, so a resumed run, or one with another number of processes,
would drop other blocks for the same image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from train.keyed import DROP, keyed_bits


class KeyedDropPath(nn.Module):
    """Drops a branch for some samples and scales it by ``1 / (1 - rate)`` for the others; nothing in eval mode."""

    def __init__(self, rate: float, number: int, seed: int) -> None:
        super().__init__()
        self.rate, self.number, self.seed = rate, number, seed
        self.scale: Tensor | None = None

    def draw(self, epochs: NDArray[np.int64], items: NDArray[np.int64], device: torch.device) -> None:
        """Decide for the samples of the next forward pass."""
        bits = keyed_bits(self.seed + self.number * 1_000_003, epochs, items, 1, DROP)[:, 0] >> np.uint64(40)
        kept = bits.astype(np.float64) * 2.0**-24 >= self.rate
        scale = torch.from_numpy(kept.astype(np.float32) / np.float32(1 - self.rate))
        self.scale = scale[:, None, None].to(device, non_blocking=True)

    def forward(self, branch: Tensor) -> Tensor:
        """``[B,N,C]`` -> the same."""
        if not self.training:
            return branch
        if self.scale is None or len(self.scale) != len(branch):
            raise RuntimeError("KeyedDropPath.draw must be called with the samples of each batch.")
        return branch * self.scale.to(branch.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def key_drop_path(encoder: VisionTransformer, seed: int) -> list[KeyedDropPath]:
    """Replace every ``DropPath`` of ``encoder`` in place; returns the new ones."""
    found: list[KeyedDropPath] = []
    for block in encoder.blocks:
        for name in ("drop_path1", "drop_path2"):
            old = getattr(block, name)
            if isinstance(old, DropPath) and old.drop_prob:
                found.append(KeyedDropPath(float(old.drop_prob), len(found), seed))
                setattr(block, name, found[-1])
    return found
