"""Pixels as the target: MAE's, normalised patch by patch (the paper's iGPT and MAE rows of Table 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from train.objective.spaces import TargetKind
from train.targets.base import grid_of


class PixelTarget(nn.Module):
    """Every patch minus its mean, divided by its standard deviation (MAE, section 3, "Reconstruction target").

    The statistics are those of the raw values in [0, 1], over all pixels and channels of the patch. The student's own
    normalisation, the same for all channels, would cancel out; a flat patch becomes zero.
    """

    kind: TargetKind = "pixels"
    has_class_token = False

    def __init__(self, patch_size: int, image_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.grid = grid_of(image_size, (patch_size, patch_size), "The pixel target")
        self.width = patch_size * patch_size * 3
        self.fingerprint = f"pixels:{patch_size}"
        self.provenance: dict[str, Any] = {"source": "pixels"}

    @torch.no_grad()
    def forward(self, images01: Tensor) -> Tensor:
        """float ``[B,3,H,W]`` in [0, 1] -> float32 ``[B, N, p*p*3]``, values in the order row, column, channel."""
        (rows, columns), size = self.grid, self.patch_size
        patches = images01.float().reshape(-1, 3, rows, size, columns, size)
        patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(len(images01), rows * columns, self.width)
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()
