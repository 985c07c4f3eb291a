"""ImageNet-C's 75 cells (15 corruptions at 5 severities), from folders or straight from the archives.

    imagenet-c/fog/3/n01440764/ILSVRC2012_val_00000293.JPEG
    imagenet-c/weather/fog/3/...        the same, as people unpack an archive into a folder of its own
    imagenet-c/weather.tar              read in place: the archives need not be unpacked

What an archive holds is listed once, which takes its reading from end to end, and remembered beside it.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.data.imagenet_classes import class_numbers, wnids
from digpt.data.imagenet_folders import FileImages, ImageNetImages, is_image, read_folders
from digpt.data.imagenet_sets import GROUPS, PAGE
from digpt.data.source import Names, OpenFiles, SampleError
from digpt.errors import ConfigError, DataError, near_misses
from digpt.files import atomic_write
from digpt.robustness_metrics import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES

NAME = "imagenet-c"
CELLS = tuple((corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES)
SIZE = 224
"""Side of the published images in pixels: they are cropped already, so that nothing may be resized or cropped again."""

_GROUP_OF = {corruption: group for group, corruptions in GROUPS.items() for corruption in corruptions}
_VERSION = 1
_OPENING = threading.Lock()


@dataclass(frozen=True)
class TarListing:
    """Where an archive's images are. ``cells`` int16 ``[N]`` index ``CELLS`` and rise; within one, names are sorted.

    ``names`` are ``<wnid>/<file>``, ``spans`` int64 ``[N, 2]`` are offset and size in bytes.
    """

    names: Names
    cells: NDArray[np.int16]
    spans: NDArray[np.int64]

    def rows(self, corruption: str, severity: int) -> range:
        """The rows of one cell, possibly none."""
        cell = CELLS.index((corruption, severity))
        start, end = np.searchsorted(self.cells, [cell, cell + 1])
        return range(int(start), int(end))


class MemberImages(ImageNetImages):
    """One cell, read from an archive by offset."""

    def __init__(self, name: str, root: Path, tar: Path, listing: TarListing, rows: range) -> None:
        names = Names(listing.names[row] for row in rows)
        numbers = class_numbers()
        labels = np.array([numbers[member.split("/")[0]] for member in names], dtype=np.int64)
        self.tar, self.spans = tar, listing.spans[rows.start : rows.stop]
        super().__init__(name, root, names, labels, self.spans[:, 1], f"archive {tar.name}")
        self.files = OpenFiles()

    def read(self, index: int) -> tuple[bytes, int]:
        offset, size = map(int, self.spans[index])
        if not len(self.files):
            with _OPENING:  # threads that read at the same time would each open the archive
                self.files.read(self.tar, 0, 0)
        data = self.files.read(self.tar, offset, size)
        if len(data) < size:
            raise SampleError("truncated", f"{self.names[index]} in {self.tar} is cut off; download the archive again.")
        return data, int(self.labels[index])


def check_cell(corruption: str | None, severity: int | None) -> tuple[str, int]:
    """The two as a cell.

    Raises:
        ConfigError: not one of the 15 corruptions and 5 severities.
    """
    if corruption in EXTRA_CORRUPTIONS:
        raise ConfigError(f"{corruption!r} is one of ImageNet-C's 4 extra corruptions, which are no part of mCE.")
    if corruption not in CORRUPTIONS:
        close = near_misses(corruption or "", CORRUPTIONS)
        raise ConfigError(f"{corruption!r} is no corruption of ImageNet-C; valid: {', '.join(CORRUPTIONS)}.{close}")
    if severity not in SEVERITIES:
        raise ConfigError(f"Severity {severity} does not exist; ImageNet-C has {SEVERITIES[0]} to {SEVERITIES[-1]}.")
    return corruption, severity


def open_cell(root: Path, corruption: str, severity: int, cache: Path | None = None) -> ImageNetImages:
    """One corruption at one severity below ``root``, the folder of ImageNet-C; a folder goes before an archive.

    ``cache`` is where an archive's listing is kept if nothing can be written beside it.

    Raises:
        ConfigError: no such cell.
        DataError: it is not there, or it has unknown class folders, or the archive is damaged.
    """
    corruption, severity = check_cell(corruption, severity)
    name = f"{NAME}/{corruption}/{severity}"
    if (folder := _cell_folder(root, corruption, severity)) is not None:
        return _folder_cell(name, folder)
    for tar in _archives(root, corruption):
        listing = list_tar(tar, cache)
        if rows := listing.rows(corruption, severity):
            return MemberImages(name, root, tar, listing, rows)
    raise DataError(
        f"{root} holds neither {corruption}/{severity} nor it in {_GROUP_OF[corruption]}.tar; get that archive from "
        f"https://zenodo.org/records/2235448 ({PAGE})."
    )


def present_cells(root: Path, cache: Path | None = None) -> tuple[tuple[str, int], ...]:
    """The cells that are there, in the order of ``CELLS``; archives are listed for it.

    Raises:
        DataError: a damaged archive.
    """

    def there(corruption: str, severity: int) -> bool:
        if _cell_folder(root, corruption, severity) is not None:
            return True
        return any(list_tar(tar, cache).rows(corruption, severity) for tar in _archives(root, corruption))

    return tuple(cell for cell in CELLS if there(*cell))


def _cell_folder(root: Path, corruption: str, severity: int) -> Path | None:
    for folder in (root / corruption, root / _GROUP_OF[corruption] / corruption):
        if (folder / str(severity)).is_dir():
            return folder / str(severity)
    return None


def _folder_cell(name: str, folder: Path) -> FileImages:
    def no_flat(files: Sequence[str]) -> tuple[Mapping[str, int], str]:
        raise AssertionError("only the validation set may be flat")

    return read_folders(NAME, name, folder, no_flat)


def _archives(root: Path, corruption: str) -> list[Path]:
    group = _GROUP_OF[corruption]
    names = (f"{group}.tar", f"{corruption}.tar", f"{group}/{group}.tar")
    return [root / name for name in names if (root / name).is_file()]


def list_tar(tar: Path, cache: Path | None = None) -> TarListing:
    """What an archive holds of the 15 corruptions; from the remembered listing if the archive is still the same one.

    Raises:
        DataError: no tar, a compressed or cut off one, or one with unknown class folders.
    """
    status = tar.stat()
    return _list_tar(tar, status.st_size, status.st_mtime_ns, cache)


@lru_cache(maxsize=8)
def _list_tar(tar: Path, size: int, modified: int, cache: Path | None) -> TarListing:
    key = np.array([_VERSION, size, modified], dtype=np.int64)
    places = [tar.with_name(f".{tar.name}.listing.npz")]
    if cache is not None:
        places.append(cache / f"{tar.name}-{hashlib.sha256(str(tar.resolve()).encode()).hexdigest()[:16]}.listing.npz")
    for place in places:
        if (remembered := _remembered(place, key)) is not None:
            return remembered
    listing = _scan(tar, size)
    for place in places:
        if os.access(place.parent, os.W_OK) and _remember(place, key, listing):
            break
    return listing


def _scan(tar: Path, size: int) -> TarListing:
    """Read an archive's headers; a member that was added again replaces the earlier one, as in unpacking."""
    numbers = {cell: number for number, cell in enumerate(CELLS)}
    found: dict[tuple[int, str], tuple[int, int]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it keeps every header: 1 GB for noise.tar
                parts = member.name.split("/")[-4:]
                if not member.isreg() or len(parts) < 4 or not is_image(parts[3]) or not parts[1].isdecimal():
                    continue
                cell = numbers.get((parts[0], int(parts[1])))
                if cell is None:
                    continue  # one of the extra corruptions
                if parts[2] not in class_numbers():
                    raise DataError(f"{tar} has {member.name}, whose folder is not one of ImageNet-1K's 1000 wnids.")
                found[cell, f"{parts[2]}/{parts[3]}"] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{tar} cannot be read as a tar ({error}): if it is compressed, unpack it, else download it again."
        ) from None
    if any(offset + length > size for offset, length in found.values()):
        raise DataError(f"{tar} is cut off; download it again.")
    rows = sorted(found)
    return TarListing(
        Names(name for _, name in rows),
        np.array([cell for cell, _ in rows], dtype=np.int16),
        np.array([found[row] for row in rows], dtype=np.int64).reshape(-1, 2),
    )


def _remembered(place: Path, key: NDArray[np.int64]) -> TarListing | None:
    """A listing that was kept for this very archive, or None."""
    try:
        with open(place, "rb") as file, np.load(file, allow_pickle=False) as kept:
            if not np.array_equal(kept["key"], key) or str(kept["classes"]) != _classes_digest():
                return None
            return TarListing(Names.of(kept["text"], kept["ends"]), kept["cells"], kept["spans"])
    except Exception:  # missing, or numpy's, zipfile's and zlib's many errors for what is none of ours
        return None


def _remember(place: Path, key: NDArray[np.int64], listing: TarListing) -> bool:
    arrays: dict[str, Any] = {
        "key": key,
        "classes": np.array(_classes_digest()),
        "text": listing.names.text,
        "ends": listing.names.ends,
        "cells": listing.cells,
        "spans": listing.spans,
    }
    try:
        atomic_write(place, lambda file: np.savez_compressed(file, **arrays), shared=True)
    except OSError:
        return False
    return True


def _classes_digest() -> str:
    """Of what the cells' numbers in a listing mean."""
    return hashlib.sha256(repr((CELLS, wnids())).encode()).hexdigest()
