"""Training augmentation for semantic segmentation: image and mask resized, cropped, flipped, distorted and padded.

>>> augment = SegmentAugment(crop=512)
>>> image, labels = augment(image, labels, segment_generator(seed=0, epoch=3, index=17))

The steps, their order and their ranges are those of mmsegmentation's ADE20K configuration
(``configs/_base_/datasets/ade20k.py`` and ``mmseg/datasets/transforms/transforms.py`` of version 1.x).
Shapes: H x W the sample, S the crop's side. Images are RGB uint8, labels uint8 with 255 for ignored pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from digpt.data.ade20k import IGNORED, keep_ratio_size, resize_image, resize_labels
from digpt.errors import ConfigError
from train.keyed import SEGMENT, keyed_bits

Pixels = NDArray[np.uint8]
_CROPS = 10  # candidates that are looked at; mmsegmentation then takes one more as it comes
_HUES = 180  # OpenCV's 8-bit hue counts steps of two degrees


def segment_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample's draws, a function of (seed, epoch, index) alone."""
    key = keyed_bits(seed, np.array([epoch]), np.array([index]), 2, SEGMENT)[0]
    return np.random.Generator(np.random.Philox(key=key))


@dataclass(frozen=True)
class Photometric:
    """``PhotoMetricDistortion`` of mmsegmentation: four changes, each made with ``probability``.

    ``brightness`` is the largest shift in grey levels; ``contrast`` and ``saturation`` the ranges of a factor (on all
    channels, and on S of HSV); ``hue`` the largest shift in steps of two degrees, the upper end excluded. Contrast
    comes before the two changes of colour or after them, as a fair coin decides.
    """

    brightness: float = 32
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: int = 18
    probability: float = 0.5

    def __post_init__(self) -> None:
        for name, (low, high) in (("contrast", self.contrast), ("saturation", self.saturation)):
            if not 0 <= low <= high:
                raise ConfigError(
                    f"{name}={(low, high)} is no range of factors; give (low, high) with 0 <= low <= high."
                )
        if not (0 <= self.brightness <= 255 and 1 <= self.hue <= _HUES // 2 and 0 <= self.probability <= 1):
            raise ConfigError(
                f"brightness={self.brightness} has to be in 0..255, hue={self.hue} in 1..{_HUES // 2} and "
                f"probability={self.probability} in 0..1."
            )

    def __call__(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Distort uint8 ``[...,3]``; the input stays as it is."""

        def chosen() -> bool:
            return bool(generator.random() < self.probability)

        if chosen():
            image = adjust(image, shift=generator.uniform(-self.brightness, self.brightness))
        early = bool(generator.random() < 0.5)
        contrast = generator.uniform(*self.contrast) if chosen() else None
        saturation = generator.uniform(*self.saturation) if chosen() else 1.0
        hue = int(generator.integers(-self.hue, self.hue)) if chosen() else 0
        if contrast is not None and early:
            image = adjust(image, factor=contrast)
        image = shift_color(image, saturation, hue)
        return adjust(image, factor=contrast) if contrast is not None and not early else image


def adjust(values: Pixels, factor: float = 1.0, shift: float = 0.0) -> Pixels:
    """``factor * values + shift``, clipped to 0..255 and cut to whole numbers, as mmsegmentation does; uint8."""
    table = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(shift)
    return np.clip(table, 0, 255).astype(np.uint8)[values]


def shift_color(image: Pixels, saturation: float, hue: int) -> Pixels:
    """Multiply the saturation and turn the hue (by ``2 * hue`` degrees) of RGB uint8 ``[...,3]``, through 8-bit HSV.

    mmsegmentation goes through 8 bits once for each of the two changes; here it is once for both. That rounds less
    and takes half the time.
    """
    if saturation == 1.0 and hue == 0:
        return image
    hsv = rgb_to_hsv(image)
    return hsv_to_rgb(
        np.stack([(hsv[..., 0].astype(np.int16) + hue) % _HUES, adjust(hsv[..., 1], saturation), hsv[..., 2]], axis=-1)
    )


def rgb_to_hsv(image: Pixels) -> Pixels:
    """OpenCV's 8-bit HSV, uint8 ``[...,3]``: H in 0..179 (steps of two degrees), S and V in 0..255.

    The fixed-point arithmetic of ``COLOR_RGB2HSV`` (12 fractional bits), so equal to it bit for bit.
    """
    divisor = np.maximum(np.arange(256), 1)  # black has no saturation, grey no hue: nothing is divided by 0 there
    by_value = np.rint((255 << 12) / divisor).astype(np.int32)
    by_spread = np.rint((_HUES << 12) / (6 * divisor)).astype(np.int32)
    red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    turn = np.where(
        value == red, green - blue, np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    )
    hue = (turn * by_spread[spread] + 2048) >> 12
    saturation = (spread * by_value[value] + 2048) >> 12
    return np.stack([hue + _HUES * (hue < 0), saturation, value], axis=-1).astype(np.uint8)


def hsv_to_rgb(hsv: NDArray[np.int16] | Pixels) -> Pixels:
    """The way back, uint8 ``[...,3]``: each channel is ``V - V S max(0, min(k, 4 - k, 1))`` with k = n + H / 60 mod 6.

    n is 5, 3, 1 for R, G, B (https://en.wikipedia.org/wiki/HSL_and_HSV, HSV to RGB, alternative). Rounded, as OpenCV
    does for single pixels; where it takes many at once it cuts, so that about a third of them are one lower.
    """
    k = (np.array([5, 3, 1]) + np.arange(_HUES)[:, None] / (_HUES / 6)) % 6
    weight = (np.clip(np.minimum(k, 4 - k), 0, 1) / 255).astype(np.float32)
    value = hsv[..., 2].astype(np.float32)
    chroma = value * hsv[..., 1]
    return np.rint(value[..., None] - chroma[..., None] * weight[hsv[..., 0]]).astype(np.uint8)


@dataclass(frozen=True)
class SegmentAugment:
    """Resize, crop, flip, distort, pad; see `__call__`.

    Attributes:
        crop: the side S of the result.
        scale: the long and the short side that an image is fitted into, its ratio kept, at a ratio of 1.
        ratio: the range of the factor on ``scale``, drawn uniformly.
        cat_max_ratio: the share of a crop's labelled pixels that its largest class may reach; 1 for any.
        flip: probability of a horizontal flip.
        photometric: what is done to the colours; None for nothing.
        mean: the encoder's, in [0, 1] per channel; its nearest grey levels fill what an image leaves of the crop.

    mmsegmentation 1.x pads in ``SegDataPreProcessor``, with 0 after it has normalised, and 0.x pads with 0 after its
    ``Normalize``; so padding is the mean's colour. Padding uint8 with 0 would be black instead.
    """

    crop: int = 512
    scale: tuple[int, int] = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    photometric: Photometric | None = field(default_factory=Photometric)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)

    def __post_init__(self) -> None:
        if self.crop < 1 or min(self.scale) < 1:
            raise ConfigError(f"crop={self.crop} and scale={self.scale} have to be positive numbers of pixels.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"ratio={self.ratio} is no range of factors; give (low, high) with 0 < low <= high.")
        if not (0 < self.cat_max_ratio <= 1 and 0 <= self.flip <= 1):
            raise ConfigError(f"cat_max_ratio={self.cat_max_ratio} has to be in (0, 1] and flip={self.flip} in 0..1.")

    def __call__(self, image: Pixels, labels: Pixels, generator: np.random.Generator) -> tuple[Pixels, Pixels]:
        """Augment one sample.

        Args:
            image: uint8 ``[H,W,3]``; resized bilinearly, without anti-aliasing, as OpenCV does.
            labels: uint8 ``[H,W]``; the nearest pixel's, never interpolated.

        Returns:
            uint8 ``[S,S,3]`` and uint8 ``[S,S]``, new arrays. A smaller image lies in the upper left corner; what is
            beside it has the mean's colour and the label 255.

        Raises:
            ValueError: the two differ in size.
        """
        if image.shape[:2] != labels.shape:
            raise ValueError(f"image {image.shape} and labels {labels.shape} differ in size.")
        height, width = self.draw_size(labels.shape[0], labels.shape[1], generator)
        window = self._window(height, width, lambda box: resize_labels(labels, height, width, box), generator)
        image, labels = resize_image(image, height, width, window), resize_labels(labels, height, width, window)
        if generator.random() < self.flip:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if self.photometric is not None:
            image = self.photometric(image, generator)
        return self._padded(image, labels)

    def draw_size(self, height: int, width: int, generator: np.random.Generator) -> tuple[int, int]:
        """The random size, (height, width), that an image of this size is resized to."""
        ratio = generator.uniform(*self.ratio)
        long, short = (max(1, int(side * ratio)) for side in self.scale)
        return keep_ratio_size(height, width, (long, short))

    def _window(
        self,
        height: int,
        width: int,
        labels: Callable[[tuple[int, int, int, int]], Pixels],
        generator: np.random.Generator,
    ) -> tuple[int, int, int, int]:
        """``(top, left, bottom, right)`` of the crop: the first of ten, and else an eleventh, with enough variety."""
        free = max(height - self.crop, 0), max(width - self.crop, 0)

        def draw() -> tuple[int, int, int, int]:
            top, left = (int(generator.integers(0, margin + 1)) for margin in free)
            return top, left, min(top + self.crop, height), min(left + self.crop, width)

        window = draw()
        if self.cat_max_ratio < 1 and any(free):
            for _ in range(_CROPS):
                if self.varied(labels(window)):
                    break
                window = draw()
        return window

    def varied(self, labels: Pixels) -> bool:
        """Whether labels show two classes at least, none of them on ``cat_max_ratio`` of the labelled pixels."""
        counts = np.bincount(labels.ravel(), minlength=256)
        counts = counts[np.arange(256) != IGNORED]
        return bool(np.count_nonzero(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum())

    def _padded(self, image: Pixels, labels: Pixels) -> tuple[Pixels, Pixels]:
        full = np.empty((self.crop, self.crop, 3), dtype=np.uint8)
        full[:] = np.rint(np.array(self.mean) * 255).astype(np.uint8)
        marked = np.full((self.crop, self.crop), IGNORED, dtype=np.uint8)
        height, width = labels.shape
        full[:height, :width], marked[:height, :width] = image, labels
        return full, marked
