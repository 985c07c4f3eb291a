"""Every step of the segmentation augmentation against its definition."""

from __future__ import annotations

import colorsys
from collections import Counter

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from digpt.data.ade20k import resize_image, resize_labels
from digpt.errors import ConfigError
from train import keyed
from train.segment_augment import (
    SEGMENT,
    Photometric,
    SegmentAugment,
    adjust,
    hsv_to_rgb,
    rgb_to_hsv,
    segment_generator,
    shift_color,
)

Pixels = NDArray[np.uint8]
FLIP_NOTHING = SegmentAugment(crop=16, scale=(64, 16), ratio=(1, 1), cat_max_ratio=1, flip=0, photometric=None)


def generator(index: int = 0) -> np.random.Generator:
    return segment_generator(0, 0, index)


def sample(height: int = 40, width: int = 56, blocks: int = 8) -> tuple[Pixels, Pixels]:
    """Blocks of random classes 0..4, and an image of random pixels."""
    draws = np.random.default_rng(1)
    labels = draws.integers(0, 5, (-(-height // blocks), -(-width // blocks)), dtype=np.uint8)
    labels = labels.repeat(blocks, axis=0).repeat(blocks, axis=1)[:height, :width]
    return draws.integers(0, 256, (height, width, 3), dtype=np.uint8), labels


def same(one: tuple[Pixels, Pixels], other: tuple[Pixels, Pixels]) -> bool:
    return all((first == second).all() for first, second in zip(one, other, strict=True))


def test_draws_depend_on_seed_epoch_and_index_alone() -> None:
    augment = SegmentAugment(crop=16, scale=(64, 16))
    first = augment(*sample(), segment_generator(3, 2, 1))
    augment(*sample(), segment_generator(3, 2, 9))
    assert same(first, augment(*sample(), segment_generator(3, 2, 1)))
    for key in ((4, 2, 1), (3, 1, 1), (3, 2, 0)):
        assert not same(first, augment(*sample(), segment_generator(*key)))
    others = (keyed.ORDER, keyed.AUGMENT, keyed.PERMUTE, keyed.SHARDS, keyed.PHOTO, keyed.MIX, keyed.DROP)
    assert SEGMENT not in others


def test_scales_are_uniform_between_half_and_twice_the_short_side() -> None:
    augment = SegmentAugment()
    sizes = np.array([augment.draw_size(512, 683, generator(index)) for index in range(2000)])
    ratios = np.sort(sizes[:, 0] / 512)
    assert ratios[0] >= 0.5 and ratios[-1] <= 2
    uniform = np.linspace(0.5, 2, 2000)
    assert np.abs(ratios - uniform).max() < 0.06  # Kolmogorov-Smirnov: 1.63 / sqrt(2000) * 1.5 is the 99 % limit
    assert np.abs(sizes[:, 1] / sizes[:, 0] - 683 / 512).max() < 0.005
    # very long images are limited by the long side instead
    wide = np.array([augment.draw_size(100, 1000, generator(index)) for index in range(200)])
    assert wide[:, 1].min() >= 1024 and wide[:, 1].max() <= 4096 and (wide[:, 0] < 512 * 2).all()


def test_the_crop_is_a_window_of_the_resized_image() -> None:
    image, labels = sample()
    augment = SegmentAugment(crop=16, scale=(100, 25), ratio=(0.8, 1.7), cat_max_ratio=1, flip=0, photometric=None)
    corners = set()
    for index in range(30):
        replay = generator(index)
        height, width = augment.draw_size(40, 56, replay)
        top, left = replay.integers(0, height - 16 + 1), replay.integers(0, width - 16 + 1)
        window = np.s_[top : top + 16, left : left + 16]
        expected = resize_image(image, height, width)[window], resize_labels(labels, height, width)[window]
        assert same(augment(image, labels, generator(index)), expected)
        corners.add((top, left))
    assert len(corners) > 20


def test_no_class_takes_more_than_three_quarters_where_it_can_be_avoided() -> None:
    labels = np.zeros((16, 64), np.uint8)
    labels[:, 32:] = 1  # windows of 16 columns that begin at 16..32 show both, 21..27 less than 75 % of each
    image = np.zeros((16, 64, 3), np.uint8)
    shares: dict[float, list[float]] = {}
    for limit in (0.75, 1.0):
        augment = SegmentAugment(crop=16, scale=(64, 16), ratio=(1, 1), cat_max_ratio=limit, photometric=None)
        crops = [augment(image, labels, generator(index))[1] for index in range(300)]
        shares[limit] = [np.bincount(crop.ravel()).max() / 256 for crop in crops]
    unlucky = (1 - 7 / 49) ** 11  # ten windows looked at, and an eleventh taken as it comes
    assert np.mean(np.array(shares[0.75]) >= 0.75) == pytest.approx(unlucky, abs=0.07)
    assert np.mean(np.array(shares[1.0]) >= 0.75) > 0.8


def test_variety_leaves_ignored_pixels_out_and_wants_two_classes() -> None:
    augment = SegmentAugment(cat_max_ratio=0.75)

    def of(*counts: tuple[int, int]) -> bool:
        return augment.varied(np.concatenate([np.full(count, value, np.uint8) for value, count in counts])[None])

    assert of((0, 74), (1, 26)) and not of((0, 75), (1, 25)) and not of((3, 100))
    assert of((255, 900), (0, 50), (1, 50)) and not of((255, 900), (0, 100)) and not of((255, 100))


@pytest.mark.parametrize(("varied", "expected"), [(0, 10), (4, 4), (10, 10)])
def test_ten_windows_are_looked_at(monkeypatch: pytest.MonkeyPatch, varied: int, expected: int) -> None:
    looks: list[int] = []

    def look(self: SegmentAugment, labels: Pixels) -> bool:
        looks.append(labels.size)
        return len(looks) == varied

    monkeypatch.setattr(SegmentAugment, "varied", look)
    augment = SegmentAugment(crop=16, scale=(64, 16), ratio=(1, 1), photometric=None)
    augment(np.zeros((16, 64, 3), np.uint8), np.zeros((16, 64), np.uint8), generator())
    assert looks == [256] * expected
    augment(np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8), generator())
    assert len(looks) == expected  # where there is but one window, none


def test_flips_mirror_image_and_labels_alike_half_of_the_time() -> None:
    labels = sample(16, 16, 2)[1]
    image = np.repeat(labels[..., None], 3, axis=2)  # the image shows its labels
    settings = dict(crop=16, scale=(16, 16), ratio=(1.0, 1.0), photometric=None)
    flipped = 0
    for index in range(400):
        seen, marked = SegmentAugment(**settings)(image, labels, generator(index))  # type: ignore[arg-type]
        assert (seen[..., 0] == marked).all()
        assert (marked == labels).all() or (marked == labels[:, ::-1]).all()
        flipped += int((marked == labels[:, ::-1]).all())
    assert 160 < flipped < 240
    always = SegmentAugment(**settings, flip=1)(image, labels, generator())  # type: ignore[arg-type]
    assert (always[1] == labels[:, ::-1]).all()


def test_labels_are_never_interpolated() -> None:
    image, labels = sample()
    labels[labels > 2] = 200
    labels[labels < 3] *= 40  # 0, 40, 80 and 200: anything between would show
    augment = SegmentAugment(crop=32, scale=(160, 40))
    seen = set()
    for index in range(60):
        seen |= set(np.unique(augment(image, labels, generator(index))[1]))
    assert seen == {0, 40, 80, 200, 255}


def test_a_small_image_is_padded_to_the_right_and_below_with_the_mean_and_ignored() -> None:
    image, labels = sample(10, 12)
    augment = SegmentAugment(crop=16, scale=(12, 10), ratio=(1, 1), flip=1, photometric=None)
    full, marked = augment(image, labels, generator())
    assert full.shape == (16, 16, 3) and marked.shape == (16, 16) and full.dtype == marked.dtype == np.uint8
    assert same((full[:10, :12], marked[:10, :12]), (image[:, ::-1], labels[:, ::-1]))
    beside = np.ones((16, 16), bool)
    beside[:10, :12] = False
    assert (marked[beside] == 255).all() and (full[beside] == [124, 116, 104]).all()
    normalised = (full[beside] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.abs(normalised).max() < 0.01  # mmsegmentation has 0 here; black would be -2
    other = SegmentAugment(crop=16, scale=(12, 10), ratio=(1, 1), mean=(0.5, 0.5, 1.0))(image, labels, generator())
    assert (other[0][beside] == [128, 128, 255]).all()  # distorted before it is padded, so exactly the mean


def test_the_input_is_left_as_it_was() -> None:
    image, labels = sample(16, 16)
    before = image.copy(), labels.copy()
    for index in range(20):
        out = SegmentAugment(crop=16, scale=(16, 16), ratio=(1, 1))(image, labels, generator(index))
        assert not np.shares_memory(out[0], image) and not np.shares_memory(out[1], labels)
    assert same(before, (image, labels))
    assert same(FLIP_NOTHING(image, labels, generator()), before)  # the control: nothing drawn, nothing changed
    with pytest.raises(ValueError, match="differ in size"):
        FLIP_NOTHING(image, labels[1:], generator())


def test_brightness_shifts_by_up_to_32_levels_half_of_the_time() -> None:
    grey = np.full((1, 1, 3), 100, np.uint8)  # without colour, so that saturation and hue do nothing
    photometric = Photometric(contrast=(1, 1))
    values = np.array([photometric(grey, generator(index))[0, 0] for index in range(1500)])
    assert (values[:, :1] == values).all()
    assert 68 <= values.min() <= 69 and 130 <= values.max() <= 131  # cut to whole numbers: 132 has no width
    assert np.mean(values != 100) == pytest.approx(0.5 * 63 / 64, abs=0.03)
    assert np.mean(values) == pytest.approx(100 - 0.25, abs=0.6)


def test_contrast_multiplies_by_half_to_one_and_a_half_half_of_the_time() -> None:
    grey = np.full((1, 1, 3), 100, np.uint8)
    photometric = Photometric(brightness=0)
    values = np.array([photometric(grey, generator(index))[0, 0, 0] for index in range(1500)])
    assert 50 <= values.min() <= 51 and 148 <= values.max() <= 149
    assert np.mean(values != 100) == pytest.approx(0.5, abs=0.03)


def test_values_are_clipped_and_cut() -> None:
    values = np.array([0, 10, 100, 200, 255], dtype=np.uint8)
    assert adjust(values, factor=1.5).tolist() == [0, 15, 150, 255, 255]
    assert adjust(values, factor=0.55).tolist() == [0, 5, 55, 110, 140]
    assert adjust(values, shift=-30.5).tolist() == [0, 0, 69, 169, 224]
    assert adjust(values, shift=30.5).tolist() == [30, 40, 130, 230, 255]


def test_contrast_comes_before_or_after_the_changes_of_colour() -> None:
    image = np.array([[[200, 150, 10]]], dtype=np.uint8)  # multiplied by 1.5, red is clipped
    photometric = Photometric(brightness=0, contrast=(1.5, 1.5), saturation=(0.8, 0.8), hue=1, probability=1)
    expected = {}
    for hue in (-1, 0):  # the upper end is excluded
        expected["before", hue] = tuple(shift_color(adjust(image, 1.5), 0.8, hue)[0, 0].tolist())
        expected["after", hue] = tuple(adjust(shift_color(image, 0.8, hue), 1.5)[0, 0].tolist())
    assert len(set(expected.values())) == 4
    seen = Counter(tuple(photometric(image, generator(index))[0, 0].tolist()) for index in range(1000))
    assert seen.keys() == set(expected.values())
    assert all(count == pytest.approx(250, abs=60) for count in seen.values())


def test_every_change_is_made_half_of_the_time() -> None:
    """Of a coloured image, 1 / 16 stay as they are, and those whose hue is turned by 0."""
    image = np.array([[[200, 120, 40]]], dtype=np.uint8)
    kept = np.mean([(Photometric()(image, generator(index)) == image).all() for index in range(1500)])
    assert kept == pytest.approx(1 / 16, abs=0.02)
    assert (Photometric(probability=0)(image, generator()) == image).all()


def test_hue_is_turned_by_18_steps_of_two_degrees_at_most() -> None:
    red = np.array([[[255, 0, 0]]], dtype=np.uint8)
    photometric = Photometric(brightness=0, contrast=(1, 1), saturation=(1, 1))
    hues = [int(rgb_to_hsv(photometric(red, generator(index)))[0, 0, 0]) for index in range(1500)]
    turned = Counter((hue + 90) % 180 - 90 for hue in hues)
    assert turned.keys() == set(range(-18, 18))
    assert turned[0] / 1500 == pytest.approx(0.5 + 0.5 / 36, abs=0.03)


def test_hsv_is_opencvs_bit_for_bit() -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    image[:4] = image[:4, :, :1]  # grey
    image[4:8] //= 64  # dark, where rounding is coarse
    assert (rgb_to_hsv(image) == cv2.cvtColor(image, cv2.COLOR_RGB2HSV)).all()
    assert rgb_to_hsv(np.array([0, 0, 0], np.uint8)).tolist() == [0, 0, 0]


def test_hsv_and_back_against_the_slow_reference() -> None:
    draws = np.random.default_rng(0)
    image = draws.integers(0, 256, (300, 3), dtype=np.uint8)
    slow = np.array([colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in image]) * [180, 255, 255]
    apart = np.abs(rgb_to_hsv(image) - slow)
    apart[:, 0] = np.minimum(apart[:, 0], 180 - apart[:, 0])
    # rounded; the 12 fractional bits of 180 / (6 * spread), times up to 5 * spread, and of 255 / value, times spread
    assert (apart.max(axis=0) <= 0.5 + np.array([5 * 255, 255, 0]) / 2**13).all()
    hsv = np.stack([draws.integers(0, size, 300) for size in (180, 256, 256)], axis=1).astype(np.uint8)
    back = np.array([colorsys.hsv_to_rgb(*(pixel / [180, 255, 255])) for pixel in hsv]) * 255
    assert np.abs(hsv_to_rgb(hsv) - back).max() <= 0.5 + 1e-4
    cut = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    assert np.abs(hsv_to_rgb(hsv).astype(int) - cut).max() <= 1


@pytest.mark.parametrize(("saturation", "hue"), [(0.5, 0), (1.5, 0), (1.0, -18), (1.0, 17), (1.3, 9), (0.0, 5)])
def test_colour_shifts_against_the_slow_reference(saturation: float, hue: int) -> None:
    image = np.random.default_rng(2).integers(0, 256, (300, 3), dtype=np.uint8)
    slow = []
    for pixel in image:
        turn, chroma, value = colorsys.rgb_to_hsv(*(pixel / 255))
        turn, chroma = round(turn * 180) % 180, round(chroma * 255)
        turn, chroma = (turn + hue) % 180, int(min(255, chroma * saturation))
        slow.append([255 * channel for channel in colorsys.hsv_to_rgb(turn / 180, chroma / 255, value)])
    apart = np.abs(shift_color(image, saturation, hue) - np.array(slow))
    assert np.mean(apart <= 0.5 + 1e-4) > 0.97  # the rest: ties of the 8-bit steps, decided the other way
    assert apart.max() <= 255 / 30 + 1.5 + 0.5  # one step of hue, one of saturation, and rounding
    assert (shift_color(image, 1.0, 0) == image).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": 0},
        {"scale": (512, 0)},
        {"ratio": (2.0, 0.5)},
        {"ratio": (0.0, 1.0)},
        {"cat_max_ratio": 0.0},
        {"flip": 1.5},
    ],
)
def test_settings_that_cannot_work(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SegmentAugment(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"contrast": (1.5, 0.5)}, {"saturation": (-1.0, 1.0)}, {"hue": 0}, {"brightness": -1}, {"probability": 2}]
)
def test_photometric_settings_that_cannot_work(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Photometric(**wrong)  # type: ignore[arg-type]
