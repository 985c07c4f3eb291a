"""gaussian_noise, shot_noise, impulse_noise: every value of every channel on its own.

Each takes a uint8 image ``[H, W, 3]``, its constant and a generator, and returns a new image.
"""

from __future__ import annotations

import numpy as np

from digpt.corruptions.pixels import Image, to_float, to_uint8


def gaussian_noise(image: Image, std: float, generator: np.random.Generator) -> Image:
    """Add normal noise of standard deviation ``std`` (of pixels in [0, 1])."""
    return to_uint8(to_float(image) + generator.standard_normal(image.shape, dtype=np.float32) * np.float32(std))


def shot_noise(image: Image, photons: float, generator: np.random.Generator) -> Image:
    """Replace a value x in [0, 1] by Poisson(x * photons) / photons."""
    return to_uint8(generator.poisson(image * (photons / 255)) / photons)


def impulse_noise(image: Image, share: float, generator: np.random.Generator) -> Image:
    """Set a ``share`` of the values, drawn one by one, to 0 or 255 with equal chance."""
    draw = generator.random(image.shape, dtype=np.float32)
    result = image.copy()
    result[draw < share] = 255
    result[draw < share / 2] = 0
    return result
