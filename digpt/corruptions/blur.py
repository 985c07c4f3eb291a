"""defocus_blur, glass_blur, motion_blur, zoom_blur.

Each takes a uint8 image ``[H, W, 3]``, its constants and a generator, and returns a new image.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from digpt.corruptions.constants import Disk, Glass, Motion, Zoom
from digpt.corruptions.filters import clipped_zoom, gaussian, motion_filter
from digpt.corruptions.pixels import Float, Image, to_float, to_uint8


def defocus_blur(image: Image, disk: Disk, generator: np.random.Generator) -> Image:
    """Convolve with a disk whose rim is softened."""
    return to_uint8(np.asarray(cv2.filter2D(to_float(image), -1, disk_kernel(disk))))


@lru_cache(maxsize=16)
def disk_kernel(disk: Disk) -> Float:
    """The published kernel: a disk of sum 1 on a grid of 17 px (or of its own width), then blurred on that grid.

    A disk that reaches the grid's edge (radius 8 and 10) comes out up to 1.3 % heavier than 1, and so brightens the
    image; ImageNet-C's files have it.
    """
    reach, size = (8, 3) if disk.radius <= 8 else (int(disk.radius), 5)
    grid = np.arange(-reach, reach + 1)
    kernel = (grid[:, None] ** 2 + grid**2 <= disk.radius**2).astype(np.float32)
    kernel /= kernel.sum()
    return np.asarray(cv2.GaussianBlur(kernel, (size, size), sigmaX=disk.alias_blur), dtype=np.float32)


def glass_blur(image: Image, glass: Glass, generator: np.random.Generator) -> Image:
    """Blur, replace each pixel by a near one (see `glass_sources`), blur again."""
    height, width = image.shape[:2]
    rows, columns = height - 2 * glass.reach, width - 2 * glass.reach
    shape = (glass.sweeps, rows, columns, 2)
    offsets = generator.integers(-glass.reach, glass.reach, size=shape, dtype=np.int16)
    blurred = to_uint8(gaussian(to_float(image), glass.sigma))
    sources = glass_sources(height, width, glass.reach, offsets)
    shuffled = blurred.reshape(-1, 3)[sources].reshape(image.shape)
    return to_uint8(gaussian(to_float(shuffled), glass.sigma))


def glass_sources(height: int, width: int, reach: int, offsets: NDArray[np.int16]) -> NDArray[np.int64]:
    """Return int ``[H * W]``: the pixel of the image, as ``row * W + column``, that ends up at each place.

    A sweep visits the pixels from the last row and column down to ``reach + 1`` and exchanges each with the one at its
    offset. The published statement exchanges two views of one array, and so copies: the visited pixel takes the
    other's current value and the other keeps it. ImageNet-C's files were made that way, and so are these.

    A visited pixel therefore takes the value of a place that was visited before it in the same sweep (a larger index)
    or has its old value. Following the chain of such places to its end gives the same as the loop.

    Args:
        height: H.
        width: W.
        reach: offsets are in ``-reach..reach - 1``.
        offsets: int16 ``[sweeps, H - 2 * reach, W - 2 * reach, 2]``, (x, y), in the order of the visits.
    """
    place = np.arange(height * width)
    grid = place.reshape(height, width)
    visited = (slice(height - reach, reach, -1), slice(width - reach, reach, -1))
    total = place
    for sweep in offsets:
        step = np.zeros((height, width), dtype=np.int64)
        step[visited] = sweep[..., 1].astype(np.int64) * width + sweep[..., 0]
        taken = (grid + step).ravel()
        end = taken.copy()
        moving = np.flatnonzero(taken > place)
        while moving.size:
            here = end[moving]
            there = taken[here]
            end[moving] = there
            moving = moving[there > here]
        total = total[end]
    return total


def motion_blur(image: Image, motion: Motion, generator: np.random.Generator) -> Image:
    """ImageMagick's motion blur along an angle within 45 degrees of the horizontal."""
    return motion_filter(image, motion, float(generator.uniform(-45, 45)))


def zoom_blur(image: Image, zoom: Zoom, generator: np.random.Generator) -> Image:
    """Average the image with its enlargements; the factor 1 counts twice, as published."""
    clean = to_float(image)
    factors = np.arange(1, zoom.stop, zoom.step)
    total = clean.copy()
    for factor in factors.tolist():
        total += clipped_zoom(clean, factor)
    return to_uint8(total / np.float32(len(factors) + 1))
