"""Augmentation: range, determinism, independence of the batch, and that each switch does what it says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from train.augment import DRAWS, AugmentConfig, augment, compose_on_white, line_art
from train.keyed import keyed_uniform

OFF = AugmentConfig(
    scale=(1.0, 1.0), aspect=0, rotate=0, shear=0, shift=0, elastic=0, background=0, tone=0, color=0, hue=0, gray=0,
    invert=0, line_art=0, posterize=0, blur=0,
)  # fmt: skip


@pytest.fixture
def sprites() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    rgba = torch.randint(0, 256, (40, 4, 16, 16), dtype=torch.uint8, generator=generator)
    rgba[:, 3, :4] = 0
    return rgba


def draws(count: int) -> torch.Tensor:
    return torch.from_numpy(keyed_uniform(0, np.zeros(count, dtype=np.int64), np.arange(count), DRAWS))


def test_everything_off_is_composition_on_white(sprites: torch.Tensor) -> None:
    expected = compose_on_white(sprites.float() / 255)
    assert torch.allclose(augment(sprites, draws(40), OFF), expected, atol=1e-5)


def test_output_is_in_range_and_independent_of_batch_and_chunk(sprites: torch.Tensor) -> None:
    config, uniforms = AugmentConfig(), draws(40)
    whole = augment(sprites, uniforms, config)
    assert whole.min() >= 0 and whole.max() <= 1
    assert torch.allclose(whole, augment(sprites, uniforms, config, chunk=7), atol=1e-6)
    assert torch.allclose(whole[3:5], augment(sprites[3:5], uniforms[3:5], config), atol=1e-6)


@pytest.mark.parametrize(
    "name", ["shift", "rotate", "shear", "aspect", "elastic", "background", "tone", "color", "invert", "line_art"]
)
def test_each_switch_changes_the_picture(sprites: torch.Tensor, name: str) -> None:
    on = dataclasses.replace(OFF, **{name: 1.0 if name != "rotate" else 20.0})
    assert (augment(sprites, draws(40), on) - augment(sprites, draws(40), OFF)).abs().amax((1, 2, 3)).max() > 0.1


def test_flip_mirrors(sprites: torch.Tensor) -> None:
    flipped = augment(sprites, draws(40), dataclasses.replace(OFF, flip=1.0))
    assert torch.allclose(flipped, augment(sprites, draws(40), OFF).flip(-1), atol=1e-4)


def test_line_art_inks_the_outline_of_a_disc_and_not_its_inside() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    alpha = ((x**2 + y**2) < 0.5).float()[None, None]
    color = 1 - alpha * torch.tensor([0.1, 0.3, 0.9]).view(1, 3, 1, 1)  # a bright disc over white
    ink = line_art(color, alpha, torch.tensor([[0.5, 0.9, 0.0, 0.1, 0.0, 0.0]]))[0, 0]
    assert ink[16, 16] < 0.05 and ink[0, 0] < 0.05
    assert ink[16].max() > 0.9


def test_a_tone_curve_keeps_regions_and_changes_their_colours() -> None:
    halves = torch.full((16, 4, 16, 16), 255, dtype=torch.uint8)
    halves[:, :3, :, 8:] = 40
    image = augment(halves, draws(16), dataclasses.replace(OFF, tone=1.0))
    assert torch.allclose(image[..., :7].std(dim=(2, 3)), torch.zeros(16, 3), atol=1e-5)
    assert (image[:, :, 8, 2] - 1).abs().max() > 0.5


def test_every_uniform_is_used_by_one_transformation_only(sprites: torch.Tensor) -> None:
    from train import augment as module

    used: list[int] = []

    class Recording(module._Draws):
        def take(self, count: int) -> torch.Tensor:
            used.extend(range(self._next, self._next + count))
            return super().take(count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_Draws", Recording)
        augment(sprites, draws(40), AugmentConfig(), chunk=40)
    assert used == list(range(DRAWS))
