"""The images of one set as a source: its class folders (or a flat folder) read, named and labelled.

An image is called ``<wnid>/<file>``, wherever its layout puts it, and images are in the order of these names. So the
same images have the same names, order and fingerprint as class folders, as a flat folder and in a tar.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digpt.data.imagenet_classes import CLASSES, class_numbers, class_subset, wnids
from digpt.data.imagenet_sets import IMAGENET_SETS, PAGE, VAL_PREFIX, WNID, entries, is_number
from digpt.data.images import ImageSource
from digpt.data.source import IMAGE_EXTENSIONS, Names, file_size, read_file
from digpt.errors import DataError

_WNID_SUFFIX = re.compile(rf"({VAL_PREFIX}\d{{8}})_(n\d{{8}})(\.\w+)")  # as Hugging Face's val_images.tar.gz has it


class Placed(NamedTuple):
    """``name`` is ``<wnid>/<file>``, ``label`` indexes ``wnids()``, ``path`` is relative to the set's folder.

    ``size`` is in bytes.
    """

    name: str
    label: int
    path: str
    size: int


class ImageNetImages(ImageSource):
    """One set, or one cell of ImageNet-C. ``labels`` always index the 1000 sorted wnids, also for A and R.

    Attributes:
        name: ``imagenet``, ``imagenet-v2``, ..., ``imagenet-c/fog/3``.
        root: the set's folder.
        sizes: of the files in bytes, int64 ``[N]``.
        layout: how it lies there, in words.
        stray: files that are no images, or lie where no image belongs; relative to ``root``.
    """

    labels: NDArray[np.int64]

    def __init__(
        self,
        name: str,
        root: Path,
        names: Names,
        labels: NDArray[np.int64],
        sizes: NDArray[np.int64],
        layout: str,
        stray: Sequence[str] = (),
    ) -> None:
        self.name, self.root, self.names, self.labels, self.sizes = name, root, names, labels, sizes
        self.layout, self.stray = layout, tuple(stray)
        self.classes = wnids()

    def __len__(self) -> int:
        return len(self.names)

    def sample_name(self, index: int) -> str:
        """``<wnid>/<file>``; unique within the set, and the same in every layout."""
        return str(self.names[index])

    @property
    def fingerprint(self) -> str:
        """sha256 of set, names, labels and sizes: not of where the set lies, its layout, or the files' order."""
        digest = hashlib.sha256(f"digpt-imagenet-2:{self.name}\n".encode())
        for array in (self.names.text, self.names.ends, self.labels, self.sizes):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class FileImages(ImageNetImages):
    """Images that are files of their own below ``root``."""

    def __init__(self, name: str, root: Path, images: Iterable[Placed], layout: str, stray: Sequence[str] = ()) -> None:
        ordered = sorted(images)
        if not ordered:
            raise DataError(f"{root} holds no images ({', '.join(IMAGE_EXTENSIONS)}); {PAGE} shows the layouts.")
        for one, other in pairwise(ordered):
            if one.name == other.name:
                raise DataError(f"{root} holds the image {one.name} twice, at {one.path} and {other.path}; remove one.")
        labels = np.array([image.label for image in ordered], dtype=np.int64)
        sizes = np.array([image.size for image in ordered], dtype=np.int64)
        super().__init__(name, root, Names(image.name for image in ordered), labels, sizes, layout, stray)
        self.paths = Names(image.path for image in ordered)

    def read(self, index: int) -> tuple[bytes, int]:
        return read_file(self.root / self.paths[index]), int(self.labels[index])


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image's; hidden files (macOS leaves some beside images) are none."""
    return name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith(".")


def read_folders(
    dataset: str, name: str, root: Path, flat_labels: Callable[[Sequence[str]], tuple[Mapping[str, int], str]]
) -> FileImages:
    """A set from its class folders; for ``imagenet`` also from a flat folder, whose labels ``flat_labels`` gives.

    ``dataset`` decides which folders are right; ``name`` is what the source is called.

    Raises:
        DataError: unknown class folders, images both in class folders and outside, or no images at all.
    """
    folders: dict[str, dict[str, int]] = {}
    flat: dict[str, int] = {}
    stray: list[str] = []
    for entry in entries(root):
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_dir():
            folders[entry.name], others = _images_in(root / entry.name)
            stray += [f"{entry.name}/{other}" for other in others]
        elif dataset == "imagenet" and is_image(entry.name) and entry.is_file():
            flat[entry.name] = file_size(entry)
        else:
            stray.append(entry.name)
    filled = [folder for folder in folders if folders[folder]]
    if flat and filled:
        raise DataError(
            f"{root} holds {len(flat)} images beside {len(filled)} class folders: sorting them into folders was "
            "interrupted. Run the script again, or unpack ILSVRC2012_img_val.tar anew."
        )
    if flat:
        labels, layout = _labels_of(list(flat), flat_labels)
        images = [Placed(f"{wnids()[label]}/{_plain(file)}", label, file, flat[file]) for file, label in labels.items()]
        return FileImages(name, root, images, layout, sorted(stray))
    labels, layout = folder_labels(dataset, root, filled)
    images = [
        Placed(f"{wnids()[label]}/{file}", label, f"{folder}/{file}", size)
        for folder, label in labels.items()
        for file, size in folders[folder].items()
    ]
    return FileImages(name, root, images, layout, sorted(stray))


def folder_labels(dataset: str, root: Path, folders: Sequence[str]) -> tuple[dict[str, int], str]:
    """``{folder: label}`` and the layout in words.

    Raises:
        DataError: a folder that is no class of this set.
    """
    if dataset == "imagenet-v2" and any(map(is_number, folders)):
        return _numbered(root, folders), "folders 0..999, read as integers"
    numbers = class_numbers()
    allowed = {wnids()[label] for label in class_subset(dataset)} if IMAGENET_SETS[dataset].classes == 200 else numbers
    for folder in sorted(folders):
        if folder not in allowed:
            raise DataError(f"{root} has the folder {folder}, {_objection(dataset, folder)}")
    return {folder: numbers[folder] for folder in folders}, "class folders"


def _numbered(root: Path, folders: Sequence[str]) -> dict[str, int]:
    """V2's folders are numbers to be read as integers: sorted as strings, folder 10 would get label 2."""
    for folder in sorted(folders):
        if not is_number(folder) or int(folder) >= CLASSES:
            raise DataError(
                f"{root} has the folder {folder} among numbered ones, which have to be the classes 0..{CLASSES - 1} "
                "counted from 0; unpack imagenetv2-matched-frequency.tar.gz anew."
            )
    return {folder: int(folder) for folder in folders}


def _objection(dataset: str, folder: str) -> str:
    title = IMAGENET_SETS[dataset].title
    if folder in class_numbers():
        return f"which is not one of the 200 classes of {title}: give the folder that {title} was unpacked to."
    if WNID.fullmatch(folder):
        return "which is not one of ImageNet-1K's 1000 classes: move it out of the way."
    if is_number(folder):
        return "but class folders have to be named by WordNet id (n01440764): no rule says what the numbers count."
    return f"which is no WordNet id (n01440764): move it out of the way, or see {PAGE} for the layouts."


def _labels_of(
    files: Sequence[str], flat_labels: Callable[[Sequence[str]], tuple[Mapping[str, int], str]]
) -> tuple[Mapping[str, int], str]:
    """The labels of a flat folder: from the files' names where these end in the wnid, else from a label file."""
    matches = {file: _WNID_SUFFIX.fullmatch(file) for file in files}
    if not all(matches.values()):
        return flat_labels(files)
    numbers = class_numbers()
    labels: dict[str, int] = {}
    for file, match in matches.items():
        assert match is not None
        if match[2] not in numbers:
            raise DataError(f"The file name {file} ends in {match[2]}, which is not one of ImageNet-1K's 1000 classes.")
        labels[file] = numbers[match[2]]
    return labels, "flat folder, labels in the file names"


def _plain(file: str) -> str:
    match = _WNID_SUFFIX.fullmatch(file)
    return f"{match[1]}{match[3]}" if match else file


def _images_in(folder: Path) -> tuple[dict[str, int], list[str]]:
    """The images directly in a folder with their bytes, and the names of everything else that is not hidden."""
    images: dict[str, int] = {}
    others: list[str] = []
    for entry in entries(folder):
        if is_image(entry.name) and entry.is_file():
            images[entry.name] = file_size(entry)
        elif not entry.name.startswith("."):
            others.append(entry.name)
    return images, others
