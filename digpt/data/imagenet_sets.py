"""The sets of the ImageNet family: how many images each holds, and where below a data root it is looked for.

>>> IMAGENET_SETS["imagenet-sketch"].images
50889
>>> locate("imagenet-v2", Path("/data"))
[PosixPath('/data/imagenetv2-matched-frequency-format-val')]
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from digpt.errors import DataError, near_misses

WNID = re.compile(r"n\d{8}")
VAL_PREFIX = "ILSVRC2012_val_"
PAGE = "docs/data-evaluation.md"
GROUPS: Mapping[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
"""ImageNet-C's archives (zenodo record 2235448) and the corruptions in them; ``extra.tar`` is left out."""

_HOMES = ("", "imagenet", "imagenet-1k", "imagenet1k", "ilsvrc2012", "ilsvrc", "imagenet/ilsvrc", "imagenet2012")
_VAL = ("val", "validation", "images/val", "data/cls-loc/val", "ilsvrc2012-img-val", "ilsvrc2012-val", "")
_TRAIN = ("train", "training", "images/train", "data/cls-loc/train", "ilsvrc2012-img-train")
_V2 = (
    "imagenetv2-matched-frequency-format-val",
    "imagenetv2-matched-frequency",
    "imagenet-matched-frequency-format-val",
    "imagenetv2-b-33/val",
    "imagenetv2-b-33",
)


@dataclass(frozen=True)
class ImageNetSet:
    """One set. ``images`` is the published number: of all images, for ImageNet-C of one corruption at one severity.

    ``per_class`` is their number per class where it is the same for all. ``folders`` are tried in this order below
    the data root, ``""`` being the data root itself; letter case does not matter, and neither does ``_`` for ``-``.
    ``archives`` are how the downloads' names begin; ``source`` says where they are.
    """

    name: str
    title: str
    images: int
    classes: int
    per_class: int | None
    folders: tuple[str, ...]
    archives: tuple[str, ...]
    source: str


def _join(home: str, tail: str) -> str:
    return "/".join(part for part in (home, tail) if part)


def _nested(outer: tuple[str, ...], inner: tuple[str, ...]) -> tuple[str, ...]:
    return (*inner, *(f"{folder}/{name}" for folder in outer for name in inner), *outer)


_IMAGENET_FOLDERS = tuple(_join(home, tail) for home in _HOMES for tail in _VAL)
TRAIN_FOLDERS = tuple(_join(home, tail) for home in _HOMES for tail in _TRAIN)
_SETS = (
    ImageNetSet(
        "imagenet",
        "ImageNet-1K validation",
        50_000,
        1000,
        50,
        _IMAGENET_FOLDERS,
        ("ilsvrc2012-img-val",),
        "https://image-net.org (ILSVRC2012_img_val.tar)",
    ),
    ImageNetSet(
        "imagenet-v2",
        "ImageNet-V2 matched-frequency",
        10_000,
        1000,
        10,
        _nested(("imagenetv2", "imagenet-v2"), _V2),
        ("imagenetv2-matched-frequency", "imagenet-matched-frequency"),
        "https://huggingface.co/datasets/vaishaal/ImageNetV2 (imagenetv2-matched-frequency.tar.gz)",
    ),
    ImageNetSet(
        "imagenet-real",
        "ImageNet-ReaL",
        46_837,
        1000,
        None,
        _IMAGENET_FOLDERS,
        (),
        "https://github.com/google-research/reassessed-imagenet (real.json; timm ships the same)",
    ),
    ImageNetSet(
        "imagenet-a",
        "ImageNet-A",
        7_500,
        200,
        None,
        ("imagenet-a", "imagenet-a/imagenet-a", "imagenet-adversarial/imagenet-a", "imagenet-adversarial"),
        ("imagenet-a.",),
        "https://github.com/hendrycks/natural-adv-examples (imagenet-a.tar)",
    ),
    ImageNetSet(
        "imagenet-r",
        "ImageNet-R",
        30_000,
        200,
        None,
        ("imagenet-r", "imagenet-r/imagenet-r", "imagenet-rendition/imagenet-r", "imagenet-rendition"),
        ("imagenet-r.",),
        "https://github.com/hendrycks/imagenet-r (imagenet-r.tar)",
    ),
    ImageNetSet(
        "imagenet-sketch",
        "ImageNet-Sketch",
        50_889,
        1000,
        None,
        ("sketch", "imagenet-sketch/sketch", "imagenet-sketch/images", "imagenet-sketch"),
        ("imagenet-sketch.", "sketch."),
        "https://github.com/HaohanWang/ImageNet-Sketch (ImageNet-Sketch.zip)",
    ),
    ImageNetSet(
        "imagenet-c",
        "ImageNet-C",
        50_000,
        1000,
        50,
        ("imagenet-c", "imagenetc", ""),
        (),
        "https://zenodo.org/records/2235448 (noise.tar, blur.tar, weather.tar, digital.tar)",
    ),
)
IMAGENET_SETS: Mapping[str, ImageNetSet] = {entry.name: entry for entry in _SETS}
TRAINING = ImageNetSet(
    "imagenet-train",
    "ImageNet-1K training",
    1_281_167,
    1000,
    None,
    TRAIN_FOLDERS,
    ("ilsvrc2012-img-train",),
    "https://image-net.org (ILSVRC2012_img_train.tar)",
)
"""The images that neighbours and linear probes learn from; nothing is evaluated on them."""


def imagenet_set(name: str) -> ImageNetSet:
    """The record of a set.

    Raises:
        DataError: no such set.
    """
    if name not in IMAGENET_SETS:
        raise DataError(
            f"There is no set {name!r}; valid: {', '.join(IMAGENET_SETS)}.{near_misses(name, IMAGENET_SETS)}"
        )
    return IMAGENET_SETS[name]


def locate(name: str, data_root: Path) -> list[Path]:
    """The folders below ``data_root`` that hold the set, in the order of preference; empty if there is none.

    Only names and the first level of a folder are looked at. ``imagenet-real`` lies where ``imagenet`` does.

    Raises:
        DataError: no such set, or ``data_root`` is no folder.
    """
    entry = imagenet_set(name)
    if not data_root.is_dir():
        raise DataError(f"There is no folder {data_root}; give the one that the sets lie in as the data root.")
    tree = _Tree()
    own_names = _VAL if entry.folders is _IMAGENET_FOLDERS else entry.folders
    own = spelling(data_root.resolve().name)
    found: list[Path] = []
    for folder in dict.fromkeys((*entry.folders, "")):
        for path in tree.below(data_root, folder):
            # A folder of another name is taken only for what its files say beyond doubt.
            named = folder not in _HOMES or (not folder and own in own_names)
            if path not in found and _holds(entry.name, path, sure=named):
                found.append(path)
    return found


def missing(name: str, data_root: Path) -> DataError:
    """The error that says where a set was looked for, and what to do."""
    if name == "imagenet-real":
        return DataError(f"ReaL is asked of the validation images. {missing('imagenet', data_root)}")
    entry = imagenet_set(name)
    names = [folder for folder in entry.folders if folder not in _HOMES]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    hint = ""
    if archive := _archive(entry, data_root):
        hint = f" {archive} is there, but has to be unpacked."
    elif candidates := folders_below(data_root, names):
        hint = f" {candidates[0]} is there, but holds no class folders."
    return DataError(
        f"{entry.title} was not found under {data_root}; looked for {shown}.{hint} "
        f"{PAGE} shows the layouts; it comes from {entry.source}."
    )


def folders_below(data_root: Path, folders: Iterable[str]) -> list[Path]:
    """Which of ``folders``, spelt as in ``ImageNetSet.folders``, exist, in their order."""
    tree = _Tree()
    return [path for folder in folders for path in tree.below(data_root, folder)]


def spelling(name: str) -> str:
    """A folder's name as it is compared: letter case and the underscore do not matter."""
    return name.lower().replace("_", "-")


class _Tree:
    """Finds folders whatever the letter case of their names, and reads each parent once."""

    def __init__(self) -> None:
        self._read: dict[Path, list[str]] = {}

    def below(self, parent: Path, relative: str) -> Iterator[Path]:
        if not relative:
            yield parent
            return
        first, _, rest = relative.partition("/")
        if parent not in self._read:
            self._read[parent] = sorted(entry.name for entry in entries(parent) if entry.is_dir())
        for name in self._read[parent]:
            if spelling(name) == first:
                yield from self.below(parent / name, rest)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, in no particular order; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def _holds(name: str, path: Path, *, sure: bool) -> bool:
    """Whether a folder looks like the set. Where its name does not say so (not ``sure``), its files have to."""
    found = entries(path)
    folders = [entry.name for entry in found if entry.is_dir()]
    if name == "imagenet-c":
        return holds_corruptions(path)
    if name in ("imagenet", "imagenet-real"):
        if any(entry.name.startswith(VAL_PREFIX) and entry.is_file() for entry in found):
            return True
        classes = sorted(folder for folder in folders if WNID.fullmatch(folder))
        return bool(classes) and (sure or any(e.name.startswith(VAL_PREFIX) for e in entries(path / classes[0])))
    numbered = name == "imagenet-v2"
    return sure and any(WNID.fullmatch(folder) or (numbered and is_number(folder)) for folder in folders)


def holds_corruptions(path: Path) -> bool:
    """Whether a folder has one of the 15 corruptions in it, as a folder or in an archive."""
    return any(
        (path / group / corruption).is_dir() or (path / corruption).is_dir() or (path / f"{archive}.tar").is_file()
        for group, corruptions in GROUPS.items()
        for corruption in corruptions
        for archive in (group, corruption)
    )


def is_number(name: str) -> bool:
    """Whether a folder's name is a number; superscripts and the like are not."""
    return name.isascii() and name.isdigit()


def _archive(entry: ImageNetSet, data_root: Path) -> Path | None:
    """A download of the set that was not unpacked, in the data root or in one of the folders in it."""
    homes = [data_root, *(data_root / found.name for found in entries(data_root) if found.is_dir())]
    packed = (".tar", ".tar.gz", ".tgz", ".zip")
    for home in homes:
        for found in sorted(found.name for found in entries(home)):
            if found.endswith(packed) and spelling(found).startswith(entry.archives or ("\0",)):
                return home / found
    return None
