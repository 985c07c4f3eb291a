"""Masks: D-iGPT's attention mask, and which patches masked image modelling hides."""

from __future__ import annotations

import torch
from torch import Tensor


def block_causal_mask(clusters: int, size: int) -> Tensor:
    """Boolean mask ``[N, N]``, True where row may attend to column; N = clusters*size + 1, class token last.

    Full inside a cluster, causal over clusters. The class token is a member of the LAST cluster: it sees
    everything, and only that cluster and itself see it (as measured on the released code).
    """
    member = torch.arange(clusters).repeat_interleave(size)
    member = torch.cat([member, member.new_tensor([clusters - 1])])
    return member[:, None] >= member[None, :]


# Blocks hide 16 or more of 196 patches with side ratios between 0.3 and 1/0.3 (BEiT, section 2.3; EVA, section 2.1).
SMALLEST_BLOCK, SIDE_RATIO, SCALES = 16 / 196, 0.3, 8


def block_shapes(grid: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """Rows and columns of the blocks to choose from: areas evenly spaced up to ``count``, side ratios evenly in log."""
    smallest = max(1.0, SMALLEST_BLOCK * grid[0] * grid[1])
    shapes = []
    for area_step in range(SCALES):
        area = smallest + (max(count, smallest) - smallest) * area_step / (SCALES - 1)
        for ratio_step in range(SCALES):
            ratio = SIDE_RATIO ** (1 - 2 * ratio_step / (SCALES - 1))
            rows, columns = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            shapes.append((min(max(rows, 1), grid[0]), min(max(columns, 1), grid[1])))
    return shapes


def block_mask(permutation: Tensor, grid: tuple[int, int], count: int) -> Tensor:
    """Hide exactly ``count`` patches per sample in rectangular blocks -> boolean ``[B,N]``, True where hidden.

    A function of ``permutation`` ``[B,N]`` alone, without loops over samples: its first entries are the centres of
    successive blocks, its last entries choose their shapes. Blocks are laid until the quota is full; of the block that
    fills it, the patches nearest to its centre count.
    """
    height, width = grid
    total = permutation.shape[1]
    shapes = permutation.new_tensor(block_shapes(grid, count))  # [64, 2]
    blocks = min(2 * SCALES, total)
    centres = permutation[:, :blocks]  # [B, J]
    sides = shapes[permutation.flip(1)[:, :blocks] * len(shapes) // total]  # [B, J, 2]
    corner = torch.stack([centres // width, centres % width], dim=-1) - sides // 2
    limit = permutation.new_tensor([height, width]) - sides
    corner = torch.minimum(corner.clamp_min(0), limit)  # blocks at the border are moved inside
    cells = torch.arange(total, device=permutation.device)
    place = torch.stack([cells // width, cells % width], dim=-1)  # [N, 2]
    offset = place - corner[:, :, None]  # [B, J, N, 2]
    inside = ((offset >= 0) & (offset < sides[:, :, None])).all(-1)
    order = torch.arange(blocks, device=permutation.device)[:, None].expand_as(inside)
    first = torch.where(inside, order, blocks).amin(1)  # [B, N]: which block hides it; `blocks`: none
    distance = (2 * offset + 1 - sides[:, :, None]).square().sum(-1)  # from the block's centre, [B, J, N]
    own = distance.gather(1, first.clamp_max(blocks - 1)[:, None])[:, 0]
    own = torch.where(first == blocks, permutation.argsort(1), own)  # never reached by a block: by the permutation
    rank = (first * (own.max() + 1) + own).argsort(dim=1, stable=True)
    return torch.zeros_like(first, dtype=torch.bool).scatter(1, rank[:, :count], True)
