"""One corruption of one image, with its randomness taken from a key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.corruptions.constants import CORRUPTIONS, SETS, SEVERITIES, constants_set
from digpt.errors import ConfigError, MissingDependencyError, near_misses

VERSION = 1
"""Raised whenever the same arguments of `corrupt` give other pixels (beyond a library's rounding)."""
MIN_SIDE = 16
"""Shortest side in pixels: the kernels' reflections need some image to reflect."""
JPEG_QUALITY = 85
"""Of ImageNet-C's files."""
FROST_TEXTURES = "hendrycks/robustness frost1-5, recompressed"

Image = NDArray[np.uint8]
Corruption = Callable[[Image, Any, np.random.Generator], Image]


def corrupt(image: Image, corruption: str, severity: int, *, key: str, jpeg: bool = False) -> Image:
    """Return a corrupted copy, uint8 RGB ``[H, W, 3]``: the same arguments give the same pixels.

    Randomness comes from a generator seeded by the SHA-256 of (key, corruption, severity). Square images follow the
    published definitions; on others each axis is treated by its own length.

    Args:
        image: uint8 RGB ``[H, W, 3]``, no side below `MIN_SIDE`.
        corruption: one of `CORRUPTIONS`.
        severity: 1 (weakest) to 5.
        key: what the randomness depends on; the image's name and a seed.
        jpeg: pass the result through a JPEG of quality 85, as ImageNet-C's files have been.

    Raises:
        ConfigError: an unknown corruption or severity, or an image of another shape or type.
        MissingDependencyError: OpenCV 5 is not installed.
    """
    _check(image, corruption, severity)
    height, width = image.shape[:2]
    constants = SETS[constants_set(height, width)].of(corruption, severity)
    image = np.ascontiguousarray(image)
    result = _functions()[corruption](image, constants, generator_for(key, corruption, severity))
    if not jpeg:
        return result
    from digpt.corruptions.digital import jpeg_round_trip  # as lazily as the functions themselves

    return jpeg_round_trip(result, JPEG_QUALITY)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let OpenCV work in the thread that calls it: its own pool gets in the way of callers that are a pool themselves.

    Pixels do not depend on it. Errors are those of `corrupt` without OpenCV.
    """
    _functions()
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def generator_for(key: str, corruption: str, severity: int) -> np.random.Generator:
    """The generator of one (key, corruption, severity)."""
    digest = hashlib.sha256(f"{corruption}/{severity:d}/{key}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def describe(side: int, jpeg: bool) -> dict[str, Any]:
    """What a protocol record keeps about corruptions of images whose shorter side is ``side`` pixels; JSON values."""
    return {
        "version": VERSION,
        "constants": constants_set(side, side),
        "frost_textures": FROST_TEXTURES,
        "jpeg_quality": JPEG_QUALITY if jpeg else None,
        "randomness": "PCG64 seeded by SHA-256 of corruption/severity/key",
    }


def _check(image: Image, corruption: str, severity: int) -> None:
    if corruption not in CORRUPTIONS:
        hint = near_misses(corruption, CORRUPTIONS)
        raise ConfigError(f"Corruption {corruption!r} is unknown; valid: {', '.join(CORRUPTIONS)}.{hint}")
    if severity not in SEVERITIES:
        raise ConfigError(f"Severity {severity!r} is unknown; valid: {', '.join(map(str, SEVERITIES))}.")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ConfigError(f"A corruption takes a uint8 RGB array [H, W, 3], not {found}.")
    if min(image.shape[:2]) < MIN_SIDE:
        raise ConfigError(f"An image of {image.shape[1]} x {image.shape[0]} px is too small; enlarge it to {MIN_SIDE}.")


@cache
def _functions() -> dict[str, Corruption]:
    """The 15 functions; imported on first use, since OpenCV takes a moment to load and may be missing."""
    install = 'install it with: pip install "opencv-python-headless>=5"'
    try:
        import cv2

        from digpt.corruptions import blur, digital, noise, weather
    except ImportError as error:
        raise MissingDependencyError(f"Corruptions on the fly need OpenCV; {install}") from error
    if int(cv2.__version__.split(".")[0]) < 5:  # older ones round positions to 1/32 px, which gives other images
        raise MissingDependencyError(f"Corruptions on the fly need OpenCV 5, not {cv2.__version__}; {install}")
    modules = (noise, blur, weather, digital)
    return {name: getattr(module, name) for module in modules for name in CORRUPTIONS if hasattr(module, name)}
