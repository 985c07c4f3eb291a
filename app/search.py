"""Image search: the pictures of a folder or of the bundled set, embedded once, and the nearest to a picture or words.

>>> index = ImageIndex(Engine.load("bundled"), bundled())
>>> index.nearest(index.engine.class_matrix(["rocket"]))[0].name
'rocket (flat)'
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.examples import STYLES
from digpt.data.emoji import EmojiSet
from digpt.engine import Engine
from digpt.errors import DataError, InputError

BATCH = 256  # pictures between two sentences about the progress: well under a second of the bundled model
NEAREST = 12
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True)
class Pictures:
    """What can be searched: ``read(n)`` gives the file of ``names[n]``, ``code`` is the Python that makes it."""

    title: str
    names: tuple[str, ...]
    read: Callable[[int], bytes]
    code: str


@dataclass(frozen=True)
class Hit:
    """A picture that was found: its name, its cosine with what was asked, and its file's bytes."""

    name: str
    cosine: float
    data: bytes


def bundled(emoji: EmojiSet | None = None) -> Pictures:
    """The drawings of the bundled set in the styles that the bundled model was never trained on.

    Raises:
        DataError: the set is not installed.
    """
    emoji = emoji or EmojiSet.load()
    images = [image for style in STYLES for image in emoji.images(style)]
    names = tuple(f"{emoji.concepts[image.concept].name} ({STYLES[image.style].lower()})" for image in images)
    return Pictures("drawings in styles never trained on", names, lambda n: images[n].encoded, "bundled()")


def folder(directory: str | Path, shown: str | None = None) -> Pictures:
    """The picture files under ``directory``, by their paths in it; ``shown`` stands for it in what is on screen.

    Raises:
        DataError: it is no folder, or there is no picture in it.
    """
    root = Path(directory)
    if not root.is_dir():
        raise DataError(f"{directory} is no folder; --search-dir takes one with pictures in it.")
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not names:
        raise DataError(f"{directory} has no pictures to search; they end in {', '.join(SUFFIXES)}.")
    return Pictures(
        "pictures", tuple(names), lambda n: (root / names[n]).read_bytes(), f"folder({shown or str(root)!r})"
    )


class ImageIndex:
    """Embeddings of pictures, computed when somebody first asks. Every method may be called from any thread.

    Whoever waits for the index computes the next batch of it; what is there already can be searched meanwhile, and is
    kept when somebody leaves halfway.
    """

    def __init__(self, engine: Engine, pictures: Pictures) -> None:
        self.engine, self.pictures = engine, pictures
        self.done = 0
        self._rows: list[np.ndarray] = []  # float32 [b, D] of unit rows
        self._numbers: list[int] = []  # of the pictures that could be read, in the order of the rows
        self._lock = threading.Lock()

    def build(self) -> Iterator[None]:
        """Compute what is missing; yields after every batch."""
        while self.done < len(self.pictures.names):
            with self._lock:
                self._extend()
            yield

    @property
    def unreadable(self) -> int:
        """How many pictures were left out, because they could not be read."""
        return self.done - len(self._numbers)

    def nearest(self, query: np.ndarray, k: int = NEAREST) -> list[Hit]:
        """The ``k`` pictures nearest to a unit row ``[1, D]``, the best first, of those that are indexed.

        An index that nobody has begun is built first.
        """
        if not self.done:
            for _ in self.build():
                pass
        with self._lock:
            rows, numbers = list(self._rows), list(self._numbers)
        if not numbers:
            return []
        cosine = (np.concatenate(rows) @ query[0]).astype(float)
        names, read = self.pictures.names, self.pictures.read
        best = np.argsort(-cosine, kind="stable")[:k].tolist()
        return [Hit(names[numbers[row]], float(cosine[row]), read(numbers[row])) for row in best]

    def progress(self) -> str:
        """What is indexed, in a sentence."""
        total, left_out = len(self.pictures.names), self.unreadable
        if self.done < total:
            return f"Indexing, once: {self.done:,} of {total:,} {self.pictures.title}. The nearest so far:"
        skipped = f" ({left_out:,} could not be read)" if left_out else ""
        return f"The nearest of {total - left_out:,} {self.pictures.title}{skipped}:"

    def _extend(self) -> None:
        numbers = range(self.done, min(self.done + BATCH, len(self.pictures.names)))
        crops: list[np.ndarray] = []
        readable: list[int] = []
        for number in numbers:
            try:
                crops.append(self.engine.decode(self.pictures.read(number)))
                readable.append(number)
            except (InputError, OSError):
                continue  # counted: it is done, and has no row
        if crops:
            self._rows.append(self.engine.embed_images(crops))
            self._numbers += readable
        self.done += len(numbers)
