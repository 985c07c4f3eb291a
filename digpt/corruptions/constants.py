"""Names, groups and severity constants of the corruptions, for 224 px (ImageNet-C) and for 64 px (Tiny-ImageNet-C).

Source: hendrycks/robustness, ``ImageNet-C/create_c/make_imagenet_c.py`` and ``make_tinyimagenet_c.py``. Each field of
`Constants` is named after its corruption and holds one entry per severity. Lengths are pixels unless stated otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

GROUPS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
CORRUPTIONS: tuple[str, ...] = tuple(name for group in GROUPS.values() for name in group)
SEVERITIES = (1, 2, 3, 4, 5)
TINY_UP_TO = 96
"""The longest shorter side, in pixels, that takes Tiny-ImageNet-C's constants."""

SetName = Literal["imagenet-c", "tiny-imagenet-c"]


class Disk(NamedTuple):
    """Of defocus_blur: ``radius``, and the standard deviation of the Gaussian that softens the disk's rim."""

    radius: float
    alias_blur: float


class Glass(NamedTuple):
    """Of glass_blur: blur before and after, reach of the displacement, sweeps over the image."""

    sigma: float
    reach: int
    sweeps: int


class Motion(NamedTuple):
    """Of ImageMagick's motion blur: half the kernel's length, and its standard deviation."""

    radius: int
    sigma: float


class Zoom(NamedTuple):
    """Of zoom_blur: factors from 1 in steps of ``step`` up to, not including, ``stop`` (``numpy.arange``)."""

    stop: float
    step: float


class Snow(NamedTuple):
    """Of snow: mean and deviation of the flakes' noise, its enlargement, the threshold, the fall, the image's share."""

    mean: float
    std: float
    zoom: float
    threshold: float
    motion: Motion
    share: float


class Frost(NamedTuple):
    """Of frost: weight of the image, weight of the texture, scale of the texture."""

    image: float
    texture: float
    scale: float


class Fog(NamedTuple):
    """Of fog: height of the plasma, and by how much its amplitude falls from one octave to the next."""

    amount: float
    decay: float


class Elastic(NamedTuple):
    """Of elastic_transform, as fractions of the shorter side: strength, smoothness, shift of the affine's corners."""

    alpha: float
    sigma: float
    affine: float


@dataclass(frozen=True)
class Constants:
    """One published set; index a field by ``severity - 1``.

    gaussian_noise: standard deviation, of pixels in [0, 1]. shot_noise: photons per unit of intensity. impulse_noise:
    share of values replaced. brightness: added to HSV's value. contrast: factor. pixelate: factor of the side.
    jpeg_compression: quality.
    """

    gaussian_noise: tuple[float, ...]
    shot_noise: tuple[float, ...]
    impulse_noise: tuple[float, ...]
    defocus_blur: tuple[Disk, ...]
    glass_blur: tuple[Glass, ...]
    motion_blur: tuple[Motion, ...]
    zoom_blur: tuple[Zoom, ...]
    snow: tuple[Snow, ...]
    frost: tuple[Frost, ...]
    fog: tuple[Fog, ...]
    brightness: tuple[float, ...]
    contrast: tuple[float, ...]
    elastic_transform: tuple[Elastic, ...]
    pixelate: tuple[float, ...]
    jpeg_compression: tuple[int, ...]

    def of(self, corruption: str, severity: int) -> Any:
        """The entry of a corruption at a severity in 1..5."""
        return getattr(self, corruption)[severity - 1]


# The published lengths are multiples of 244 at 224 px, a slip that its author has kept; here fractions of the side.
_SLIP = 244 / 224

IMAGENET_C = Constants(
    gaussian_noise=(0.08, 0.12, 0.18, 0.26, 0.38),
    shot_noise=(60, 25, 12, 5, 3),
    impulse_noise=(0.03, 0.06, 0.09, 0.17, 0.27),
    defocus_blur=(Disk(3, 0.1), Disk(4, 0.5), Disk(6, 0.5), Disk(8, 0.5), Disk(10, 0.5)),
    glass_blur=(Glass(0.7, 1, 2), Glass(0.9, 2, 1), Glass(1, 2, 3), Glass(1.1, 3, 2), Glass(1.5, 4, 2)),
    motion_blur=(Motion(10, 3), Motion(15, 5), Motion(15, 8), Motion(15, 12), Motion(20, 15)),
    zoom_blur=(Zoom(1.11, 0.01), Zoom(1.16, 0.01), Zoom(1.21, 0.02), Zoom(1.26, 0.02), Zoom(1.31, 0.03)),
    snow=(
        Snow(0.1, 0.3, 3, 0.5, Motion(10, 4), 0.8),
        Snow(0.2, 0.3, 2, 0.5, Motion(12, 4), 0.7),
        Snow(0.55, 0.3, 4, 0.9, Motion(12, 8), 0.7),
        Snow(0.55, 0.3, 4.5, 0.85, Motion(12, 8), 0.65),
        Snow(0.55, 0.3, 2.5, 0.85, Motion(12, 12), 0.55),
    ),
    frost=(Frost(1, 0.4, 1), Frost(0.8, 0.6, 1), Frost(0.7, 0.7, 1), Frost(0.65, 0.7, 1), Frost(0.6, 0.75, 1)),
    fog=(Fog(1.5, 2), Fog(2, 2), Fog(2.5, 1.7), Fog(2.5, 1.5), Fog(3, 1.4)),
    brightness=(0.1, 0.2, 0.3, 0.4, 0.5),
    contrast=(0.4, 0.3, 0.2, 0.1, 0.05),
    elastic_transform=(
        Elastic(2 * _SLIP, 0.7 * _SLIP, 0.1 * _SLIP),
        Elastic(2 * _SLIP, 0.08 * _SLIP, 0.2 * _SLIP),
        Elastic(0.05 * _SLIP, 0.01 * _SLIP, 0.02 * _SLIP),
        Elastic(0.07 * _SLIP, 0.01 * _SLIP, 0.02 * _SLIP),
        Elastic(0.12 * _SLIP, 0.01 * _SLIP, 0.02 * _SLIP),
    ),
    pixelate=(0.6, 0.5, 0.4, 0.3, 0.25),
    jpeg_compression=(25, 18, 15, 10, 7),
)

TINY_IMAGENET_C = Constants(
    gaussian_noise=(0.04, 0.08, 0.12, 0.15, 0.18),
    shot_noise=(250, 100, 50, 30, 15),
    impulse_noise=(0.01, 0.02, 0.05, 0.08, 0.14),
    defocus_blur=(Disk(0.5, 0.6), Disk(1, 0.1), Disk(1.5, 0.1), Disk(2.5, 0.01), Disk(3, 0.1)),
    glass_blur=(Glass(0.1, 1, 1), Glass(0.5, 1, 1), Glass(0.6, 1, 2), Glass(0.7, 2, 1), Glass(0.9, 2, 2)),
    motion_blur=(Motion(10, 1), Motion(10, 1.5), Motion(10, 2), Motion(10, 2.5), Motion(12, 3)),
    zoom_blur=(Zoom(1.06, 0.01), Zoom(1.11, 0.01), Zoom(1.16, 0.01), Zoom(1.21, 0.01), Zoom(1.26, 0.01)),
    snow=(
        Snow(0.1, 0.2, 1, 0.6, Motion(8, 3), 0.8),
        Snow(0.1, 0.2, 1, 0.5, Motion(10, 4), 0.8),
        Snow(0.15, 0.3, 1.75, 0.55, Motion(10, 4), 0.7),
        Snow(0.25, 0.3, 2.25, 0.6, Motion(12, 6), 0.65),
        Snow(0.3, 0.3, 1.25, 0.65, Motion(14, 12), 0.6),
    ),
    frost=(
        Frost(1, 0.3, 0.3),
        Frost(0.9, 0.4, 0.3),
        Frost(0.8, 0.45, 0.3),
        Frost(0.75, 0.5, 0.3),
        Frost(0.7, 0.55, 0.3),
    ),
    fog=(Fog(0.4, 3), Fog(0.7, 3), Fog(1, 2.5), Fog(1.5, 2), Fog(2, 1.75)),
    brightness=(0.1, 0.2, 0.3, 0.4, 0.5),
    contrast=(0.4, 0.3, 0.2, 0.1, 0.05),
    elastic_transform=(
        Elastic(0, 0, 0.08),
        Elastic(0.05, 0.3, 0.06),
        Elastic(0.1, 0.08, 0.06),
        Elastic(0.1, 0.03, 0.03),
        Elastic(0.16, 0.03, 0.02),
    ),
    pixelate=(0.9, 0.8, 0.7, 0.6, 0.5),
    jpeg_compression=(65, 58, 50, 40, 25),
)

SETS: dict[SetName, Constants] = {"imagenet-c": IMAGENET_C, "tiny-imagenet-c": TINY_IMAGENET_C}


def constants_set(height: int, width: int) -> SetName:
    """Which published constants an image of this size takes, by its shorter side in pixels."""
    return "tiny-imagenet-c" if min(height, width) <= TINY_UP_TO else "imagenet-c"
