"""Labels that lie in files: of a flat validation folder, and ReaL's several labels per image.

Both are joined by the number in ``ILSVRC2012_val_%08d``, never by the order in which images are read.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from digpt.data.imagenet_classes import CLASSES, VAL_IMAGES, Answers, class_numbers, shipped_real
from digpt.data.imagenet_sets import PAGE, VAL_PREFIX, folders_below
from digpt.errors import DataError, MissingDependencyError
from digpt.files import canonical_json

LABEL_FILES = (
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "synset_labels.txt",
    "val.txt",
    "val_list.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)
"""The label files that are looked for, those that name the classes first."""

_LABEL_FOLDERS = ("", "meta", "labels", "annotations", "caffe_ilsvrc12", "devkit/data", "ILSVRC2012_devkit_t12/data")
_REAL_FOLDERS = ("", "imagenet-real", "real", "reassessed-imagenet", "imagenet", "imagenet/real", "ilsvrc2012")
_NUMBER = re.compile(rf"{VAL_PREFIX}(\d{{8}})(?!\d)")
# The true labels are in ReaL's lists for 90.02 % of the images that have one; labels counted from 1 for 1.7 %,
# ILSVRC ids taken for labels, or another order of the images, for 0.1 % (measured on the 50,000).
_AGREEMENT, _ENOUGH = 0.5, 20


@dataclass(frozen=True)
class RealLabels:
    """``answers[i]`` are the right classes of the i-th name, possibly none; ``source`` says which file they are from.

    ``fingerprint`` is the sha256 of all 50,000 lists, so that ``real.json`` and timm's copy have the same.
    """

    answers: Answers
    source: str
    fingerprint: str


def val_number(name: str) -> int | None:
    """The number of a validation image in its file's name, 1..50,000, or None."""
    match = _NUMBER.search(name.rsplit("/", 1)[-1])
    return int(match[1]) if match and 1 <= int(match[1]) <= VAL_IMAGES else None


def real_labels(data_root: Path | None, names: Sequence[str]) -> RealLabels:
    """ReaL's labels of the validation images ``names``, from ``real.json`` below ``data_root`` or as timm ships them.

    An empty list means that the image is left out of the accuracy (3,163 of 50,000).

    Raises:
        DataError: a name without the number of a validation image, or a file that is not ReaL's.
    """
    lists, source = _all_real(data_root)
    numbers = [val_number(name) for name in names]
    for name, number in zip(names, numbers, strict=True):
        if number is None:
            raise DataError(
                f"{name} carries no number {VAL_PREFIX}00000001..{VAL_IMAGES:08d}, by which ReaL's labels are joined; "
                "keep the files' original names."
            )
    answers = tuple(lists[number - 1] for number in numbers if number is not None)
    fingerprint = hashlib.sha256(canonical_json([list(labels) for labels in lists])).hexdigest()
    return RealLabels(answers, source, fingerprint)


def agreement(labels: Iterable[tuple[int, int]]) -> tuple[float, int]:
    """How many of ``(number, label)`` have their label among ReaL's: share in [0, 1], and of how many images.

    Images without a ReaL label are left out.
    """
    lists = shipped_real()
    hits = [label in lists[number - 1] for number, label in labels if lists[number - 1]]
    return (sum(hits) / len(hits) if hits else 0.0), len(hits)


def flat_labels(folder: Path, data_root: Path, files: Sequence[str]) -> tuple[dict[str, int], str]:
    """The labels of the images ``files`` of a flat folder, by file, and the layout in words.

    The label file is one of ``LABEL_FILES`` in the folder or above it, up to the data root; ``docs/data-evaluation.md``
    has the formats.

    Raises:
        DataError: there is no such file, it is none of the formats, or its labels contradict ReaL's.
    """
    path = _label_file(folder, data_root)
    if path is None:
        raise DataError(
            f"{folder} holds images without class folders, and no label file: put one of {', '.join(LABEL_FILES)} "
            f"beside the folder ({PAGE}), or sort the images into class folders."
        )
    table = label_table(path)
    labels: dict[str, int] = {}
    for file in files:
        number = val_number(file)
        if number is None:
            raise DataError(f"{folder / file} has no name such as {VAL_PREFIX}00000001.JPEG; move it out of the way.")
        if number not in table:
            raise DataError(f"{path} has no label for {file}; take the file of all {VAL_IMAGES:,} images.")
        labels[file] = table[number]
    return labels, f"flat folder, labels from {path.name}"


def label_table(path: Path) -> dict[int, int]:
    """``{number of the validation image: label}`` of a label file, the label indexing the sorted wnids.

    Raises:
        DataError: see ``flat_labels``.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error}); download it again.") from None
    rows = [line.split() for line in lines if line]
    if path.suffix == ".csv":
        table = _named(path, [(row["ImageId"], row["PredictionString"]) for row in _kaggle(path, lines)])
    elif rows and all(len(row) == 2 for row in rows):
        table = _named(path, [(name, label) for name, label in rows])
    elif len(rows) == VAL_IMAGES and all(len(row) == 1 for row in rows):
        table = _ordered(path, [row[0] for row in rows])
    else:
        raise DataError(
            f"{path} has neither an image and its class on every line nor the classes of all {VAL_IMAGES:,} images, "
            "one a line; download it again."
        )
    share, count = agreement(table.items())
    if count >= _ENOUGH and share < _AGREEMENT:
        raise DataError(
            f"{path} gives labels of which {share:.1%} are among ReaL's, where right ones are for 90 %: they count "
            "the classes in another order or from 1, or the images in another order; take another label file."
        )
    return table


def _kaggle(path: Path, lines: Sequence[str]) -> list[dict[str, str]]:
    rows = list(csv.DictReader(lines))
    if not rows or not {"ImageId", "PredictionString"} <= set(rows[0]):
        raise DataError(f"{path} has no columns ImageId and PredictionString; download it again.")
    return rows


def _named(path: Path, rows: Iterable[tuple[str, str]]) -> dict[int, int]:
    """Lines that name the image: its class is a wnid (Kaggle adds a box), or the label from 0 to 999."""
    table: dict[int, int] = {}
    numbers = class_numbers()
    for name, text in rows:
        number, label = val_number(name), (text.split() or [""])[0]
        value = numbers.get(label, int(label) if label.isdecimal() else -1)
        if number is None or not 0 <= value < CLASSES:
            raise DataError(
                f"{path} says {label!r} of {name!r}, where a wnid or a label 0..{CLASSES - 1} of an image such as "
                f"{VAL_PREFIX}00000001.JPEG is expected. Kaggle's ImageSets/CLS-LOC/val.txt numbers the images and "
                "has no labels: take LOC_val_solution.csv."
            )
        if table.setdefault(number, value) != value:
            raise DataError(f"{path} gives {name} two labels; download it again.")
    return table


def _ordered(path: Path, values: Sequence[str]) -> dict[int, int]:
    """One class a line, in the order of the images' numbers: wnids, or the development kit's ILSVRC ids 1..1000."""
    numbers: Mapping[str, int] = class_numbers()
    if any(value.isdecimal() for value in values):
        numbers = {str(number): label for number, label in _ilsvrc_ids(path).items()}
    unknown = next((value for value in values if value not in numbers), None)
    if unknown is not None:
        raise DataError(f"{path} has the class {unknown!r}, which is not one of ImageNet-1K's 1000; download it again.")
    return {position + 1: numbers[value] for position, value in enumerate(values)}


def _ilsvrc_ids(path: Path) -> dict[int, int]:
    """``{ILSVRC2012_ID: label}`` from the kit's ``meta.mat``, or from ``map_clsloc.txt`` with the same ids."""
    meta, text = path.with_name("meta.mat"), path.with_name("map_clsloc.txt")
    if meta.is_file():
        pairs = _meta_mat(meta)
    elif text.is_file():
        rows = [line.split() for line in text.read_text(encoding="utf-8").splitlines()]
        pairs = {int(row[1]): row[0] for row in rows if len(row) >= 2 and row[1].isdecimal()}
    else:
        raise DataError(
            f"{path} has ILSVRC ids, which are not the labels of the sorted wnids: put meta.mat of "
            "ILSVRC2012_devkit_t12/data beside it, or take imagenet_2012_validation_synset_labels.txt."
        )
    numbers = class_numbers()
    labels = {number: numbers[wnid] for number, wnid in pairs.items() if wnid in numbers}
    if sorted(labels) != list(range(1, CLASSES + 1)) or len(set(labels.values())) != CLASSES:
        raise DataError(
            f"{(meta if meta.is_file() else text)} does not give the ids 1..1000 the 1000 wnids; get it anew."
        )
    return labels


def _meta_mat(path: Path) -> dict[int, str]:
    """``{ILSVRC2012_ID: wnid}`` of the classes without children; ids above 1000 are inner nodes of WordNet."""
    try:
        loadmat = importlib.import_module("scipy.io").loadmat
    except ImportError:
        raise MissingDependencyError(
            f"Reading {path} needs scipy (pip install scipy); or take imagenet_2012_validation_synset_labels.txt."
        ) from None
    try:
        synsets = loadmat(str(path), squeeze_me=True)["synsets"]
        rows = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True)
        return {int(number): str(wnid) for number, wnid, children in rows if int(children) == 0}
    except Exception as error:  # scipy raises many unrelated types for what is no MATLAB file
        raise DataError(f"{path} is not the development kit's meta.mat ({error}); unpack it again.") from None


def _label_file(folder: Path, data_root: Path) -> Path | None:
    places = [folder, *folder.parents]
    above = places.index(data_root) if data_root in places else 0
    places = places[: max(above, 1) + 1]  # also beside the folder where it is the data root itself
    for name in LABEL_FILES:
        for place in places:
            for inner in _LABEL_FOLDERS:
                if (path := place / inner / name).is_file():
                    return path
    return None


def _all_real(data_root: Path | None) -> tuple[Answers, str]:
    folders = [] if data_root is None else folders_below(data_root, _REAL_FOLDERS)
    found = [folder / "real.json" for folder in folders if (folder / "real.json").is_file()]
    if not found:
        return shipped_real(), "timm's copy of real.json"
    try:
        lists = tuple(tuple(labels) for labels in json.loads(found[0].read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        lists = ()
    right = all(type(label) is int and 0 <= label < CLASSES for labels in lists for label in labels)
    if len(lists) != VAL_IMAGES or not right:
        raise DataError(
            f"{found[0]} is not ReaL's list of {VAL_IMAGES:,} lists of labels 0..{CLASSES - 1}; download it from "
            "google-research/reassessed-imagenet, or remove it: timm's copy is used then."
        )
    return lists, str(found[0])
