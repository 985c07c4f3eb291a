"""Labelled images by number: folders, tars, webdataset shards, Hugging Face sets.

>>> source = open_images("folder:imagenet", split="train")
>>> data, label = source.read(0)

What a path means (class folders, a tar per class, tars in a tar) is timm's reading of it (``timm.data.readers``).
"""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.data.shards import Shards
from digpt.data.source import (
    IMAGE_EXTENSIONS,
    Names,
    OpenFiles,
    SampleError,
    file_size,
    read_file,
    refuse_remote,
    seeded_choice,
)
from digpt.data.splits import shard_pattern, spellings, split_path
from digpt.errors import DataError, MissingDependencyError, OtherClassesError, near_misses

KINDS = ("folder", "tar", "wds", "hfds")
_INFO_BYTES = 10 * 2**30  # of tars, from where timm remembers what it found in them


class ImageSource(ABC):
    """Images as file bytes, with labels; see ``digpt.data.source.Source`` for the attributes.

    ``classes`` are the labels' names, or None where the data do not tell; ``labels`` int64 ``[N]``, or None where only
    reading a sample tells.
    """

    name: str
    classes: tuple[str, ...] | None = None
    labels: NDArray[np.int64] | None = None
    counts: NDArray[np.int64] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def read(self, index: int) -> tuple[bytes, int]:
        """File bytes and label of one image.

        Raises:
            SampleError: this image cannot be read; others may.
        """

    def label(self, index: int) -> int:
        """Label of one image; errors as `read`."""
        return self.read(index)[1] if self.labels is None else int(self.labels[index])

    @abstractmethod
    def sample_name(self, index: int) -> str:
        """What a message calls one image."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 of the listing: names, labels and sizes, not pixels."""

    def neighbour(self, index: int, attempt: int) -> int:
        """The image that stands in for ``index`` after ``attempt`` unusable ones."""
        return (index + attempt) % len(self)


class _Listed(ImageSource):
    """What folders and tars have in common: names (relative to the root), labels and sizes, listed when opened.

    ``listing`` is ``(name, class, bytes)`` of every image.
    """

    def __init__(self, name: str, listing: Iterable[tuple[str, str, int]], classes: Sequence[str] | None) -> None:
        names, class_names, sizes = zip(*listing, strict=True)
        known = sorted(set(class_names), key=_natural) if classes is None else list(classes)
        number = {class_name: label for label, class_name in enumerate(known)}
        found = set(class_names)
        unknown = sorted(found - set(known))
        if unknown:
            raise OtherClassesError(
                f"{name} has the class {unknown[0]!r} ({len(unknown)} such), which is not among the {len(known):,} "
                f"classes known.{near_misses(unknown[0], known)}"
            )
        twice = sorted(word for word, times in Counter(known).items() if times > 1 and word in found)
        if twice:
            raise DataError(f"{name} has the class {twice[0]!r}, which stands for several classes of those known.")
        self.name, self.names = name, Names(names)
        self.classes = None if known == [""] else tuple(known)  # images that lie in no folder have no classes
        self.labels = np.array([number[class_name] for class_name in class_names], dtype=np.int64)
        self.sizes = np.array(sizes, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def sample_name(self, index: int) -> str:
        return str(self.names[index])

    @property
    def fingerprint(self) -> str:
        assert self.labels is not None
        return _digest(self.classes, self.names.text, self.names.ends, self.labels, self.sizes)


class FolderImages(_Listed):
    """``root/<class>/*.jpg``; the class of an image is the name of the folder it lies in."""

    def __init__(self, root: Path, classes: Sequence[str] | None = None) -> None:
        from timm.data.readers.reader_image_folder import find_images_and_targets

        found, class_to_idx = find_images_and_targets(str(root), types=IMAGE_EXTENSIONS, sort=False)
        if not found:
            raise DataError(f"{root} holds no images ({', '.join(IMAGE_EXTENSIONS)}), nor do the folders in it.")
        class_names = {label: name for name, label in class_to_idx.items()}
        prefix = len(str(root).rstrip("/")) + 1
        # Sizes folder by folder, as file systems like it; then sorted by ourselves: timm's order leaves "1.jpg" and
        # "01.jpg" as the file system lists them.
        listing = [(path[prefix:], class_names[label], file_size(path)) for path, label in found]
        super().__init__(str(root), sorted(listing), classes)
        self.root = root

    def read(self, index: int) -> tuple[bytes, int]:
        assert self.labels is not None
        return read_file(self.root / self.names[index]), int(self.labels[index])


class TarImages(_Listed):
    """A folder of one tar per class (as ImageNet-21K comes), a tar of class folders, or a tar of tars."""

    def __init__(self, root: Path, classes: Sequence[str] | None = None) -> None:
        rows = sorted(_tar_members(root))
        super().__init__(
            str(root), [(f"{tar}:{path}" if tar else path, name, size) for tar, path, name, _, size in rows], classes
        )
        tars = sorted({row[0] for row in rows})
        self.paths = [root / tar if tar else root for tar in tars]
        number = {tar: position for position, tar in enumerate(tars)}
        self.tars = np.array([number[row[0]] for row in rows], dtype=np.int32)
        self.spans = np.array([row[3:] for row in rows], dtype=np.int64)
        self.files = OpenFiles()

    def read(self, index: int) -> tuple[bytes, int]:
        assert self.labels is not None
        offset, size = map(int, self.spans[index])
        data = self.files.read(self.paths[self.tars[index]], offset, size)
        if len(data) < size:
            raise SampleError("truncated", f"{self.names[index]} is cut off.")
        return data, int(self.labels[index])


def _tar_members(root: Path) -> list[tuple[str, str, str, int, int]]:
    """``(tar, path in it, class, offset, size)`` of every image, as timm finds them."""
    from timm.data.readers.reader_image_in_tar import CACHE_FILENAME_SUFFIX, extract_tarinfos

    tars = [root] if root.is_file() else list(root.glob("*.tar"))
    folder = root.parent if root.is_file() else root
    # timm keeps its list beside the data; where that is read-only it would scan everything, and then fail.
    remembered = folder / f"_{root.stem if root.is_file() else root.name}{CACHE_FILENAME_SUFFIX}"
    large = sum(path.stat().st_size for path in tars) > _INFO_BYTES
    remember = remembered.is_file() or (large and os.access(folder, os.W_OK))
    if not tars:
        raise DataError(f"{root} holds no .tar files.")
    scan = partial(extract_tarinfos, str(root), extensions=IMAGE_EXTENSIONS, sort=False)
    try:
        try:
            samples, targets, class_to_idx, _ = scan(cache_tarinfo=remember)
        except Exception:
            if not remembered.is_file():
                raise
            # The list was cut short, is just being written by another process, or is of other tars: read these.
            with suppress(OSError):
                remembered.unlink()
            samples, targets, class_to_idx, _ = scan(cache_tarinfo=False)
    except ValueError as error:
        raise DataError(f"{root} holds no images ({', '.join(IMAGE_EXTENSIONS)}) that timm finds ({error}).") from None
    except Exception as error:  # tarfile's errors
        raise DataError(f"{root} cannot be read as tars: {error}") from None
    class_names = {label: name for name, label in class_to_idx.items()}
    rows = []
    for (member, tar, child), label in zip(samples, targets, strict=True):
        start = member.offset_data + (child.offset_data if child is not None else 0)
        path = f"{child.name}:{member.name}" if child is not None else member.name
        rows.append((tar or "", path, class_names[int(label)], start, member.size))
    return rows


class ShardImages(ImageSource):
    """Webdataset shards of images with ``.cls`` files (a number); a ``classes.txt`` beside them gives the names."""

    def __init__(self, pattern: str, cache: Path | None = None) -> None:
        self.name, self.shards = pattern, Shards.open(pattern, cache)
        self.counts = self.shards.counts
        names = self.shards.paths[0].parent / "classes.txt"
        if names.is_file():
            self.classes = tuple(names.read_text(encoding="utf-8").splitlines())

    def __len__(self) -> int:
        return len(self.shards)

    def sample_name(self, index: int) -> str:
        return self.shards.sample_name(index)

    def neighbour(self, index: int, attempt: int) -> int:
        return self.shards.neighbour(index, attempt)

    @property
    def fingerprint(self) -> str:
        return self.shards.fingerprint

    def label(self, index: int) -> int:
        return self._number(index, self.shards.read(index, (".cls",)))  # without the image

    def read(self, index: int) -> tuple[bytes, int]:
        members = self.shards.read(index, (*IMAGE_EXTENSIONS, ".cls"))
        number = self._number(index, members)
        images = [data for extension, data in members.items() if extension != ".cls"]
        if not images:
            raise SampleError("no image", f"{self.sample_name(index)} has no image.")
        return images[0], number

    def _number(self, index: int, members: dict[str, bytes]) -> int:
        text = members.get(".cls", b"").strip()
        if not text.isdigit():
            raise SampleError("no label", f"{self.sample_name(index)} has no .cls file with a number.")
        return int(text)


class HuggingFaceImages(ImageSource):
    """A set of the ``datasets`` library: a name of its hub, a folder that it wrote, or one that it can read."""

    def __init__(self, name: str, split: str | None, whole: bool = False) -> None:
        try:
            import datasets
        except ImportError:
            raise MissingDependencyError(
                "hfds: needs the package datasets: pip install 'digpt[data]' (or pip install datasets)."
            ) from None
        found = _hf_split(datasets, name, split, whole)
        image = [key for key, feature in found.features.items() if isinstance(feature, datasets.Image)]
        label = [key for key, feature in found.features.items() if isinstance(feature, datasets.ClassLabel)]
        label = label or [key for key in ("label", "labels", "fine_label") if key in found.features]
        if len(image) != 1 or not label:
            raise DataError(f"{name} needs one image column and a label column; it has {', '.join(found.features)}.")
        self.name, self.image = name, image[0]
        self.classes = tuple(getattr(found.features[label[0]], "names", None) or ()) or None
        self.labels = np.asarray(found.with_format("numpy")[label[0]][:], dtype=np.int64)
        # Bytes, not pixels: every image passes the same decoder, wherever it comes from.
        self.rows = found.cast_column(self.image, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self.rows)

    def sample_name(self, index: int) -> str:
        return f"{self.name}, row {index}"

    @property
    def fingerprint(self) -> str:
        assert self.labels is not None
        return _digest((self.name, *(self.classes or ())), self.labels)

    def read(self, index: int) -> tuple[bytes, int]:
        assert self.labels is not None
        image = self.rows[int(index)][self.image]
        if image is None or not (image["bytes"] or image["path"]):
            raise SampleError("no image", f"{self.sample_name(index)} has no image.")
        return image["bytes"] or read_file(Path(image["path"])), int(self.labels[index])


def _hf_split(datasets: Any, name: str, split: str | None, whole: bool) -> Any:
    """One split of a set; asked for none, the only one or ``train``."""
    folder = Path(name)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name)
    except Exception as error:  # the library raises nearly everything: its own errors, OSError, those of HTTP clients
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"The datasets library cannot open {name}: {reason}") from None
    if not isinstance(found, dict):
        if not whole and split not in (None, *spellings("train")):
            raise DataError(f"{name} has no splits, so it cannot give {split}.")
        return found
    wanted = next((word for word in spellings(split or "train") if word in found), None)
    if wanted is None and (split is None or whole) and len(found) == 1:
        wanted = next(iter(found))
    if wanted is None:
        raise DataError(f"{name} has no split {split or 'train'}; it has {', '.join(found)}.")
    return found[wanted]


class SomeImages(ImageSource):
    """The images ``chosen`` (int64 ``[N]``) of another source."""

    def __init__(self, source: ImageSource, chosen: NDArray[np.int64]) -> None:
        self.source, self.chosen = source, chosen
        self.name, self.classes = f"{len(chosen)} of {source.name}", source.classes
        self.labels = None if source.labels is None else source.labels[chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def sample_name(self, index: int) -> str:
        return self.source.sample_name(int(self.chosen[index]))

    @property
    def fingerprint(self) -> str:
        return _digest((self.source.fingerprint,), self.chosen)

    def read(self, index: int) -> tuple[bytes, int]:
        return self.source.read(int(self.chosen[index]))


def open_images(
    spec: str | Path,
    split: str | None = None,
    *,
    whole: bool = False,
    limit: int | None = None,
    classes: Sequence[str] | None = None,
    cache: Path | None = None,
) -> ImageSource:
    """Open ``folder:DIR``, ``tar:FILE_OR_DIR``, ``wds:SHARDS``, ``hfds:NAME_OR_DIR``, or a bare path.

    Args:
        spec: ``{split}`` in it is replaced by ``split``.
        split: ``train`` or ``val``: a folder (or tar) of that name in the path, or one of timm's other words for it.
            A path without such folders is itself ``train``.
        whole: such a path is the split asked for, whichever; for data named for evaluation alone.
        limit: a seeded choice of so many images, in order.
        classes: names that labels count (those of the training data), so that a split without some class has the same.
        cache: where to remember what shards hold; a folder that can be written, such as the run's.

    Raises:
        DataError: an unknown kind, a path that is missing or holds no images, a split or class that does not exist.
        MissingDependencyError: ``hfds:`` without the package.
    """
    kind, path = _kind(str(spec))
    source: ImageSource
    if kind == "hfds":
        source = HuggingFaceImages(path, split, whole)
    elif kind == "wds":
        source = ShardImages(shard_pattern(path, split, whole), cache)
    else:
        refuse_remote(path)
        root = split_path(path, split, whole)
        source = FolderImages(root, classes) if kind == "folder" else TarImages(root, classes)
    if classes is not None and source.classes is not None and tuple(classes) != source.classes:
        raise DataError(f"{source.name} has other classes, or in another order, than the training data.")
    if limit is not None and limit < len(source):
        source = SomeImages(source, seeded_choice(len(source), limit))
    return source


def _kind(spec: str) -> tuple[str, str]:
    kind, colon, path = spec.partition(":")
    if colon and kind in KINDS:
        return kind, path
    if Path(spec).exists() or "{split}" in spec:
        return ("tar" if spec.endswith(".tar") else "folder"), spec
    if colon and not spec.startswith((".", "/")):
        raise DataError(
            f"Unknown kind of data {kind!r} in {spec!r}; valid: {', '.join(f'{known}:' for known in KINDS)}."
            f"{near_misses(kind, KINDS)}"
        )
    raise DataError(f"There is no {spec}: give a folder, or {', '.join(f'{known}:...' for known in KINDS)}.")


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """timm's order of class names (numbers by value, letters without case), with ties decided by the name itself."""
    parts = [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name.lower())]
    return parts, name


def _digest(names: Sequence[str] | None, *arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256("\n".join(names or ()).encode("utf-8", "surrogateescape"))
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
