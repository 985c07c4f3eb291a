"""contrast, elastic_transform, pixelate, jpeg_compression.

Each takes a uint8 image ``[H, W, 3]``, its constants and a generator, and returns a new image.
"""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image as PillowImage

from digpt.corruptions.constants import Elastic
from digpt.corruptions.filters import blur_matrix
from digpt.corruptions.pixels import Float, Image, to_float, to_uint8


def contrast(image: Image, factor: float, generator: np.random.Generator) -> Image:
    """Move every value towards its channel's mean."""
    means = np.array(cv2.mean(image)[:3], dtype=np.float32) / 255
    return to_uint8(to_float(image) * np.float32(factor) + means * np.float32(1 - factor))


def elastic_transform(image: Image, elastic: Elastic, generator: np.random.Generator) -> Image:
    """A random affine map, then a smooth random displacement of every pixel."""
    height, width = image.shape[:2]
    side = min(height, width)
    matrix = affine_map(height, width, elastic.affine * side, generator)
    bent = cv2.warpAffine(to_float(image), matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    if elastic.alpha:
        right, down = (smooth_field(height, width, elastic, generator) for _ in range(2))
        x = right + np.arange(width, dtype=np.float32)
        y = down + np.arange(height, dtype=np.float32)[:, None]
        bent = cv2.remap(bent, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return to_uint8(np.asarray(bent))


def affine_map(height: int, width: int, shift: float, generator: np.random.Generator) -> np.ndarray:
    """The ``[2, 3]`` map (x, y) to (x, y) that moves three corners of a central square by up to ``shift`` pixels."""
    centre = np.array([width // 2, height // 2])
    reach = min(height, width) // 3
    corners = (centre + reach * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    moved = corners + generator.uniform(-shift, shift, size=corners.shape).astype(np.float32)
    return np.asarray(cv2.getAffineTransform(corners, moved))


def smooth_field(height: int, width: int, elastic: Elastic, generator: np.random.Generator) -> Float:
    """Uniform noise in [-1, 1], blurred and multiplied: one coordinate's displacement in pixels, ``[H, W]``."""
    side = min(height, width)
    noise = generator.uniform(-1, 1, (height, width)).astype(np.float32)
    sigma = elastic.sigma * side
    smooth = blur_matrix(height, sigma) @ noise @ blur_matrix(width, sigma).T
    return np.multiply(smooth, elastic.alpha * side, dtype=np.float32)


def pixelate(image: Image, factor: float, generator: np.random.Generator) -> Image:
    """Shrink and enlarge again, both with Pillow's box filter."""
    height, width = image.shape[:2]
    small = PillowImage.fromarray(image).resize((int(width * factor), int(height * factor)), PillowImage.Resampling.BOX)
    return np.array(small.resize((width, height), PillowImage.Resampling.BOX))


def jpeg_compression(image: Image, quality: int, generator: np.random.Generator) -> Image:
    """See `jpeg_round_trip`."""
    return jpeg_round_trip(image, quality)


def jpeg_round_trip(image: Image, quality: int) -> Image:
    """Write a JPEG of this quality with Pillow and read it back."""
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "JPEG", quality=quality)
    with PillowImage.open(buffer) as file:
        return np.array(file)
