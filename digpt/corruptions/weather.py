"""snow, frost, fog, brightness.

Each takes a uint8 image ``[H, W, 3]``, its constants and a generator, and returns a new image.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from digpt.corruptions.constants import Fog, Frost, Snow
from digpt.corruptions.filters import clipped_zoom, motion_filter
from digpt.corruptions.pixels import Image, to_float, to_uint8

TEXTURES = Path(__file__).resolve().parent / "textures"
# One of five is drawn. The published frost2 and frost3 hold the same pixels; its frost6 is never drawn.
_TEXTURE_FILES = ("frost1.webp", "frost2.webp", "frost2.webp", "frost4.jpg", "frost5.jpg")


def snow(image: Image, snow: Snow, generator: np.random.Generator) -> Image:
    """Whiten the image, and let streaks fall over it from above and, turned by 180 degrees, from below."""
    clean = to_float(image)
    height, width = image.shape[:2]
    noise = generator.standard_normal((height, width), dtype=np.float32) * snow.std + snow.mean
    flakes = clipped_zoom(noise.astype(np.float32), snow.zoom)
    flakes[flakes < snow.threshold] = 0
    layer = to_float(motion_filter(to_uint8(flakes), snow.motion, float(generator.uniform(-135, -45))))
    grey = np.asarray(cv2.cvtColor(clean, cv2.COLOR_RGB2GRAY))[..., None]
    whitened = np.maximum(clean, grey * np.float32(1.5) + np.float32(0.5))
    mixed = clean * np.float32(snow.share) + whitened * np.float32(1 - snow.share)
    return to_uint8(mixed + (layer + layer[::-1, ::-1])[..., None])


def frost(image: Image, frost: Frost, generator: np.random.Generator) -> Image:
    """Add a random part of one of the frost textures, which are enlarged if the image does not fit into them."""
    height, width = image.shape[:2]
    texture = _texture(_TEXTURE_FILES[generator.integers(5)], frost.scale, height, width)
    top = generator.integers(texture.shape[0] - height)
    left = generator.integers(texture.shape[1] - width)
    part = texture[top : top + height, left : left + width]
    return to_uint8(to_float(image) * np.float32(frost.image) + to_float(part) * np.float32(frost.texture))


def _texture(name: str, scale: float, height: int, width: int) -> Image:
    """A texture at the given scale, or at the smallest that leaves more than the image's size to choose from."""
    texture = _scaled(name, 1)
    return _scaled(name, max(scale, (height + 1) / texture.shape[0], (width + 1) / texture.shape[1]))


@lru_cache(maxsize=16)
def _scaled(name: str, scale: float) -> Image:
    if scale == 1:
        with PillowImage.open(TEXTURES / name) as file:
            return np.asarray(file.convert("RGB"))
    return np.asarray(cv2.resize(_scaled(name, 1), (0, 0), fx=scale, fy=scale), dtype=np.uint8)


def fog(image: Image, fog: Fog, generator: np.random.Generator) -> Image:
    """Add a plasma fractal, scaled so that the brightest value of the image stays the brightest."""
    clean = to_float(image)
    height, width = image.shape[:2]
    brightest = float(clean.max())
    side = 1 << (max(height, width) - 1).bit_length()
    haze = plasma_fractal(side, fog.decay, generator)[:height, :width, None].astype(np.float32)
    return to_uint8((clean + haze * np.float32(fog.amount)) * np.float32(brightest / (brightest + fog.amount)))


def plasma_fractal(side: int, decay: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return heights in [0, 1], ``[side, side]``, by the diamond-square algorithm on a torus.

    ``side`` is a power of two. Each octave adds uniform noise to the means of four neighbours; its amplitude falls by
    ``decay`` squared, as the published code multiplies it with itself.
    """
    heights = np.zeros((side, side))
    amplitude = 100.0**2

    def displaced(total: NDArray[np.float64]) -> NDArray[np.float64]:
        return total / 4 + generator.uniform(-amplitude, amplitude, total.shape)

    step = side
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        left_edges = corners + np.roll(corners, -1, axis=0)
        top_edges = corners + np.roll(corners, -1, axis=1)
        middles = displaced(left_edges + np.roll(left_edges, -1, axis=1))
        heights[half::step, half::step] = middles
        heights[::step, half::step] = displaced(middles + np.roll(middles, 1, axis=0) + top_edges)
        heights[half::step, ::step] = displaced(middles + np.roll(middles, 1, axis=1) + left_edges)
        step = half
        amplitude /= decay**2
    heights -= heights.min()
    return heights / heights.max()


def brightness(image: Image, amount: float, generator: np.random.Generator) -> Image:
    """Add ``amount`` to HSV's value; hue and saturation stay, so the channels are scaled alike. Black becomes grey."""
    value = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    levels = np.arange(256) / 255
    raised = np.minimum(levels + amount, 1).astype(np.float32)
    scale = (raised / np.maximum(levels, 1 / 255)).astype(np.float32)
    bright = to_float(image) * scale[value][..., None]
    bright[value == 0] = raised[0]
    return to_uint8(bright)
