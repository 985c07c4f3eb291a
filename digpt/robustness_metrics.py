"""ImageNet-C's figures from per-image errors: mean error, CE, mCE and relative mCE, as contributions of images.

    contributions = mce(errors)                              # [N], one number per image
    value = contributions.mean()
    low, high = resamples.interval(resamples.means(contributions))

All these figures are linear in the errors, so each is the mean over images of what an image contributes. A bootstrap
over images of the contributions therefore resamples all 75 cells (and the clean errors) jointly.

Source: Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations". Figures are fractions: AlexNet has 1.0, published as 100.

Shapes: N images, the same in the same order in every cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from digpt.corruptions import CORRUPTIONS, SEVERITIES
from digpt.errors import ConfigError, near_misses

Cell = tuple[str, int]  # corruption and severity

# AlexNet's top-1 error on ImageNet-C, the mean over the severities; google-research/augmix, imagenet.py (ALEXNET_ERR).
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
ALEXNET_CLEAN = 0.4348  # its top-1 error on the clean validation set; 43.5 in Hendrycks and Dietterich
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # for tuning, never part of mCE


def check_complete(cells: Iterable[Cell]) -> None:
    """Refuse anything but the 15 corruptions at all 5 severities, for fewer or more give another number.

    Raises:
        ConfigError: names what is missing, or what does not belong.
    """
    present = set(cells)
    for name, severity in sorted(present, key=str):
        if name in EXTRA_CORRUPTIONS:
            raise ConfigError(f"{name} is one of the 4 extra corruptions, which mCE leaves out; leave it out too.")
        if name not in ALEXNET_ERROR:
            raise ConfigError(f"{name!r} is no corruption of ImageNet-C.{near_misses(name, CORRUPTIONS)}")
        if severity not in SEVERITIES:
            raise ConfigError(f"{name} has severity {severity!r}; severities are the integers 1 to 5.")
    missing = {name: [s for s in SEVERITIES if (name, s) not in present] for name in CORRUPTIONS}
    listed = [
        f"{name} (severity {', '.join(map(str, lacking))})" if len(lacking) < len(SEVERITIES) else name
        for name, lacking in missing.items()
        if lacking
    ]
    if listed:
        raise ConfigError(
            f"mCE needs 15 corruptions at 5 severities; evaluate the missing ones first: {', '.join(listed)}."
        )


def severity_means(errors: Mapping[Cell, ArrayLike]) -> NDArray[np.float64]:
    """Return each image's error under each corruption, the mean over severities: float64 ``[N, 15]`` in 0..1.

    Args:
        errors: for each (corruption, severity) the errors ``[N]`` of the images: bool, or 1 for wrong and 0 for right.
            Mean errors of whole cells work as lists of one.

    Returns:
        Columns in the order of `CORRUPTIONS`; column means are the raw errors of the corruptions.

    Raises:
        ConfigError: cells missing, or that do not belong; see `check_complete`.
        ValueError: cells of different lengths, without images, or with values outside 0..1.
    """
    check_complete(errors)
    n = np.size(errors[CORRUPTIONS[0], SEVERITIES[0]])
    means = np.zeros((n, len(CORRUPTIONS)))
    for column, name in enumerate(CORRUPTIONS):
        for severity in SEVERITIES:
            means[:, column] += _checked(errors[name, severity], n, f"{name} at severity {severity}")
    return means / len(SEVERITIES)


def mean_error(errors: Mapping[Cell, ArrayLike]) -> NDArray[np.float64]:
    """Return each image's mean error over the 75 cells, float64 ``[N]`` in 0..1, normalised by nothing.

    Arguments and errors as `severity_means`.
    """
    return severity_means(errors).mean(axis=1)


def corruption_error(errors: Mapping[Cell, ArrayLike]) -> NDArray[np.float64]:
    """Return each image's contribution to the CE of each corruption, float64 ``[N, 15]``, 0 or more.

    CE_c is the model's error summed over severities by AlexNet's; column means are the 15 CE in the order of
    `CORRUPTIONS`. Arguments and errors as `severity_means`.
    """
    return severity_means(errors) / _alexnet()


def mce(errors: Mapping[Cell, ArrayLike]) -> NDArray[np.float64]:
    """Return each image's contribution to mCE, the mean CE of the 15 corruptions: float64 ``[N]``, 0 or more.

    Arguments and errors as `severity_means`.
    """
    return corruption_error(errors).mean(axis=1)


def relative_mce(errors: Mapping[Cell, ArrayLike], clean: ArrayLike) -> NDArray[np.float64]:
    """Return each image's contribution to relative mCE, float64 ``[N]``; it can be negative.

    Relative CE_c is the error under corruption above the clean error, by the same of AlexNet: how much a model loses,
    whatever it started from.

    Args:
        errors: as for `severity_means`.
        clean: ``[N]``, the errors on the uncorrupted images, joined with the cells' by file name by the caller.

    Raises:
        ConfigError, ValueError: as `severity_means`.
    """
    means = severity_means(errors)
    loss = means - _checked(clean, len(means), "the clean set")[:, None]
    return (loss / (_alexnet() - ALEXNET_CLEAN)).mean(axis=1)


def _alexnet() -> NDArray[np.float64]:
    return np.array([ALEXNET_ERROR[name] for name in CORRUPTIONS])


def _checked(errors: ArrayLike, n: int, what: str) -> NDArray[np.float64]:
    array = np.asarray(errors, dtype=np.float64)
    if array.shape != (n,) or not n:
        raise ValueError(f"Every cell needs the errors of the same images; {what} has shape {array.shape}, not ({n},).")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"Errors are 0 to 1 per image, not percentages; those of {what} are not.")
    return array
