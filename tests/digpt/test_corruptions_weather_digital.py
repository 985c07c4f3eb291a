"""Weather and digital corruptions against plain references of the published definitions."""

from __future__ import annotations

import colorsys
import io
import itertools

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from digpt.corruptions import corrupt
from digpt.corruptions.constants import IMAGENET_C, TINY_IMAGENET_C, Elastic, Fog, Frost, Snow
from digpt.corruptions.digital import affine_map, contrast, elastic_transform
from digpt.corruptions.filters import motion_filter
from digpt.corruptions.weather import TEXTURES, brightness, fog, frost, plasma_fractal, snow

Pixels = NDArray[np.uint8]
Reals = NDArray[np.float64]


def rough(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cut(image: NDArray[np.floating]) -> NDArray[np.int64]:
    """Floats in [0, 1] to levels, as the published files were written."""
    return np.floor(np.clip(image, 0, 1) * 255 + 1e-6).astype(np.int64)


@pytest.mark.parametrize("constants", [*IMAGENET_C.snow, *TINY_IMAGENET_C.snow], ids=str)
def test_snow_whitens_and_adds_streaks_twice(constants: Snow) -> None:
    image = rough(64, 64) // 2
    draws = np.random.default_rng(3)
    noise = draws.standard_normal((64, 64), dtype=np.float32) * constants.std + constants.mean
    crop = int(np.ceil(64 / constants.zoom))
    first = (64 - crop) // 2
    flakes = ndimage.zoom(noise[first : first + crop, first : first + crop], constants.zoom, order=1)
    trim = (len(flakes) - 64) // 2
    flakes = flakes[trim : trim + 64, trim : trim + 64]
    flakes = cut(np.where(flakes < constants.threshold, 0, flakes)).astype(np.uint8)
    layer = motion_filter(flakes, constants.motion, draws.uniform(-135, -45)) / 255
    clean = image / 255
    grey = (clean @ [0.299, 0.587, 0.114])[..., None]
    mixed = constants.share * clean + (1 - constants.share) * np.maximum(clean, 1.5 * grey + 0.5)
    expected = cut(mixed + (layer + np.rot90(layer, 2))[..., None])
    difference = np.abs(snow(image, constants, np.random.default_rng(3)) - expected)
    assert difference.max() <= 2 and difference.mean() < 0.05
    assert layer.max() > 0.1  # there are flakes


@pytest.mark.parametrize("constants", [IMAGENET_C.frost[0], IMAGENET_C.frost[4], TINY_IMAGENET_C.frost[2]], ids=str)
def test_frost_adds_a_part_of_a_texture(constants: Frost) -> None:
    names = ["frost1.webp", "frost2.webp", "frost2.webp", "frost4.jpg", "frost5.jpg"]
    seen = set()
    for seed in range(12):
        draws = np.random.default_rng(seed)
        name = names[draws.integers(5)]
        texture = np.asarray(Image.open(TEXTURES / name).convert("RGB"))
        if constants.scale != 1:
            texture = cv2.resize(texture, (0, 0), fx=constants.scale, fy=constants.scale)
        top, left = draws.integers(texture.shape[0] - 64), draws.integers(texture.shape[1] - 70)
        part = texture[top : top + 64, left : left + 70] / 255
        image = rough(64, 70, seed)
        expected = cut(constants.image * image / 255 + constants.texture * part)
        difference = np.abs(frost(image, constants, np.random.default_rng(seed)) - expected)
        assert difference.max() <= 1 and difference.mean() < 0.01
        seen.add(name)
    assert seen == set(names)


def test_frost_enlarges_a_texture_that_is_too_small() -> None:
    black = np.zeros((400, 1000, 3), dtype=np.uint8)
    for seed in range(6):
        result = frost(black, Frost(1, 1, 1), np.random.default_rng(seed))
        assert result.shape == black.shape and result.std() > 5 and result[-1].mean() > 30 and result[:, -1].mean() > 30


def slow_plasma(side: int, decay: float, seed: int) -> Reals:
    """Diamond-square, cell by cell; the noise of an octave is drawn for the middles, the tops, then the left edges."""
    generator = np.random.default_rng(seed)
    heights = np.zeros((side, side))
    step, amplitude = side, 100.0**2
    while step >= 2:
        half, cells = step // 2, side // step
        middles, tops, lefts = (generator.uniform(-amplitude, amplitude, (cells, cells)) for _ in range(3))
        places = list(itertools.product(range(0, side, step), repeat=2))

        def at(row: int, column: int) -> float:
            return float(heights[row % side, column % side])

        for y, x in places:
            corners = at(y, x) + at(y + step, x) + at(y, x + step) + at(y + step, x + step)
            heights[y + half, x + half] = corners / 4 + middles[y // step, x // step]
        for y, x in places:
            around = at(y, x) + at(y, x + step) + at(y + half, x + half) + at(y - half, x + half)
            heights[y, x + half] = around / 4 + tops[y // step, x // step]
        for y, x in places:
            around = at(y, x) + at(y + step, x) + at(y + half, x + half) + at(y + half, x - half)
            heights[y + half, x] = around / 4 + lefts[y // step, x // step]
        step, amplitude = half, amplitude / decay**2
    return (heights - heights.min()) / (heights.max() - heights.min())


@pytest.mark.parametrize(("side", "decay"), [(2, 2), (16, 2), (32, 1.4), (64, 3)])
def test_the_plasma_is_diamond_square(side: int, decay: float) -> None:
    plasma = plasma_fractal(side, decay, np.random.default_rng(5))
    assert np.abs(plasma - slow_plasma(side, decay, 5)).max() < 1e-9


def test_the_plasma_is_rougher_the_slower_it_decays() -> None:
    def roughness(decay: float) -> float:
        maps = [plasma_fractal(256, decay, np.random.default_rng(seed)) for seed in range(4)]
        assert all((plasma.min(), plasma.max()) == (0, 1) for plasma in maps)
        return float(np.mean([np.abs(np.diff(plasma, n=2, axis=1)).mean() for plasma in maps]))

    rough_to_smooth = [roughness(decay) for decay in (1.4, 1.75, 2, 2.5, 3)]
    assert rough_to_smooth == sorted(rough_to_smooth, reverse=True)
    assert rough_to_smooth[0] > 4 * rough_to_smooth[-1]


@pytest.mark.parametrize("shape", [(64, 64), (50, 100), (224, 224)])
def test_fog_adds_the_plasma_and_keeps_the_brightest(shape: tuple[int, int]) -> None:
    constants = Fog(2.5, 1.7)
    image = rough(*shape) // 2
    side = {64: 64, 100: 128, 224: 256}[max(shape)]
    plasma = slow_plasma(side, 1.7, 9) if side < 256 else plasma_fractal(side, 1.7, np.random.default_rng(9))
    brightest = image.max() / 255
    hazy = image / 255 + 2.5 * plasma[: shape[0], : shape[1], None]
    difference = np.abs(fog(image, constants, np.random.default_rng(9)) - cut(hazy * brightest / (brightest + 2.5)))
    assert difference.max() <= 1 and difference.mean() < 0.01


@pytest.mark.parametrize("amount", IMAGENET_C.brightness)
def test_brightness_raises_the_value_of_hsv(amount: float) -> None:
    image = rough(20, 20)
    image[0, :6] = [[0, 0, 0], [255, 255, 255], [7, 7, 7], [255, 0, 0], [0, 1, 0], [200, 200, 10]]
    expected = np.zeros(image.shape)
    for row, column in itertools.product(range(20), repeat=2):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[row, column] / 255))
        expected[row, column] = colorsys.hsv_to_rgb(hue, saturation, min(value + amount, 1))
    difference = np.abs(brightness(image, amount, np.random.default_rng(0)) - cut(expected))
    assert difference.max() <= 1 and difference.mean() < 0.02


@pytest.mark.parametrize("factor", IMAGENET_C.contrast)
def test_contrast_moves_every_channel_to_its_mean(factor: float) -> None:
    image = rough(30, 44)
    image[..., 2] //= 3
    means = (image / 255).mean(axis=(0, 1))
    difference = np.abs(contrast(image, factor, np.random.default_rng(0)) - cut((image / 255 - means) * factor + means))
    assert difference.max() <= 1 and difference.mean() < 0.02


def slow_elastic(image: Pixels, elastic: Elastic, seed: int) -> NDArray[np.int64]:
    """The definition with scipy's interpolation; pixels outside are mirrored as OpenCV and scipy were told to."""
    draws = np.random.default_rng(seed)
    height, width = image.shape[:2]
    side = min(height, width)
    matrix = affine_map(height, width, elastic.affine * side, draws)
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    y, x = np.mgrid[:height, :width]
    source_x, source_y, _ = np.tensordot(inverse, np.stack([x, y, np.ones_like(x)]), axes=1)

    def pick(pixels: Reals, rows: Reals, columns: Reals, mode: str) -> Reals:
        layers = [ndimage.map_coordinates(pixels[..., c], [rows, columns], order=1, mode=mode) for c in range(3)]
        return np.stack(layers, axis=-1)

    bent = pick(image / 255, source_y, source_x, "mirror")
    if elastic.alpha:
        sigma, strength = elastic.sigma * side, elastic.alpha * side
        right, down = (
            strength * ndimage.gaussian_filter(draws.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3)
            for _ in range(2)
        )
        bent = pick(bent, y + down, x + right, "reflect")
    return cut(bent)


@pytest.mark.parametrize("elastic", [*IMAGENET_C.elastic_transform, *TINY_IMAGENET_C.elastic_transform], ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (60, 90)])
def test_elastic_transform_is_an_affine_map_and_a_smooth_displacement(elastic: Elastic, shape: tuple[int, int]) -> None:
    image = rough(*shape)
    expected = slow_elastic(image, elastic, 4)
    difference = np.abs(elastic_transform(image, elastic, np.random.default_rng(4)) - expected)
    assert difference.max() <= 2 and difference.mean() < 0.05
    assert np.abs(elastic_transform(image, elastic, np.random.default_rng(5)) - expected).mean() > 10


def test_the_affine_map_moves_three_corners_by_at_most_the_shift() -> None:
    corners = np.array([[50, 80, 1], [50, 40, 1], [10, 40, 1]]).T  # (x, y): centre 30, 60 of 60 x 120, reach 20
    moves = np.stack(
        [affine_map(120, 60, 5, np.random.default_rng(seed)) @ corners - corners[:2] for seed in range(200)]
    )
    assert 4.9 < np.abs(moves).max() <= 5 + 1e-4
    assert np.abs(moves.mean(axis=0)).max() < 5 / np.sqrt(3) * 4.5 / np.sqrt(200)


@pytest.mark.parametrize(
    ("shape", "small"),
    [
        ((224, 224), [(134, 134), (112, 112), (89, 89), (67, 67), (56, 56)]),
        ((64, 64), [(57, 57), (51, 51), (44, 44), (38, 38), (32, 32)]),
        ((100, 200), [(60, 120), (50, 100), (40, 80), (30, 60), (25, 50)]),
    ],
)
def test_pixelate_is_pillows_box_filter_twice(shape: tuple[int, int], small: list[tuple[int, int]]) -> None:
    image = rough(*shape)
    for severity, (height, width) in enumerate(small, start=1):
        reduced = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
        expected = np.asarray(reduced.resize(shape[::-1], Image.Resampling.BOX))
        assert np.array_equal(corrupt(image, "pixelate", severity, key=""), expected)


@pytest.mark.parametrize(("side", "qualities"), [(224, (25, 18, 15, 10, 7)), (64, (65, 58, 50, 40, 25))])
def test_jpeg_compression_is_pillows(side: int, qualities: tuple[int, ...]) -> None:
    image = rough(side, side + 9)
    for severity, quality in enumerate(qualities, start=1):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        assert np.array_equal(corrupt(image, "jpeg_compression", severity, key=""), np.asarray(Image.open(file)))
