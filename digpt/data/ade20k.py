"""Images with masks for semantic segmentation: ADE20K, folders of image and mask files, and how both are resized.

>>> source = open_masks("ade20k:data/ADEChallengeData2016", "val")
>>> image, labels = source.pixels(0)

Labels are uint8: 0 to ``len(classes) - 1``, and ``IGNORED`` (255) where a pixel counts neither in a loss nor in a
metric. Imports without torch. Layouts: ``docs/segmentation-data.md``.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digpt.data.source import IMAGE_EXTENSIONS, Names, SampleError, read_file, refuse_remote, seeded_choice
from digpt.data.splits import split_path
from digpt.decode import DecodeLimits, decode, open_image
from digpt.errors import ConfigError, DataError, InputError, near_misses

KINDS = ("ade20k", "masks")
IGNORED = 255
ADE20K_FOLDER = "ADEChallengeData2016"
ADE20K_COUNTS = {"train": 20_210, "val": 2_000}
# The first word of each row of objectInfo150.txt (github.com/CSAILVision/sceneparsing), in the order of the numbers.
_ADE20K_NAMES = (
    "wall,building,sky,floor,tree,ceiling,road,bed,windowpane,grass,cabinet,sidewalk,person,earth,door,table,mountain,"
    "plant,curtain,chair,car,water,painting,sofa,shelf,house,sea,mirror,rug,field,armchair,seat,fence,desk,rock,"
    "wardrobe,lamp,bathtub,railing,cushion,base,box,column,signboard,chest of drawers,counter,sand,sink,skyscraper,"
    "fireplace,refrigerator,grandstand,path,stairs,runway,case,pool table,pillow,screen door,stairway,river,bridge,"
    "bookcase,blind,coffee table,toilet,flower,book,hill,bench,countertop,stove,palm,kitchen island,computer,"
    "swivel chair,boat,bar,arcade machine,hovel,bus,towel,light,truck,tower,chandelier,awning,streetlight,booth,"
    "television,airplane,dirt track,apparel,pole,land,bannister,escalator,ottoman,bottle,buffet,poster,stage,van,ship,"
    "fountain,conveyer belt,canopy,washer,plaything,swimming pool,stool,barrel,basket,waterfall,tent,bag,minibike,"
    "cradle,oven,ball,food,step,tank,trade name,microwave,pot,animal,bicycle,lake,dishwasher,screen,blanket,sculpture,"
    "hood,sconce,vase,traffic light,tray,ashcan,fan,pier,crt screen,plate,monitor,bulletin board,shower,radiator,glass,"
    "clock,flag"
)
ADE20K_CLASSES = tuple(_ADE20K_NAMES.split(","))
_SHOWN = 3  # file names in a message
_MAX_CLASSES = 255  # of 256 values one is IGNORED


class MaskSource(ABC):
    """Images and masks as file bytes; see ``digpt.data.source.Source`` for the attributes it shares with others.

    Attributes:
        classes: names of the labels 0, 1, ...; at most 255.
        reduce_zero: whether 0 in the mask files means "not labelled" and the classes count from 1, as in ADE20K.
    """

    name: str
    classes: tuple[str, ...]
    reduce_zero: bool = False
    counts: NDArray[np.int64] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def read(self, index: int) -> tuple[bytes, bytes]:
        """File bytes of one image and of its mask, as they are stored.

        Raises:
            SampleError: one of the two cannot be read; other samples may.
        """

    @abstractmethod
    def sample_name(self, index: int) -> str:
        """What a message calls one sample."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 of the listing, not of the pixels."""

    def neighbour(self, index: int, attempt: int) -> int:
        """The sample that stands in for ``index`` after ``attempt`` unusable ones."""
        return (index + attempt) % len(self)

    def pixels(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """One sample decoded: RGB uint8 ``[H,W,3]`` and labels uint8 ``[H,W]``, with the zero rule applied.

        Raises:
            SampleError: undecodable, image and mask of different sizes, or values that are no class.
        """
        data, mask = self.read(index)
        name = self.sample_name(index)
        try:
            image = np.asarray(decode(data))
        except InputError as error:
            raise SampleError("undecodable", f"{name}: {error}") from None
        labels = self.labels(mask, name)
        if image.shape[:2] != labels.shape:
            raise SampleError(
                "sizes differ",
                f"{name}: the image has {_size(image)} pixels (as its EXIF orientation turns it) and the mask "
                f"{_size(labels)}; resize the mask, without interpolation, or replace the pair.",
            )
        return image, labels

    def labels(self, data: bytes, name: str) -> NDArray[np.uint8]:
        """A mask file's bytes to labels, uint8 ``[H,W]``: the one place where the zero rule is applied.

        Raises:
            SampleError: no mask, or values that are no class; ``name`` says which sample.
        """
        try:
            mask = decode_mask(data)
        except SampleError as error:
            raise SampleError(error.kind, f"{name}: {error}") from None
        labels = reduce_zero_label(mask) if self.reduce_zero else mask
        valid = np.zeros(256, dtype=bool)
        valid[: len(self.classes)] = valid[IGNORED] = True
        wrong = ~valid[labels]
        if wrong.any():
            last = len(self.classes) - (0 if self.reduce_zero else 1)
            raise SampleError(
                "unknown class",
                f"{name}: the mask has the value {mask[wrong].max()}, but the {len(self.classes)} classes end at "
                f"{last} and only {IGNORED} is ignored; correct the mask or the list of classes.",
            )
        return labels


def decode_mask(data: bytes) -> NDArray[np.uint8]:
    """A PNG of class numbers to uint8 ``[H,W]``: the stored grey values or palette indices, never their colours.

    Raises:
        SampleError: no PNG, damaged, or of another kind than 8-bit grey and palette.
    """
    try:
        image = open_image(data, DecodeLimits())
    except InputError as error:
        raise SampleError("undecodable mask", f"the mask cannot be decoded: {error}") from None
    if image.format != "PNG":
        raise SampleError("no PNG mask", f"the mask is a {image.format} file; masks have to be PNG, which is exact.")
    depth, color = data[24], data[25]  # of IHDR, always the first chunk: Pillow stretches grey of 2 and 4 bits to 255
    if not (color == 3 or (color == 0 and depth == 8)):
        raise SampleError(
            "no index mask",
            f"the mask is a PNG of {depth} bits and colour type {color} (mode {image.mode}), not of class numbers; "
            "store them as 8-bit grey (mode L) or with a palette (mode P).",
        )
    return np.array(image, dtype=np.uint8)


def reduce_zero_label(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """ADE20K's rule: 0 ("other objects") becomes ignored, every class number one less; 255 stays ignored."""
    lower = np.arange(-1, IGNORED, dtype=np.int16)
    lower[[0, IGNORED]] = IGNORED
    return lower.astype(np.uint8)[mask]


class FileMasks(MaskSource):
    """``images/*.jpg`` and ``masks/*.png`` with equal stems, in the order of the stems."""

    def __init__(self, images: Path, masks: Path, classes: Sequence[str], reduce_zero: bool) -> None:
        self.images, self.masks, self.name, self.reduce_zero = images, masks, str(images), reduce_zero
        self.classes = tuple(classes)
        if not 1 <= len(self.classes) <= _MAX_CLASSES:
            raise DataError(f"{masks} has {len(self.classes)} classes; 8-bit masks tell 1 to {_MAX_CLASSES} apart.")
        pictures, indexed = _by_stem(images, IMAGE_EXTENSIONS), _by_stem(masks, (".png",))
        if not pictures:
            raise DataError(f"{images} holds no images ({', '.join(IMAGE_EXTENSIONS)}).")
        _refuse_missing(set(pictures) - set(indexed), masks, "mask")
        _refuse_missing(set(indexed) - set(pictures), images, "image")
        stems = sorted(pictures)
        self.image_names = Names(pictures[stem][0] for stem in stems)
        self.mask_names = Names(indexed[stem][0] for stem in stems)
        self.sizes = np.array([(pictures[stem][1], indexed[stem][1]) for stem in stems], dtype=np.int64)  # bytes, [N,2]

    def __len__(self) -> int:
        return len(self.image_names)

    def sample_name(self, index: int) -> str:
        return str(self.image_names[index])

    @property
    def fingerprint(self) -> str:
        """sha256 of the classes, the zero rule, the files' names and their sizes in bytes; not of the place."""
        digest = hashlib.sha256("\n".join(["digpt-masks-2", str(self.reduce_zero), *self.classes]).encode())
        for names in (self.image_names, self.mask_names):
            digest.update(names.text.tobytes() + names.ends.tobytes())
        digest.update(self.sizes.tobytes())
        return digest.hexdigest()

    def read(self, index: int) -> tuple[bytes, bytes]:
        return read_file(self.images / self.image_names[index]), read_file(self.masks / self.mask_names[index])


def _refuse_missing(stems: set[str], folder: Path, what: str) -> None:
    if stems:
        listed = ", ".join(sorted(stems)[:_SHOWN]) + (", ..." if len(stems) > _SHOWN else "")
        raise DataError(
            f"{folder} has no {what} for {listed} ({len(stems)} such): every image needs a .png mask with the same "
            "file name, and every mask its image."
        )


def _by_stem(folder: Path, extensions: tuple[str, ...]) -> dict[str, tuple[str, int]]:
    """``{stem: (file name, bytes)}`` of the files directly in a folder; hidden ones do not count."""
    found: dict[str, tuple[str, int]] = {}
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in extensions and not path.name.startswith(".") and path.is_file():
                if path.stem in found:
                    raise DataError(f"{folder} holds both {found[path.stem][0]} and {path.name}; remove one of them.")
                found[path.stem] = (path.name, path.stat().st_size)
    except OSError as error:
        raise DataError(f"{folder} cannot be read as a folder ({error.strerror}).") from None
    return found


class SomeMasks(MaskSource):
    """The samples ``chosen`` (int64 ``[N]``) of another source."""

    def __init__(self, source: MaskSource, chosen: NDArray[np.int64]) -> None:
        self.source, self.chosen = source, chosen
        self.name, self.classes, self.reduce_zero = (
            f"{len(chosen)} of {source.name}",
            source.classes,
            source.reduce_zero,
        )

    def __len__(self) -> int:
        return len(self.chosen)

    def sample_name(self, index: int) -> str:
        return self.source.sample_name(int(self.chosen[index]))

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.source.fingerprint.encode() + self.chosen.tobytes()).hexdigest()

    def read(self, index: int) -> tuple[bytes, bytes]:
        return self.source.read(int(self.chosen[index]))

    def pixels(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return self.source.pixels(int(self.chosen[index]))


def open_masks(
    spec: str | Path,
    split: str,
    *,
    reduce_zero: bool | None = None,
    classes: Sequence[str] | None = None,
    whole: bool = False,
    limit: int | None = None,
) -> MaskSource:
    """Open ``ade20k:DIR`` or ``masks:DIR``.

    Args:
        split: ``train`` or ``val``, or another of timm's words for it (ADE20K: ``training``, ``validation``).
        reduce_zero: None for the layout's own rule: on for ``ade20k``, off for ``masks``.
        classes: for ``masks`` without a ``classes.txt``, such as those of the training data.
        whole: ``masks`` without folders for splits are the split asked for, whichever, not only ``train``.
        limit: a seeded choice of so many samples, in order.

    Raises:
        DataError: an unknown kind, missing folders or pairs, or classes that contradict each other.
        ConfigError: ADE20K without its zero rule.
    """
    kind, colon, path = str(spec).partition(":")
    if not colon or kind not in KINDS:
        raise DataError(
            f"Unknown kind of masks in {str(spec)!r}; valid: {', '.join(f'{known}:DIR' for known in KINDS)}."
            f"{near_misses(kind, KINDS)}"
        )
    refuse_remote(path)
    if kind == "ade20k":
        source = _ade20k(Path(path), split, reduce_zero)
    else:
        source = _mask_folders(Path(path), split, bool(reduce_zero), classes, whole)
    if classes is not None and tuple(classes) != source.classes:
        raise DataError(f"{source.name} has other classes, or in another order, than the training data.")
    if limit is not None and limit < len(source):
        return SomeMasks(source, seeded_choice(len(source), limit))
    return source


def _ade20k(root: Path, split: str, reduce_zero: bool | None) -> FileMasks:
    if reduce_zero is False:
        raise ConfigError("ADE20K's masks count from 1 and 0 is no class: leave reduce_zero as it is.")
    if (root / ADE20K_FOLDER).is_dir():
        root = root / ADE20K_FOLDER
    for part in ("images", "annotations"):
        if not (root / part).is_dir():
            raise DataError(
                f"There is no {root / part}: give the folder {ADE20K_FOLDER} that ADEChallengeData2016.zip holds (or "
                "the one above it), with images/{training,validation} and annotations/{training,validation}."
            )
    images, masks = (split_path(str(root / part), split) for part in ("images", "annotations"))
    return FileMasks(images, masks, ADE20K_CLASSES, True)


def _mask_folders(root: Path, split: str, reduce_zero: bool, classes: Sequence[str] | None, whole: bool) -> FileMasks:
    for part in ("images", "masks"):
        if not (root / part).is_dir():
            raise DataError(
                f"There is no {root / part}: masks:DIR needs DIR/images and DIR/masks, each with the splits."
            )
    names = root / "classes.txt"
    if names.is_file():
        known = [line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        known = list(classes) if classes is not None else _numbered(root / "masks", reduce_zero)
    images, masks = (split_path(str(root / part), split, whole) for part in ("images", "masks"))
    return FileMasks(images, masks, known, reduce_zero)


def _numbered(folder: Path, reduce_zero: bool) -> list[str]:
    """``class 0``, ... up to the highest value in any mask of any split: reads them all once."""
    highest = 0
    for path in sorted(folder.rglob("*.png")):
        try:
            mask = decode_mask(read_file(path))
        except SampleError as error:
            raise DataError(f"{path}: {error}") from None
        highest = max(highest, int(mask[mask != IGNORED].max(initial=0)))
    return [f"class {number}" for number in range(highest + (0 if reduce_zero else 1))]


def palette(count: int) -> NDArray[np.uint8]:
    """Colours for ``count`` classes (up to 256), uint8 ``[count,3]``: each as far from the earlier ones as can be.

    A shorter palette is the beginning of a longer one, and the first colour is a dark grey. Distances are Euclidean
    in R, G and B, weighted 2 : 4 : 3 for the eye.
    """
    if not 0 <= count <= 256:
        raise ValueError(f"A palette has up to 256 colours, not {count}.")
    levels = np.array([0, 36, 72, 108, 144, 180, 216, 252])
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    weighted = colors * np.sqrt([2.0, 4.0, 3.0])
    chosen, distance = [int(np.flatnonzero((colors == 36).all(axis=1))[0])], np.full(len(colors), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, ((weighted - weighted[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(distance.argmax()))
    return colors[chosen[:count]].astype(np.uint8)


def keep_ratio_size(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the same ratio whose long side fits the larger number of ``scale`` and whose short side
    the smaller: ``(height, width)``, rounded half up, as ``rescale_size`` of mmcv does it.
    """
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def _taps(size: int, target: int, start: int, stop: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The two source pixels of each target pixel in ``start..stop``, ``[2,T]``, and the weight of the second."""
    at = np.clip((np.arange(start, stop) + 0.5) * (size / target) - 0.5, 0, size - 1)
    low = at.astype(np.intp)
    return np.stack([low, np.minimum(low + 1, size - 1)]), (at - low).astype(np.float32)


def resize_image(
    image: NDArray[np.uint8], height: int, width: int, window: tuple[int, int, int, int] | None = None
) -> NDArray[np.uint8]:
    """Bilinear without anti-aliasing, as OpenCV's ``INTER_LINEAR`` and so as mmsegmentation resizes images.

    Args:
        image: uint8 ``[H,W,3]``.
        window: ``(top, left, bottom, right)`` of the result, when only that part of it is wanted.

    Returns:
        uint8 ``[height,width,3]`` or ``[bottom-top,right-left,3]``.
    """
    top, left, bottom, right = window or (0, 0, height, width)
    rows, down = _taps(image.shape[0], height, top, bottom)
    columns, across = _taps(image.shape[1], width, left, right)
    part = image[rows[0, 0] : rows[1, -1] + 1, columns[0, 0] : columns[1, -1] + 1].astype(np.float32)
    one, other = columns - columns[0, 0]
    part = part[:, one] * (1 - across[:, None]) + part[:, other] * across[:, None]
    one, other = rows - rows[0, 0]
    part = part[one] * (1 - down[:, None, None]) + part[other] * down[:, None, None]
    return np.rint(part).astype(np.uint8)


def resize_labels(
    labels: NDArray[np.uint8], height: int, width: int, window: tuple[int, int, int, int] | None = None
) -> NDArray[np.uint8]:
    """The nearest pixel's label by pixel centres, so aligned with `resize_image`; arguments as there, ``[H,W]``.

    OpenCV's ``INTER_NEAREST`` measures from the pixels' corners, which shifts a mask by up to half a source pixel.
    """
    top, left, bottom, right = window or (0, 0, height, width)
    rows = ((np.arange(top, bottom) + 0.5) * (labels.shape[0] / height)).astype(np.intp)
    columns = ((np.arange(left, right) + 0.5) * (labels.shape[1] / width)).astype(np.intp)
    return labels[rows[:, None], columns]


def _size(pixels: NDArray[np.uint8]) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"
