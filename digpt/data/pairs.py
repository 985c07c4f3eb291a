"""Image-text pairs by number: webdataset shards, as img2dataset writes them, and lists of paths and captions.

>>> source = open_pairs("wds:laion/{00000..00099}.tar")
>>> data, caption = source.read(0)
"""

from __future__ import annotations

import csv
import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digpt.data.shards import Shards
from digpt.data.source import IMAGE_EXTENSIONS, Names, SampleError, read_file, refuse_remote, seeded_choice
from digpt.errors import DataError, near_misses

KINDS = ("wds", "csv")
PATH_COLUMNS = ("filepath", "path", "image", "image_path", "file_name")  # open_clip's own name first
TEXT_COLUMNS = ("title", "caption", "text")


class PairSource(ABC):
    """Images as file bytes, with captions; see ``digpt.data.source.Source`` for the attributes."""

    name: str
    counts: NDArray[np.int64] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of pairs."""

    @abstractmethod
    def read(self, index: int) -> tuple[bytes, str]:
        """File bytes and caption of one pair.

        Raises:
            SampleError: this pair cannot be read, or has no caption; others may.
        """

    @abstractmethod
    def sample_name(self, index: int) -> str:
        """What a message calls one pair."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 of the listing, not of the pixels."""

    @abstractmethod
    def neighbour(self, index: int, attempt: int) -> int:
        """The pair that stands in for ``index`` after ``attempt`` unusable ones."""


class ShardPairs(PairSource):
    """Shards with an image and a ``.txt``, or a ``.json`` with ``caption``, per sample."""

    def __init__(self, pattern: str, cache: Path | None = None) -> None:
        self.name, self.shards = pattern, Shards.open(pattern, cache)
        self.counts = self.shards.counts

    def __len__(self) -> int:
        return len(self.shards)

    def sample_name(self, index: int) -> str:
        return self.shards.sample_name(index)

    def neighbour(self, index: int, attempt: int) -> int:
        return self.shards.neighbour(index, attempt)

    @property
    def fingerprint(self) -> str:
        return self.shards.fingerprint

    def read(self, index: int) -> tuple[bytes, str]:
        members = self.shards.read(index, (*IMAGE_EXTENSIONS, ".txt", ".json"))
        text, described = members.pop(".txt", None), members.pop(".json", None)
        if not members:
            raise SampleError("no image", f"{self.sample_name(index)} has no image.")
        caption = _json_caption(described) if text is None else text.decode("utf-8", "replace").strip()
        if not caption:
            raise SampleError("no caption", f"{self.sample_name(index)} has no caption.")
        return next(iter(members.values())), caption


def _json_caption(described: bytes | None) -> str:
    """The ``caption`` of img2dataset's metadata, empty where there is none."""
    try:
        value = json.loads(described or b"{}")
    except ValueError:
        return ""
    caption = value.get("caption") if isinstance(value, dict) else None
    return caption.strip() if isinstance(caption, str) else ""


class ListedPairs(PairSource):
    """A CSV or TSV file with a header, a column of paths (relative to it) and one of captions, as open_clip takes."""

    def __init__(self, file: Path) -> None:
        self.name, self.folder = str(file), file.parent
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                header = lines.readline()
                lines.seek(0)
                rows = csv.reader(lines, delimiter="\t" if "\t" in header else ",")
                columns = next(rows, [])
                path, text = (_column(file, columns, known) for known in (PATH_COLUMNS, TEXT_COLUMNS))
                pairs = [(row[path], row[text]) if len(row) == len(columns) else ("", "") for row in rows if row]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{file} cannot be read as a list of paths and captions ({error}).") from None
        if not pairs:
            raise DataError(f"{file} lists no pairs.")
        self.paths, self.captions = Names(pair[0] for pair in pairs), Names(pair[1] for pair in pairs)

    def __len__(self) -> int:
        return len(self.paths)

    def sample_name(self, index: int) -> str:
        return f"{self.name}, row {index + 1}"

    def neighbour(self, index: int, attempt: int) -> int:
        return (index + attempt) % len(self)

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for names in (self.paths, self.captions):
            digest.update(names.text.tobytes() + names.ends.tobytes())
        return digest.hexdigest()

    def read(self, index: int) -> tuple[bytes, str]:
        path, caption = str(self.paths[index]), str(self.captions[index]).strip()
        if not path:
            raise SampleError("damaged row", f"{self.sample_name(index)} has not the columns of the header.")
        if not caption:
            raise SampleError("no caption", f"{self.sample_name(index)} has no caption.")
        return read_file(self.folder / path), caption


def _column(file: Path, columns: list[str], known: tuple[str, ...]) -> int:
    """Where the first of the ``known`` names stands in the header."""
    for name in known:
        if name in columns:
            return columns.index(name)
    raise DataError(f"{file} has no column {' or '.join(known)}; its header names {', '.join(columns) or 'nothing'}.")


class SomePairs(PairSource):
    """The pairs ``chosen`` (int64 ``[N]``) of another source."""

    def __init__(self, source: PairSource, chosen: NDArray[np.int64]) -> None:
        self.source, self.chosen = source, chosen
        self.name = f"{len(chosen)} of {source.name}"

    def __len__(self) -> int:
        return len(self.chosen)

    def sample_name(self, index: int) -> str:
        return self.source.sample_name(int(self.chosen[index]))

    def neighbour(self, index: int, attempt: int) -> int:
        return (index + attempt) % len(self)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.source.fingerprint.encode() + self.chosen.tobytes()).hexdigest()

    def read(self, index: int) -> tuple[bytes, str]:
        return self.source.read(int(self.chosen[index]))


def open_pairs(spec: str, cache: Path | None = None, *, limit: int | None = None) -> PairSource:
    """Open ``wds:SHARDS`` or ``csv:FILE`` (comma or tab separated).

    ``cache`` is a folder that can be written, such as the run's, where to remember what the shards hold; ``limit`` a
    seeded choice of so many pairs, in order.

    Raises:
        DataError: an unknown kind, something missing, or a list without the columns.
    """
    kind, colon, path = spec.partition(":")
    if colon and kind not in KINDS:
        refuse_remote(spec)
        valid = ", ".join(f"{known}:" for known in KINDS)
        raise DataError(f"Unknown kind of pairs {kind!r} in {spec!r}; valid: {valid}.{near_misses(kind, KINDS)}")
    if not colon:
        kind, path = ("csv" if spec.endswith((".csv", ".tsv")) else "wds"), spec
    source: PairSource
    if kind == "wds":
        source = ShardPairs(path, cache)
    else:
        refuse_remote(path)
        source = ListedPairs(Path(path))
    if limit is not None and limit < len(source):
        source = SomePairs(source, seeded_choice(len(source), limit))
    return source
