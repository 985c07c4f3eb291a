"""Small trees of the ImageNet family in the layouts that users have, for tests: each picture's colour tells its class.

>>> roots = write_imagenet_tree(tmp_path, classes=(6, 11, 13), per_class=2)     # all seven sets
>>> class_of_color(np.asarray(Image.open(picture_file)))
6

So a rigged model reads the class from the pixels, after any resizing or cropping, and answers as it is told. File
names are of the kind that each set has. Nothing of the sets themselves is in here. Imports without torch.
"""

from __future__ import annotations

import importlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digpt.data.imagenet_c import GROUPS, SIZE
from digpt.data.imagenet_classes import VAL_IMAGES, class_subset, shipped_real, wnids
from digpt.robustness_metrics import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES

ValLayout = Literal["folders", "synset_labels", "val_txt", "kaggle", "devkit", "file_names"]
CLayout = Literal["folders", "groups", "tars"]
VAL_LAYOUTS: tuple[ValLayout, ...] = ("folders", "synset_labels", "val_txt", "kaggle", "devkit", "file_names")
C_LAYOUTS: tuple[CLayout, ...] = ("folders", "groups", "tars")

Shows = Callable[[int, int], int]
"""``(label, number of the image within its class)`` -> the class whose colour the picture has."""

_STEP, _FIRST = 25, 15
Files = Iterable[tuple[str, bytes]]


def class_color(index: int) -> tuple[int, int, int]:
    """RGB of a class 0..999: its three decimal digits, 25 apart, so that neither JPEG nor resizing confuses two."""
    return tuple(_FIRST + _STEP * (index // place % 10) for place in (100, 10, 1))  # type: ignore[return-value]


def class_of_color(pixels: NDArray[Any]) -> int:
    """The class that a picture ``[H, W, 3]`` (values 0..255) shows: the nearest digits of its mean colour."""
    digits = np.clip(np.round((pixels.reshape(-1, 3).mean(0) - _FIRST) / _STEP), 0, 9)
    return int(digits @ (100, 10, 1))


@cache
def picture(index: int, size: int = 16, kind: str = "JPEG") -> bytes:
    """A square file of one class's colour; JPEG of quality 85, as ImageNet-C has, or PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), class_color(index)).save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return buffer.getvalue()


def val_images(classes: Sequence[int], per_class: int) -> list[tuple[int, int]]:
    """``(number, label)`` of images of these classes, the numbers being such as ReaL gives the label, where it can.

    Those of one class are not consecutive, so that joining by order goes wrong, as in the real set.
    """
    numbers: dict[int, list[int]] = {label: [] for label in classes}
    rest: list[int] = []
    for position, labels in enumerate(shipped_real()):
        (numbers[labels[0]] if labels and labels[0] in numbers else rest).append(position + 1)
    spare = iter(rest)
    return [
        (own[i] if i < len(own) else next(spare), label) for label, own in numbers.items() for i in range(per_class)
    ]


def val_name(number: int) -> str:
    """The file name of a validation image."""
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def _own(label: int, number: int) -> int:
    return label


def write_val(
    root: Path,
    classes: Sequence[int],
    per_class: int = 2,
    *,
    layout: ValLayout = "folders",
    size: int = 16,
    shows: Shows = _own,
) -> Path:
    """ImageNet's validation images; returns their folder.

    ``folders`` makes ``imagenet/val/<wnid>``, ``kaggle`` its ``ILSVRC/Data/CLS-LOC/val`` with ``LOC_val_solution.csv``,
    ``file_names`` a flat ``val`` with the wnid in every name; the others a flat ``ILSVRC2012_img_val`` beside a label
    file of all 50,000 (images that are not there have a ReaL label). ``devkit`` is the one with ILSVRC ids.
    """
    images = val_images(classes, per_class)
    folder = root / {"folders": "imagenet/val", "kaggle": "ILSVRC/Data/CLS-LOC/val", "file_names": "val"}.get(
        layout, "ILSVRC2012_img_val"
    )
    names = {number: val_name(number) for number, _ in images}
    if layout == "folders":
        names = {number: f"{wnids()[label]}/{names[number]}" for number, label in images}
    elif layout == "file_names":
        names = {n: names[n].replace(".JPEG", f"_{wnids()[label]}.JPEG") for n, label in images}
    seen: dict[int, int] = {}
    files = []
    for number, label in images:
        files.append((names[number], picture(shows(label, seen.setdefault(label, 0)), size)))
        seen[label] += 1
    _write(folder, files)
    if layout == "devkit":
        _write_devkit(root / "ILSVRC2012_devkit_t12" / "data", _all_labels(tuple(images)))
    elif layout not in ("folders", "file_names"):
        _write(root, [_label_file(layout, tuple(images))])
    return folder


def _all_labels(images: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """``(number, label)`` of all 50,000: of ``images`` as they are, of the others one that ReaL gives."""
    labels = {position + 1: (answers or (0,))[0] for position, answers in enumerate(shipped_real())}
    return sorted((labels | dict(images)).items())


@cache
def _label_file(layout: ValLayout, images: tuple[tuple[int, int], ...]) -> tuple[str, bytes]:
    rows = _all_labels(images)
    if layout == "synset_labels":
        name, lines = "imagenet_2012_validation_synset_labels.txt", [wnids()[label] for _, label in rows]
    elif layout == "val_txt":
        name, lines = "val.txt", [f"{val_name(number)} {label}" for number, label in rows]
    else:
        box = "85 1 499 272"  # of the object, which the classification does not need
        name = "LOC_val_solution.csv"
        lines = [f"{val_name(number)[:-5]},{wnids()[label]} {box} " for number, label in reversed(rows)]
        lines.insert(0, "ImageId,PredictionString")
    return name, ("\n".join(lines) + "\n").encode()


@cache
def ilsvrc_ids() -> tuple[int, ...]:
    """A numbering of the classes 1..1000 that is not theirs in sorted order, as the development kit has one."""
    return tuple(int(number) + 1 for number in np.random.RandomState(0).permutation(len(wnids())))


def _write_devkit(folder: Path, labels: Sequence[tuple[int, int]]) -> None:
    ids = ilsvrc_ids()
    truth = _lines(ids[label] for _, label in labels)
    _write(folder, [("ILSVRC2012_validation_ground_truth.txt", truth)])
    leaves = [(ids[label], wnid, 0) for label, wnid in enumerate(wnids())]
    synsets = np.empty((len(leaves) + 1, 1), [(key, object) for key in ("ILSVRC2012_ID", "WNID", "num_children")])
    synsets[:, 0] = [*sorted(leaves), (1001, "n00001740", 2)]  # an inner node, which is no class
    importlib.import_module("scipy.io").savemat(folder / "meta.mat", {"synsets": synsets})


def write_real(root: Path, answers: Mapping[int, Sequence[int]] | None = None) -> Path:
    """``imagenet-real/real.json``: the published 50,000 lists, those of ``answers`` (by file number) replaced."""
    lists = [list(labels) for labels in shipped_real()]
    for number, labels in (answers or {}).items():
        lists[number - 1] = list(labels)
    assert len(lists) == VAL_IMAGES
    return _write(root / "imagenet-real", [("real.json", json.dumps(lists).encode())]) / "real.json"


def write_v2(
    root: Path,
    classes: Sequence[int] = (2, 10, 100),
    per_class: int = 2,
    *,
    wnid_folders: bool = False,
    size: int = 16,
    shows: Shows = _own,
) -> Path:
    """ImageNet-V2 with folders ``0``..``999``, or the release with wnid folders; returns the set's folder."""
    folder = "imagenet-matched-frequency-format-val" if wnid_folders else "imagenetv2-matched-frequency-format-val"
    files = [
        (f"{wnids()[label] if wnid_folders else label}/{label * 1009 + i:016x}.jpeg", picture(shows(label, i), size))
        for label in classes
        for i in range(per_class)
    ]
    return _write(root / folder, files)


def write_a(
    root: Path, classes: Sequence[int] | None = None, per_class: int = 2, *, size: int = 16, shows: Shows = _own
) -> Path:
    """ImageNet-A, with its ``README.txt``; ``classes`` (default: the first two) must be among its 200."""
    labels = _subset("imagenet-a", classes)
    files = _class_files(labels, per_class, "0.00{i:04d}_digital clock _ screen_0.8{i:03d}.jpg", size, shows)
    return _write(root / "imagenet-a", [*files, ("README.txt", b"ImageNet-A\n")])


def write_r(
    root: Path, classes: Sequence[int] | None = None, per_class: int = 2, *, size: int = 16, shows: Shows = _own
) -> Path:
    """ImageNet-R, with its ``README.txt``; ``classes`` (default: the first two) must be among its 200."""
    labels = _subset("imagenet-r", classes)
    files = _class_files(labels, per_class, "art_{i}.jpg", size, shows)
    return _write(root / "imagenet-r", [*files, ("README.txt", b"ImageNet-R\n")])


def write_sketch(
    root: Path, classes: Sequence[int], per_class: int = 2, *, size: int = 16, shows: Shows = _own
) -> Path:
    """ImageNet-Sketch in ``sketch/``."""
    return _write(root / "sketch", _class_files(classes, per_class, "sketch_{i}.JPEG", size, shows))


def write_train(root: Path, classes: Sequence[int], per_class: int = 2, *, size: int = 16, shows: Shows = _own) -> Path:
    """ImageNet's training images in ``imagenet/train``."""
    return _write(root / "imagenet" / "train", _class_files(classes, per_class, "{wnid}_{i}.JPEG", size, shows))


def write_c(
    root: Path,
    classes: Sequence[int],
    per_class: int = 1,
    *,
    layout: CLayout = "folders",
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    extra: bool = False,
    size: int = SIZE,
    shows: Callable[[int, int, str, int], int] = lambda label, number, corruption, severity: label,
) -> Path:
    """ImageNet-C in ``imagenet-c/``: ``<corruption>/<severity>``, the same in a folder per archive, or the archives.

    ``extra`` adds the four extra corruptions. ``shows`` takes label, number, corruption and severity.
    """
    images = val_images(classes, per_class)
    groups = [*GROUPS.items(), ("extra", EXTRA_CORRUPTIONS)] if extra else list(GROUPS.items())

    def files(group: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        for corruption in group:
            if corruption not in corruptions and corruption not in EXTRA_CORRUPTIONS:
                continue
            for severity in severities:
                for position, (number, label) in enumerate(images):
                    name = f"{corruption}/{severity}/{wnids()[label]}/{val_name(number)}"
                    yield name, picture(shows(label, position % per_class, corruption, severity), size)

    folder = root / "imagenet-c"
    for group, names in groups:
        if layout != "tars":
            _write(folder / (group if layout == "groups" else ""), files(names))
        elif members := list(files(names)):
            _write_tar(folder / f"{group}.tar", members)
    return folder


def write_imagenet_tree(
    root: Path, classes: Sequence[int] | None = None, per_class: int = 2, *, size: int = 16
) -> dict[str, Path]:
    """All seven sets and the training images, in their published layouts: ``{set: folder}``.

    ``classes`` (default: two that A and R have) go to A and R as far as they have them. ImageNet-C has one image per
    class and is 224 px; for anything else call the set's own function.
    """
    both = sorted(set(class_subset("imagenet-a").tolist()) & set(class_subset("imagenet-r").tolist()))
    classes = both[:2] if classes is None else classes
    in_a = [label for label in classes if label in class_subset("imagenet-a")]
    in_r = [label for label in classes if label in class_subset("imagenet-r")]
    return {
        "imagenet": write_val(root, classes, per_class, size=size),
        "imagenet-v2": write_v2(root, classes, per_class, size=size),
        "imagenet-real": write_real(root),
        "imagenet-a": write_a(root, in_a or None, per_class, size=size),
        "imagenet-r": write_r(root, in_r or None, per_class, size=size),
        "imagenet-sketch": write_sketch(root, classes, per_class, size=size),
        "imagenet-c": write_c(root, classes),
        "train": write_train(root, classes, per_class, size=size),
    }


def _subset(name: str, classes: Sequence[int] | None) -> list[int]:
    known = class_subset(name).tolist()
    labels = known[:2] if classes is None else list(classes)
    if not set(labels) <= set(known):
        raise ValueError(f"{sorted(set(labels) - set(known))} are not among the 200 classes of {name}.")
    return labels


def _class_files(classes: Iterable[int], per_class: int, name: str, size: int, shows: Shows) -> list[tuple[str, bytes]]:
    return [
        (f"{wnids()[label]}/{name.format(i=i, wnid=wnids()[label])}", picture(shows(label, i), size))
        for label in classes
        for i in range(per_class)
    ]


def _lines(values: Iterable[object]) -> bytes:
    return "".join(f"{value}\n" for value in values).encode()


def _write(folder: Path, files: Files) -> Path:
    for name, data in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def _write_tar(path: Path, files: Files) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
