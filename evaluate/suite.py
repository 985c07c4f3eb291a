"""What an evaluation consists of: cells of images that a model is run on, and views that ask something of a cell.

One cell may serve several views: ImageNet's validation images answer IN-1K, ReaL, and the 200 classes of A and of R.
Shapes: N images of a cell, n images of a view, C classes of the suite.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from digpt.errors import ConfigError

PREVIEW_OF = 10  # a preview takes one image of so many


class Images(Protocol):
    """Where a cell's images come from; `digpt.data.images.ImageSource` is one."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes | NDArray[np.uint8], int]:
        """File bytes (or pixels, uint8 ``[H,W,3]``) and label."""


@dataclass(frozen=True)
class Cell:
    """Images that a model is run on, once.

    ``id`` is ``dataset/split`` (``imagenet-c/fog/3``). ``rows`` are the images of ``source`` that belong to it and
    ``keys`` their names ``[N]``: one picture has one key, whatever was done to it. ``corruption`` is made on the fly;
    ``cropped`` images have the resolution that was corrupted already, so that they are cropped and never shrunk first.
    ``logits`` and ``embeddings`` say what is kept of the model's answer.
    """

    id: str
    source: Images
    rows: NDArray[np.int64]
    keys: tuple[str, ...]
    fingerprint: str
    corruption: tuple[str, int] | None = None
    jpeg: bool = False
    cropped: bool = False
    seed: int = 0
    logits: bool = True
    embeddings: bool = False

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class View:
    """A question of classification: is the label of each image found among the classes?

    ``rows`` ``[n]`` are rows of the cell, ``labels`` ``[n]`` count the suite's classes. With ``classes`` ``[K]`` the
    scores are restricted to these before any maximum is taken. With ``answers`` several labels of an image are right
    (``labels`` then holds the first). Images of one of ``groups`` ``[n]`` are right or wrong together, so intervals
    resample groups. ``corruption`` marks a cell of a sweep, whose errors are also averaged over severities.
    """

    dataset: str
    split: str
    cell: str
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: NDArray[np.int64] | None = None
    groups: NDArray[np.int64] | None = None
    answers: tuple[tuple[int, ...], ...] | None = None
    corruption: tuple[str, int] | None = None
    clean: str = ""  # the cell of the same images without corruption, for the relative error

    @property
    def id(self) -> str:
        return f"{self.dataset}/{self.split}"


@dataclass(frozen=True)
class ProbeView(View):
    """The same question to a linear head that was trained on frozen features: its metrics are named ``probe_``."""


@dataclass(frozen=True)
class KnnView:
    """A question to the neighbours: which label have the nearest images of ``reference``? By embeddings."""

    dataset: str
    split: str
    cell: str
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    reference: str  # a cell
    reference_rows: NDArray[np.int64]
    reference_labels: NDArray[np.int64]
    ks: tuple[int, ...]
    temperature: float
    n_classes: int
    groups: NDArray[np.int64] | None = None

    @property
    def id(self) -> str:
        return f"{self.dataset}/{self.split}"


@dataclass(frozen=True)
class MaskView:
    """A question of segmentation: which class has each pixel of a cell's images? All of them are asked."""

    dataset: str
    split: str
    cell: str

    @property
    def id(self) -> str:
        return f"{self.dataset}/{self.split}"


AnyView: TypeAlias = View | KnnView | MaskView  # a ProbeView is a View


@dataclass(frozen=True)
class Suite:
    """Everything that is asked of one model.

    ``class_names`` are what a text tower is asked with, ``class_ids`` what a linear head may call its outputs instead
    (WordNet ids), ``class_titles`` what a library calls them all, in their order. ``protocol`` is the block of the
    results document, without fingerprint.
    """

    name: str
    class_names: tuple[str, ...]
    cells: tuple[Cell, ...]
    views: tuple[AnyView, ...]
    protocol: Mapping[str, Any]
    class_ids: tuple[str, ...] = ()
    neighbour_names: tuple[str, ...] = ()  # of the labels of neighbours, where these are not the classes
    class_titles: tuple[str, ...] = ()
    templates: tuple[str, ...] | None = None  # None: the model's own
    notes: tuple[str, ...] = ()  # what was left out, and why, in words
    shard: int | None = None  # images whose answers one file of the store holds; None for its own number


@dataclass(frozen=True)
class Subset:
    """Which images are asked: all, ``limit`` of each split, or a stratified tenth of each split (``preview``).

    An image is chosen by a hash of the seed and its key, so that a smaller limit is part of a larger one, the order of
    the files changes nothing, and all corruptions of a set take the same images. A preview has a tenth of the images
    in all, and of each class a tenth rounded down or up; of a class it takes those that a limit would take first.
    """

    limit: int | None = None
    preview: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit} must be at least 1 image per split.")
        if self.preview and self.limit is not None:
            raise ConfigError(
                "--limit and --preview exclude each other: one is a number of images, one a tenth of them."
            )

    def choose(self, keys: Sequence[str], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the images that are asked, rising; at least one."""
        if self.limit is None and not self.preview:
            return np.arange(len(keys), dtype=np.int64)
        order = np.argsort([_draw(self.seed, key) for key in keys], kind="stable")
        if self.limit is not None:
            return np.sort(order[: self.limit]).astype(np.int64)
        ranked = labels[order]
        shares = self._shares(*np.unique(labels, return_counts=True))
        chosen = [order[ranked == label][:share] for label, share in shares.items()]
        return np.sort(np.concatenate(chosen) if any(shares.values()) else order[:1]).astype(np.int64)

    def _shares(self, labels: NDArray[np.int64], counts: NDArray[np.int64]) -> dict[int, int]:
        """How many images of each class a preview takes.

        The classes are laid end to end in the order of a hash, and of this line every tenth image counts for the class
        that it falls into. So each class has its tenth on average; giving what rounding leaves to the largest
        remainders instead would never ask classes of four images where others have five.
        """
        line = np.argsort([_draw(self.seed, f"class {label}") for label in labels], kind="stable")
        ends = (np.cumsum(counts[line]) + PREVIEW_OF // 2) // PREVIEW_OF
        return dict(zip(labels[line].tolist(), np.diff(ends, prepend=0).tolist(), strict=True))

    def describe(self) -> dict[str, Any]:
        """JSON values for the protocol."""
        return {"limit": self.limit, "preview": 1 / PREVIEW_OF if self.preview else None, "seed": self.seed}


def _draw(seed: int, key: str) -> int:
    """A 63-bit number that depends on its arguments alone."""
    return int.from_bytes(hashlib.sha256(f"subset:{seed}:{key}".encode()).digest()[:8], "big") >> 1


def fingerprint_of(source_fingerprint: str, keys: Sequence[str]) -> str:
    """sha256 of a listing and of the keys chosen from it."""
    digest = hashlib.sha256(source_fingerprint.encode())
    digest.update("\n".join(keys).encode())
    return "sha256:" + digest.hexdigest()


@dataclass
class SetBlock:
    """Collects what the protocol says of each set; ``lines`` is its JSON."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def add(self, dataset: str, split: str, n: int, fingerprint: str, **more: Any) -> None:
        self.lines.append({"dataset": dataset, "split": split, "images": n, "fingerprint": fingerprint, **more})
