"""Block-wise masking: exact, blocky, spread over the image, and a function of the permutation alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from train.objective.clusters import random_permutation
from train.objective.masks import block_mask, block_shapes


def permutations(count: int, units: int, seed: int = 0) -> Tensor:
    return random_permutation(count, units, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("grid", "hidden"), [((14, 14), 79), ((4, 4), 7), ((2, 3), 1), ((2, 3), 5), ((1, 8), 3), ((16, 8), 100)]
)
def test_exactly_so_many_are_hidden_in_every_sample(grid: tuple[int, int], hidden: int) -> None:
    mask = block_mask(permutations(64, grid[0] * grid[1]), grid, hidden)
    assert mask.shape == (64, grid[0] * grid[1]) and mask.dtype == torch.bool
    assert (mask.sum(1) == hidden).all()


def test_a_sample_depends_on_its_own_permutation_alone() -> None:
    order = permutations(8, 196)
    mask = block_mask(order, (14, 14), 79)
    assert torch.equal(block_mask(order[3:4], (14, 14), 79)[0], mask[3])
    assert torch.equal(block_mask(order.flip(0), (14, 14), 79).flip(0), mask)
    assert not torch.equal(mask[0], mask[1])


def test_the_first_block_lies_around_the_first_patch_of_the_permutation() -> None:
    order = permutations(200, 196, seed=5)
    shapes = block_shapes((14, 14), 79)
    mask = block_mask(order, (14, 14), 79).view(-1, 14, 14)
    for sample, row in enumerate(order.tolist()):
        rows, columns = shapes[row[-1] * len(shapes) // 196]
        top = min(max(row[0] // 14 - rows // 2, 0), 14 - rows)
        left = min(max(row[0] % 14 - columns // 2, 0), 14 - columns)
        block = mask[sample, top : top + rows, left : left + columns]
        if rows * columns <= 79:
            assert block.all()
        else:  # larger than the quota: nothing else is hidden
            assert block.sum() == 79


def test_blocks_are_more_coherent_than_random_patches_and_cover_the_image_evenly() -> None:
    order = permutations(2000, 196)
    mask = block_mask(order, (14, 14), 79)
    scattered = torch.zeros_like(mask).scatter(1, order[:, :79], True)

    def agreement(hidden: Tensor) -> float:
        grid = hidden.view(-1, 14, 14)
        return float((grid[:, 1:] == grid[:, :-1]).double().mean())

    assert agreement(scattered) == pytest.approx(0.52, abs=0.01)
    assert agreement(mask) > 0.8
    share = mask.double().mean(0).view(14, 14)
    assert share.min() > 0.08 and share.max() < 0.7  # 0.4 on average; the border less often, as with BEiT
    for shape in block_shapes((14, 14), 79):
        assert 12 <= shape[0] * shape[1] <= 90 and 0.2 < shape[0] / shape[1] < 5
