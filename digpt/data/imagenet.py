"""The ImageNet family as it lies on users' disks: validation, V2, ReaL, A, R, Sketch and C. Imports without torch.

>>> source = open_imagenet("imagenet-v2", "/data")
>>> data, label = source.read(0)                       # label: index into the 1000 sorted wnids, for every set
>>> fog = open_imagenet("imagenet-c", "/data", corruption="fog", severity=3)
>>> answers = real_labels(Path("/data"), [val.sample_name(i) for i in range(len(val))]).answers

Every layout that is accepted stands in ``docs/data-evaluation.md``; ``python -m evaluate.doctor`` checks them.
"""

from __future__ import annotations

from pathlib import Path

from digpt.data.imagenet_c import check_cell, open_cell
from digpt.data.imagenet_classes import class_subset, descriptions, wnids
from digpt.data.imagenet_folders import ImageNetImages, read_folders
from digpt.data.imagenet_labels import RealLabels, flat_labels, real_labels
from digpt.data.imagenet_sets import (
    IMAGENET_SETS,
    TRAIN_FOLDERS,
    TRAINING,
    WNID,
    ImageNetSet,
    entries,
    folders_below,
    imagenet_set,
    locate,
)
from digpt.data.imagenet_sets import missing as _missing
from digpt.data.images import ImageSource, open_images
from digpt.errors import ConfigError, DataError

__all__ = [
    "IMAGENET_SETS",
    "TRAINING",
    "ImageNetImages",
    "ImageNetSet",
    "RealLabels",
    "available",
    "class_subset",
    "descriptions",
    "locate",
    "open_imagenet",
    "real_labels",
    "training_folder",
    "training_place",
    "wnids",
]


def open_imagenet(
    name: str,
    data_root: str | Path,
    *,
    corruption: str | None = None,
    severity: int | None = None,
    cache: Path | None = None,
) -> ImageNetImages:
    """Open one of ``IMAGENET_SETS``, whichever accepted layout it has below ``data_root``.

    ``imagenet-real`` gives the validation images themselves; their answers come from ``real_labels``. For
    ``imagenet-c``, ``corruption`` and ``severity`` (1..5) name the cell, and ``cache`` is a folder for the listing of
    an archive beside which nothing can be written. Fewer images or classes than published are not refused.

    Raises:
        DataError: no such set, or it is missing, or its layout would give wrong labels; the message says what to do.
        ConfigError: no such corruption or severity, or one for a set that has none.
        MissingDependencyError: timm, or scipy for a label file that needs it, is not installed.
    """
    root = Path(data_root)
    dataset = "imagenet" if name == "imagenet-real" else imagenet_set(name).name
    if dataset == "imagenet-c":
        cell = check_cell(corruption, severity)
    elif corruption is not None or severity is not None:
        raise ConfigError(f"{name} has no corruptions; only imagenet-c takes a corruption and a severity.")
    found = locate(dataset, root)
    if not found:
        raise _missing(dataset, root)
    if dataset == "imagenet-c":
        return open_cell(found[0], *cell, cache=cache)
    return read_folders(dataset, dataset, found[0], lambda files: flat_labels(found[0], root, files))


def available(data_root: str | Path) -> list[str]:
    """The names of the sets that are there, in the order of ``IMAGENET_SETS``; whether they are whole is not checked.

    Raises:
        DataError: ``data_root`` is no folder.
    """
    return [name for name in IMAGENET_SETS if locate(name, Path(data_root))]


def training_place(data_root: str | Path) -> Path | None:
    """The folder of ImageNet-1K's training images, or None where no folder of that name has class folders."""
    folders = folders_below(Path(data_root), TRAIN_FOLDERS)
    return next((path for path in folders if any(WNID.fullmatch(entry.name) for entry in entries(path))), None)


def training_folder(data_root: str | Path) -> ImageSource:
    """ImageNet-1K's training images (``train/<wnid>/*.JPEG``), labels indexing ``wnids()``; for kNN and linear probes.

    Raises:
        DataError: there are none, or the folder holds other classes.
    """
    place = training_place(data_root)
    if place is None:
        raise DataError(
            f"ImageNet's training images were not found under {data_root}; they are expected as train/<wnid>/*.JPEG "
            "there or in a folder such as imagenet: docs/data-evaluation.md shows the layouts."
        )
    return open_images(f"folder:{place}", classes=wnids())
