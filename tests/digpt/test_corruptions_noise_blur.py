"""Noise against its distribution, blurs against plain references of the published definitions.

scipy and loops over pixels stand in for the libraries of the published code (skimage's gaussian is scipy's).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage, stats

from digpt.corruptions import SEVERITIES, corrupt
from digpt.corruptions.blur import defocus_blur, disk_kernel, glass_blur, motion_blur, zoom_blur
from digpt.corruptions.constants import IMAGENET_C, TINY_IMAGENET_C, Constants, Disk, Glass, Motion, Zoom
from digpt.corruptions.filters import clipped_zoom, motion_filter, motion_taps

SETS = [pytest.param(IMAGENET_C, 224, id="224"), pytest.param(TINY_IMAGENET_C, 64, id="64")]
Pixels = NDArray[np.uint8]


def rough(height: int, width: int, seed: int = 0) -> Pixels:
    """Uniform noise: the hardest image for an interpolation or a blur to agree on."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cut(image: NDArray[np.floating]) -> NDArray[np.int64]:
    """Floats in [0, 1] to levels, as the published files were written."""
    return np.floor(np.clip(image, 0, 1) * 255).astype(np.int64)


@pytest.mark.parametrize(("constants", "side"), SETS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_the_published_deviation(constants: Constants, side: int, severity: int) -> None:
    grey = np.full((side, side, 3), 128, dtype=np.uint8)
    noise = corrupt(grey, "gaussian_noise", severity, key="k").astype(float) + 0.5 - 128  # half a level was cut off
    low, middle, high = np.quantile(noise / 255, stats.norm.cdf([-1, 0, 1]))  # clipping leaves these quantiles alone
    expected = constants.gaussian_noise[severity - 1]
    assert (high - low) / 2 == pytest.approx(expected, rel=0.04)
    assert middle == pytest.approx(0, abs=0.04 * expected + 0.003)


@pytest.mark.parametrize(("constants", "side"), SETS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_counts_photons(constants: Constants, side: int, severity: int) -> None:
    level, photons = 100, int(constants.shot_noise[severity - 1])
    result = corrupt(np.full((side, side, 3), level, dtype=np.uint8), "shot_noise", severity, key="k")
    counts = np.arange(photons + 1)
    levels = 255 * counts // photons
    assert set(np.unique(result)) <= set(levels)
    shares = np.array([(result == value).mean() for value in levels])
    expected = stats.poisson.pmf(counts, level / 255 * photons)
    expected[-1] += stats.poisson.sf(photons, level / 255 * photons)  # clipped to white
    assert np.abs(shares - expected).max() < 4.5 * math.sqrt(0.25 / result.size)


@pytest.mark.parametrize(("constants", "side"), SETS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_replaces_the_published_share(constants: Constants, side: int, severity: int) -> None:
    share = constants.impulse_noise[severity - 1]
    result = corrupt(np.full((side, side, 3), 128, dtype=np.uint8), "impulse_noise", severity, key="k")
    assert set(np.unique(result)) == {0, 128, 255}
    for value, expected in ((0, share / 2), (255, share / 2)):
        assert (result == value).mean() == pytest.approx(expected, abs=4.5 * math.sqrt(expected / result.size))
    both = ((result[..., 0] != 128) & (result[..., 1] != 128)).mean()  # channels are drawn one by one
    assert both == pytest.approx(share**2, abs=4.5 * share / side + 1e-4)


@pytest.mark.parametrize("disk", [*IMAGENET_C.defocus_blur, *TINY_IMAGENET_C.defocus_blur], ids=str)
def test_the_disk_is_softened_by_a_gaussian(disk: Disk) -> None:
    reach, taps = (8, 1) if disk.radius <= 8 else (int(disk.radius), 2)
    inside = [
        [float(math.hypot(x, y) <= disk.radius) for x in range(-reach, reach + 1)] for y in range(-reach, reach + 1)
    ]
    expected = np.array(inside) / np.sum(inside)
    weights = np.exp(-0.5 * (np.arange(-taps, taps + 1) / disk.alias_blur) ** 2)
    for axis in (0, 1):
        expected = ndimage.correlate1d(expected, weights / weights.sum(), axis=axis, mode="mirror")
    kernel = disk_kernel(disk)
    assert kernel.shape == expected.shape
    assert np.abs(kernel - expected).max() < 1e-6
    heavier = 0.02 if disk.radius in (8, 10) else 0  # their rim is reflected at the grid's edge
    assert 1 - 1e-5 < kernel.sum() <= 1 + heavier + 1e-5


@pytest.mark.parametrize("disk", [*IMAGENET_C.defocus_blur, *TINY_IMAGENET_C.defocus_blur], ids=str)
def test_defocus_blur_convolves_with_the_disk(disk: Disk) -> None:
    image = rough(40, 57)
    kernel = disk_kernel(disk).astype(float)
    expected = np.stack([ndimage.correlate(image[..., c] / 255, kernel, mode="mirror") for c in range(3)], axis=-1)
    result = defocus_blur(image, disk, np.random.default_rng(0))
    assert np.abs(result - cut(expected)).max() <= 1
    constant = np.full((30, 30, 3), 100, dtype=np.uint8)
    assert set(np.unique(defocus_blur(constant, disk, np.random.default_rng(0)))) == {int(100 * kernel.sum() + 1e-3)}


def published_glass_blur(image: Pixels, glass: Glass, offsets: NDArray[np.integer]) -> NDArray[np.int64]:
    """The definition, pixel by pixel; the exchange is of views of one array, which is what the published files had."""
    sigmas = (glass.sigma, glass.sigma, 0)
    pixels = np.floor(ndimage.gaussian_filter(image / 255, sigmas, mode="nearest") * 255 + 1e-6).astype(np.uint8)
    height, width = image.shape[:2]
    for sweep in offsets:
        for i, row in enumerate(range(height - glass.reach, glass.reach, -1)):
            for j, column in enumerate(range(width - glass.reach, glass.reach, -1)):
                x, y = sweep[i, j]
                here, there = pixels[row, column], pixels[row + y, column + x]
                pixels[row, column], pixels[row + y, column + x] = there, here
    return cut(ndimage.gaussian_filter(pixels / 255, sigmas, mode="nearest"))


@pytest.mark.parametrize("glass", [*IMAGENET_C.glass_blur, *TINY_IMAGENET_C.glass_blur], ids=str)
def test_glass_blur_is_the_published_loop(glass: Glass) -> None:
    image = rough(44, 61)
    shape = (glass.sweeps, 44 - 2 * glass.reach, 61 - 2 * glass.reach, 2)
    offsets = np.random.default_rng(7).integers(-glass.reach, glass.reach, size=shape, dtype=np.int16)
    assert (offsets.min(), offsets.max()) == (-glass.reach, glass.reach - 1)
    expected = published_glass_blur(image, glass, offsets)
    difference = np.abs(glass_blur(image, glass, np.random.default_rng(7)) - expected)
    assert difference.max() <= 1 and difference.mean() < 0.01
    assert np.abs(glass_blur(image, glass, np.random.default_rng(8)) - expected).mean() > 1


def slow_motion(image: Pixels, motion: Motion, angle: float) -> NDArray[np.float64]:
    """ImageMagick's MotionBlurImage, pixel by pixel."""
    height, width = image.shape[:2]
    length = 2 * motion.radius + 1
    weights = [math.exp(-i * i / (2 * motion.sigma**2)) for i in range(length)]
    total = np.zeros(image.shape)
    for i, weight in enumerate(weights):
        right = math.ceil(i * math.cos(math.radians(angle)) - 0.5)
        down = math.ceil(i * math.sin(math.radians(angle)) - 0.5)
        for row in range(height):
            for column in range(width):
                y, x = min(max(row + down, 0), height - 1), min(max(column + right, 0), width - 1)
                total[row, column] += weight / sum(weights) * image[y, x]
    return total


@pytest.mark.parametrize("angle", [-135, -100.5, -45, -7, 0, 12.3, 45])
def test_the_motion_filter_is_imagemagicks(angle: float) -> None:
    for motion, image in ((Motion(10, 3), rough(20, 27)), (Motion(20, 15), rough(18, 23)[..., 0])):
        result = motion_filter(image, motion, angle).astype(float)
        assert np.abs(result - slow_motion(image, motion, angle)).max() <= 0.5 + 1e-3


def test_the_motion_kernel_is_half_a_gaussian_from_the_pixel_outwards() -> None:
    weights, offsets = motion_taps(Motion(10, 4), -90)
    assert len(weights) == 21 and weights.sum() == pytest.approx(1)
    assert weights[4] / weights[0] == pytest.approx(math.exp(-0.5))
    assert offsets.tolist() == [[0, -i] for i in range(21)]  # a pixel looks upwards, so flakes fall
    assert motion_taps(Motion(10, 4), 45)[1][[0, 1, 2, 3, 20]].tolist() == [[0, 0], [1, 1], [1, 1], [2, 2], [14, 14]]


def test_motion_blur_draws_its_angle_within_45_degrees() -> None:
    image = rough(50, 50)
    angles = [np.random.default_rng(seed).uniform(-45, 45) for seed in range(3)]
    for seed, angle in enumerate(angles):
        result = motion_blur(image, Motion(15, 5), np.random.default_rng(seed))
        assert np.array_equal(result, motion_filter(image, Motion(15, 5), angle))


def scipy_zoom(image: NDArray[np.floating], factor: float) -> NDArray[np.floating]:
    """The published clipped_zoom, each axis by its own length."""
    crops = [math.ceil(length / factor) for length in image.shape[:2]]
    first = [(length - crop) // 2 for length, crop in zip(image.shape, crops, strict=False)]
    centre = image[first[0] : first[0] + crops[0], first[1] : first[1] + crops[1]]
    zoomed = ndimage.zoom(centre, (factor, factor, 1)[: image.ndim], order=1)
    trim = [(new - length) // 2 for new, length in zip(zoomed.shape, image.shape[:2], strict=False)]
    return zoomed[trim[0] : trim[0] + image.shape[0], trim[1] : trim[1] + image.shape[1]]


@pytest.mark.parametrize("shape", [(64, 64, 3), (224, 224), (50, 83, 3)])
def test_zooming_agrees_with_scipy(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    for factor in (1.0, 1.01, 1.1, 1.13, 1.28, 1.75, 2.25, 3, 4, 4.5):
        assert np.abs(clipped_zoom(image, factor) - scipy_zoom(image, factor)).max() < 1e-4  # 0.03 of a level


@pytest.mark.parametrize("zoom", [*IMAGENET_C.zoom_blur, *TINY_IMAGENET_C.zoom_blur], ids=str)
def test_zoom_blur_averages_the_enlargements(zoom: Zoom) -> None:
    image = rough(60, 60)
    factors = np.arange(1, zoom.stop, zoom.step)
    total = image / 255 + sum(scipy_zoom(image / 255, factor) for factor in factors)
    difference = np.abs(zoom_blur(image, zoom, np.random.default_rng(0)) - cut(total / (len(factors) + 1)))
    assert difference.max() <= 1 and difference.mean() < 0.01
