"""Augmentation of photographs: what timm's blocks are given, keyed draws, and mixing in fixed pairs."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import Mixup
from torch import Tensor

from digpt.decode import decode
from digpt.errors import ConfigError, UnreadableImageError
from train.keyed import MIX, keeping_generators, keyed_bits, seed_generators
from train.photo_augment import CropConfig, FinetuneAugment, PhotoAugment, mix

SIZE, CLASSES = 32, 5
PLAIN = FinetuneAugment(randaugment="", erasing=0, mixup=0, cutmix=0)


def gradient(width: int = 80, height: int = 60) -> np.ndarray:
    """Red grows to the right, green downwards: a crop's pixels tell where it was taken."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([red, green, np.full_like(red, 128)], axis=2).round().astype(np.uint8)


def encode(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


PICTURE = encode(gradient())


def test_a_crop_is_a_function_of_its_key() -> None:
    augment = PhotoAugment(CropConfig(), SIZE, seed=1)
    with keeping_generators():
        first = augment(PICTURE, epoch=2, index=7)
        augment(PICTURE, epoch=5, index=1)
        assert torch.equal(augment(PICTURE, epoch=2, index=7), first)
        for other in (
            augment(PICTURE, 3, 7),
            augment(PICTURE, 2, 8),
            PhotoAugment(CropConfig(), SIZE, 2)(PICTURE, 2, 7),
        ):
            assert not torch.equal(other, first)


def test_crops_have_the_areas_and_flips_that_are_asked_for() -> None:
    def measured(config: CropConfig) -> tuple[np.ndarray, np.ndarray]:
        augment = PhotoAugment(config, SIZE, seed=0)
        with keeping_generators():
            crops = torch.stack([augment(PICTURE, 0, index) for index in range(300)]).float()
        across, down = crops[:, 0].mean(1), crops[:, 1].mean(2)
        area = (across[:, -1] - across[:, 0]).abs() * (down[:, -1] - down[:, 0]).abs() / 255**2
        return area.numpy(), (across[:, -1] < across[:, 0]).numpy()

    area, flipped = measured(CropConfig())
    assert 0.13 < area.min() < 0.25 and 0.85 < area.max() <= 1.01 and 0.35 < flipped.mean() < 0.65
    area, flipped = measured(CropConfig(scale=(0.5, 0.5), flip=0))
    assert np.allclose(area, 0.5, atol=0.06) and not flipped.any()


def test_finetuning_normalises_and_then_erases_with_noise() -> None:
    grey = encode(np.full((60, 80, 3), 128, np.uint8))
    level = (128 / 255 - 0.485) / 0.229
    with keeping_generators():
        plain = PhotoAugment(PLAIN, SIZE, 0)(grey, 0, 0)
        assert plain.dtype == torch.float32 and torch.allclose(plain[0], torch.tensor(level), atol=1e-5)
        erase = PhotoAugment(FinetuneAugment(randaugment="", erasing=1), SIZE, 0)(grey, 0, 0)
        noise = erase[0][(erase[0] - level).abs() > 1e-4]
        assert 0.02 * SIZE**2 * 0.5 < len(noise) < SIZE**2 / 3 * 1.2
        assert abs(float(noise.mean())) < 0.5 and 0.6 < float(noise.std()) < 1.4
        often = [PhotoAugment(FinetuneAugment(randaugment=""), SIZE, 0)(grey, 0, index) for index in range(200)]
    erased = np.mean([bool(((image[0] - level).abs() > 1e-4).any()) for image in often])
    assert 0.15 < erased < 0.35


def test_randaugment_changes_more_than_the_crop() -> None:
    with keeping_generators():
        augmented = PhotoAugment(FinetuneAugment(erasing=0), SIZE, 0)
        pairs = [(augmented(PICTURE, 0, i), PhotoAugment(PLAIN, SIZE, 0)(PICTURE, 0, i)) for i in range(30)]
        again = augmented(PICTURE, 0, 3)
    assert np.mean([not torch.allclose(left, right, atol=1e-3) for left, right in pairs]) > 0.7
    assert torch.equal(again, pairs[3][0])


def test_images_are_decoded_as_for_inference() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(gradient(), "JPEG", exif=exif, quality=95)
    augment = PhotoAugment(CropConfig(), SIZE, 0)
    assert np.array_equal(np.asarray(augment.decode(turned)), np.asarray(decode(turned)))
    assert augment.decode(turned).size == (60, 80)
    clear = encode(np.zeros((8, 8, 4), np.uint8))
    assert augment.decode(clear).getpixel((0, 0)) == (255, 255, 255)
    assert PhotoAugment(CropConfig(alpha="drop"), SIZE, 0).decode(clear).getpixel((0, 0)) == (0, 0, 0)
    with pytest.raises(UnreadableImageError):
        augment.decode(turned[:300])


def test_draft_decodes_smaller_but_never_below_the_smallest_crop() -> None:
    large = encode(gradient(1600, 1200), "JPEG", quality=95)
    config = CropConfig(draft=True)
    augment = PhotoAugment(config, SIZE, 0)
    assert augment.draft_size == 72  # 32 / sqrt(0.2), rounded up
    assert augment.decode(large).size == (200, 150)  # an eighth, JPEG's least
    assert PhotoAugment(config, 224, 0).decode(large).size == (800, 600)  # 501 needed: a quarter would have 300
    with keeping_generators():
        drafted, full = augment(large, 0, 0), PhotoAugment(CropConfig(), SIZE, 0)(large, 0, 0)
    assert (drafted.float() - full.float()).abs().max() < 12


def batch(rows: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 3, SIZE, SIZE, generator=generator), torch.arange(rows) % CLASSES


def mixed(rows: slice, config: FinetuneAugment, seed: int = 1, step: int = 4) -> tuple[Tensor, Tensor]:
    images, labels = batch()
    start = {"seed": seed, "step": step, "first_row": rows.start}
    return mix(images[rows].clone(), labels[rows], config=config, num_classes=CLASSES, **start)


def test_mixing_is_timms_on_pairs_of_the_global_batch() -> None:
    images, labels = batch()
    whole = mixed(slice(0, 8), FinetuneAugment())
    timm_mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
    for pair in range(4):
        rows = slice(2 * pair, 2 * pair + 2)
        with keeping_generators():
            seed_generators(keyed_bits(1, np.array([4]), np.array([pair]), 3, MIX)[0])
            expected = timm_mixup(images[rows].clone(), labels[rows])
        assert torch.equal(whole[0][rows], expected[0]) and torch.equal(whole[1][rows], expected[1])
        part = mixed(rows, FinetuneAugment())
        assert torch.equal(part[0], whole[0][rows]) and torch.equal(part[1], whole[1][rows])
    assert not torch.equal(whole[0], images)
    assert torch.allclose(whole[1].sum(1), torch.ones(8))
    for other in (mixed(slice(0, 8), FinetuneAugment(), seed=2), mixed(slice(0, 8), FinetuneAugment(), step=5)):
        assert not torch.equal(other[1], whole[1])


@pytest.mark.parametrize("config", [FinetuneAugment(cutmix=0, smoothing=0), FinetuneAugment(mixup=0, smoothing=0)])
def test_soft_targets_are_the_shares_of_the_pixels(config: FinetuneAugment) -> None:
    images, labels = batch()
    got, targets = mixed(slice(0, 8), config)
    for row in range(8):
        own, other = images[row], images[row ^ 1]
        if config.cutmix:
            share = (got[row] == own).float().mean()
            assert bool(((got[row] == own) | (got[row] == other)).all())
        else:
            share = ((got[row] - other) * (own - other)).sum() / ((own - other) ** 2).sum()
        assert abs(float(targets[row, labels[row]] - share)) < 1e-3
        assert abs(float(targets[row, labels[row ^ 1]] - (1 - share))) < 1e-3


def test_without_mixing_labels_are_only_smoothed() -> None:
    images, targets = mixed(slice(1, 4), FinetuneAugment(mixup=0, cutmix=0))
    assert torch.equal(images, batch()[0][1:4])
    assert targets.argmax(1).tolist() == [1, 2, 3] and torch.allclose(targets.sum(1), torch.ones(3))
    assert targets[0].tolist() == pytest.approx([0.02, 0.92, 0.02, 0.02, 0.02])


def test_halved_pairs_and_labels_beyond_the_classes_are_refused() -> None:
    for rows in (slice(0, 3), slice(1, 3)):
        with pytest.raises(ConfigError, match="pairs of images"):
            mixed(rows, FinetuneAugment())
    images, labels = batch()
    with pytest.raises(ConfigError, match="Labels reach from 0 to 4, but there are 3 classes"):
        mix(images, labels, seed=0, step=0, first_row=0, config=FinetuneAugment(), num_classes=3)
