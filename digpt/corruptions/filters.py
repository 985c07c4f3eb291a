"""Linear filters that several corruptions share: Gaussian blur, ImageMagick's motion blur, zoom into the centre."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from digpt.corruptions.constants import Motion
from digpt.corruptions.pixels import Float, Image


@lru_cache(maxsize=64)
def gaussian_kernel(sigma: float, truncate: float) -> NDArray[np.float64]:
    """``scipy.ndimage``'s kernel: a Gaussian sampled to ``truncate`` deviations on either side, of sum 1."""
    reach = int(truncate * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-9)) ** 2)
    return weights / weights.sum()


def gaussian(image: Float, sigma: float) -> Float:
    """Blur ``[H, W, 3]`` as skimage's ``gaussian`` did in 2018: cut off at 4 deviations, edges repeated."""
    kernel = gaussian_kernel(sigma, 4)
    return np.asarray(cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE), dtype=np.float32)


@lru_cache(maxsize=64)
def blur_matrix(length: int, sigma: float) -> Float:
    """The ``[length, length]`` matrix of a Gaussian blur cut off at 3 deviations, the signal mirrored at its ends.

    A matrix, since the kernel may reach over many times the signal's length.
    """
    kernel = gaussian_kernel(sigma, 3)
    reach = len(kernel) // 2
    source = (np.arange(length)[:, None] + np.arange(-reach, reach + 1)) % (2 * length)
    source = np.minimum(source, 2 * length - 1 - source)
    flat = np.bincount((np.arange(length)[:, None] * length + source).ravel(), np.tile(kernel, length), length * length)
    return flat.reshape(length, length).astype(np.float32)


def motion_taps(motion: Motion, angle: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Weights ``[N]`` and offsets (x, y) ``[N, 2]`` of ImageMagick's ``MotionBlurImage``, angle in degrees.

    Half a Gaussian of 2 * radius + 1 samples, laid along the angle from the pixel itself outwards; x grows to the
    right, y downwards. Each position is rounded to a pixel, halves downwards.
    """
    distance = np.arange(2 * motion.radius + 1)
    weights = np.exp(-(distance**2) / (2 * motion.sigma**2))
    direction = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    return weights / weights.sum(), np.ceil(distance[:, None] * direction - 0.5).astype(np.int64)


def motion_filter(image: Image, motion: Motion, angle: float) -> Image:
    """Apply `motion_taps` to ``[H, W]`` or ``[H, W, 3]``, edges repeated, rounded to the nearest level."""
    weights, offsets = motion_taps(motion, angle)
    height, width = image.shape[:2]
    reach = int(np.abs(offsets).max())
    padded = cv2.copyMakeBorder(image, reach, reach, reach, reach, cv2.BORDER_REPLICATE).astype(np.float32)
    total = np.zeros(image.shape, dtype=np.float32)
    for weight, (x, y) in zip(weights.tolist(), (offsets + reach).tolist(), strict=True):
        cv2.scaleAdd(padded[y : y + height, x : x + width], weight, total, dst=total)
    return np.rint(total).astype(np.uint8)


def clipped_zoom(image: Float, factor: float) -> Float:
    """Enlarge the centre of ``[H, W]`` or ``[H, W, C]`` by ``factor >= 1`` and cut the result to the image's own size.

    Agrees with ``scipy.ndimage.zoom(order=1)`` of the centre crop: its corners are mapped onto the result's corners.
    """
    height, width = image.shape[:2]
    (scale_y, start_y), (scale_x, start_x) = _zoom_axis(height, factor), _zoom_axis(width, factor)
    # One affine map of the whole image, since the positions never leave the crop.
    matrix = np.array([[scale_x, 0, start_x], [0, scale_y, start_y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    zoomed = cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(zoomed, dtype=np.float32)


def _zoom_axis(length: int, factor: float) -> tuple[float, float]:
    """Where pixel i of the result comes from: scale and start of ``i * scale + start``."""
    crop = math.ceil(length / factor)
    zoomed = round(crop * factor)
    scale = (crop - 1) / (zoomed - 1)
    return scale, (length - crop) // 2 + (zoomed - length) // 2 * scale
