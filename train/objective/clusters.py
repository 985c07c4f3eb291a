"""Clusters of grid tokens: the unit of autoregression (paper, section 3.2).

Shapes: B batch, H x W token grid, K = rows*columns clusters, S tokens per cluster, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from digpt.errors import ConfigError


@dataclass(frozen=True)
class ClusterLayout:
    """How a token grid ``grid = (H, W)`` splits into ``cluster_grid = (rows, columns)`` equal clusters."""

    grid: tuple[int, int]
    cluster_grid: tuple[int, int]
    name: str = "patch grid"

    def __post_init__(self) -> None:
        check_arrangement(self.cluster_grid, {self.name: self.grid})

    @property
    def count(self) -> int:
        """K, the number of clusters."""
        return self.cluster_grid[0] * self.cluster_grid[1]

    @property
    def cluster_shape(self) -> tuple[int, int]:
        """Rows and columns of tokens inside one cluster."""
        return self.grid[0] // self.cluster_grid[0], self.grid[1] // self.cluster_grid[1]

    @property
    def size(self) -> int:
        """S, tokens per cluster."""
        return self.cluster_shape[0] * self.cluster_shape[1]

    def to_clusters(self, tokens: Tensor) -> Tensor:
        """Raster tokens ``[B, H*W, C]`` -> ``[B, K, S, C]``, raster order inside a cluster and over clusters."""
        batch, _, channels = tokens.shape
        (rows, columns), (height, width) = self.cluster_grid, self.cluster_shape
        split = tokens.reshape(batch, rows, height, columns, width, channels)
        return split.permute(0, 1, 3, 2, 4, 5).reshape(batch, self.count, self.size, channels)

    def from_clusters(self, clusters: Tensor) -> Tensor:
        """The inverse of :meth:`to_clusters`: ``[B, K, S, C]`` -> ``[B, H*W, C]``."""
        batch, channels = clusters.shape[0], clusters.shape[-1]
        (rows, columns), (height, width) = self.cluster_grid, self.cluster_shape
        split = clusters.reshape(batch, rows, columns, height, width, channels)
        return split.permute(0, 1, 3, 2, 4, 5).reshape(batch, self.grid[0] * self.grid[1], channels)


def check_arrangement(cluster_grid: tuple[int, int], grids: dict[str, tuple[int, int]]) -> None:
    """Raise ConfigError, naming the valid rows and columns, unless ``cluster_grid`` divides every named grid."""
    valid = [
        [n for n in range(1, min(g[axis] for g in grids.values()) + 1) if all(g[axis] % n == 0 for g in grids.values())]
        for axis in (0, 1)
    ]
    rows, columns = cluster_grid
    if rows in valid[0] and columns in valid[1] and rows * columns >= 2:
        return
    named = " and the ".join(f"{g[0]}x{g[1]} {name}" for name, g in grids.items())
    raise ConfigError(
        f"cluster_grid={rows}x{columns} cannot divide the {named} into at least two equal clusters; "
        f"valid: rows in {valid[0]}, columns in {valid[1]}, rows*columns >= 2."
    )


def visible_patches(images: Tensor, layout: ClusterLayout, visible: Tensor) -> Tensor:
    """Cut out the pixels of the visible clusters only: ``[B,3,h,w]``, ids ``[B,M]`` -> ``[B, M*S, 3*p*p]``.

    One gather from a view of the image: pixels of the other clusters are never read.
    """
    batch, channels, pixel_h, pixel_w = images.shape
    (rows, columns), (height, width) = layout.cluster_grid, layout.cluster_shape
    patch_h, patch_w = pixel_h // layout.grid[0], pixel_w // layout.grid[1]
    view = images.reshape(batch, channels, rows, height, patch_h, columns, width, patch_w)
    view = view.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [B, rows, columns, height, width, 3, p, p]
    samples = torch.arange(batch, device=images.device)[:, None]
    chosen = view[samples, visible // columns, visible % columns]  # [B, M, height, width, 3, p, p]
    return chosen.reshape(batch, visible.shape[1] * layout.size, channels * patch_h * patch_w)


def random_permutation(
    batch: int, count: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> Tensor:
    """One uniformly random order of the ``count`` clusters per sample, int64 ``[B, K]``."""
    return torch.rand(batch, count, device=device, generator=generator).argsort(dim=1)
