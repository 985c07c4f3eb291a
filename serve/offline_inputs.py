"""What bulk embedding reads: folders of images, webdataset shards, Parquet files. Their images by number, as bytes.

>>> source = open_inputs("wds:shards/{0000..0099}.tar")
>>> source.open(0, 64)()  # the first 64: [("0000.tar/000000001", b"..."), ...]
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from digpt.data.shards import Shards
from digpt.data.source import IMAGE_EXTENSIONS, Names, PassingError, SampleError, file_size, read_file, refuse_remote
from digpt.errors import ConfigError, DataError, near_misses

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

KINDS = ("folder", "wds", "parquet")
ID_COLUMNS = ("id", "key", "__key__")
PARTS_ENDING = ".parts"  # of the folder in which a job keeps what it has done: never input
READ_BYTES = 2**20  # of a Parquet column at a time: its chunks may hold gigabytes of images

PAUSES_S = (0.5, 2.0, 8.0)  # before reading again what a disk or a network did not give

T = TypeVar("T")
Item: TypeAlias = tuple[str, bytes | str]
"""The id of an image, and its file's bytes or why there are none (a sentence)."""


class Inputs(ABC):
    """Images in a fixed order. ``fingerprint`` is the sha256 of the listing: names, sizes and counts, not of pixels."""

    name: str
    fingerprint: str

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def open(self, start: int, stop: int) -> Callable[[], list[Item]]:
        """Prepare to read the images ``start:stop``. One thread calls this, in order; any thread what it returns."""


class FolderInputs(Inputs):
    """Every image below a folder, links followed; its id is the path from there."""

    def __init__(self, root: Path) -> None:
        listing = sorted(_walk(root, IMAGE_EXTENSIONS))
        if not listing:
            raise DataError(f"{root} holds no images ({', '.join(IMAGE_EXTENSIONS)}), nor do the folders in it.")
        self.name, self.root = str(root), root
        self.names = Names(name for name, _ in listing)
        sizes = np.array([size for _, size in listing], dtype=np.int64)
        self.fingerprint = _digest(self.names.text, self.names.ends, sizes)

    def __len__(self) -> int:
        return len(self.names)

    def open(self, start: int, stop: int) -> Callable[[], list[Item]]:
        return partial(self._read, start, stop)

    def _read(self, start: int, stop: int) -> list[Item]:
        return [(_text(name), _bytes_or_error(partial(read_file, self.root / name))) for name in self.names[start:stop]]


class ShardInputs(Inputs):
    """The samples of webdataset shards; an id is ``SHARD.tar/KEY``, the shard's path from where all of them lie."""

    def __init__(self, pattern: str) -> None:
        self.name, self.shards = pattern, Shards.open(pattern)
        self.fingerprint = self.shards.fingerprint
        self._above = Path(os.path.commonpath([path.parent.absolute() for path in self.shards.paths]))
        self._local = threading.local()

    def __len__(self) -> int:
        return len(self.shards)

    def open(self, start: int, stop: int) -> Callable[[], list[Item]]:
        return partial(self._read, start, stop)

    def _read(self, start: int, stop: int) -> list[Item]:
        if not hasattr(self._local, "shards"):
            self._local.shards = copy.deepcopy(self.shards)  # open files and indexes are not for several threads
        shards: Shards = self._local.shards
        return [(self._id(shards, row), _bytes_or_error(partial(_image, shards, row))) for row in range(start, stop)]

    def _id(self, shards: Shards, index: int) -> str:
        shard, row = shards.locate(index)
        try:
            key = patiently(partial(shards.index, shard)).keys[row]
        except (SampleError, IndexError):
            key = f"sample {row}"  # the shard is cut off or unreadable
        return _text(f"{shards.paths[shard].absolute().relative_to(self._above).as_posix()}/{key}")


class ParquetInputs(Inputs):
    """The rows of Parquet files with a column of image files: bytes, or Hugging Face's struct ``{bytes, path}``.

    Up to a row group is in memory: Arrow lets go of its pages at the group's end.

    The id is that of a column ``id``, ``key`` or ``__key__``, else ``FILE.parquet:ROW``.
    """

    def __init__(self, paths: Sequence[Path], root: Path, column: str | None = None) -> None:
        self.name, self.root, self.paths = str(root), root, list(paths)
        self.column, self.id_column = _columns(_footer(paths[0])[0], paths[0], column)
        counts = []
        for path in paths:
            schema, count = _footer(path)
            if _columns(schema, path, self.column) != (self.column, self.id_column):
                raise DataError(f"{path} has other columns than {paths[0]}; embed them separately.")
            counts.append(count)
        self.ends = np.cumsum(counts, dtype=np.int64)
        rows = [[self._file(path), file_size(path), count] for path, count in zip(paths, counts, strict=True)]
        self.fingerprint = hashlib.sha256(json.dumps([self.column, self.id_column, rows]).encode()).hexdigest()
        self._position, self._rows = -1, iter(())  # type: tuple[int, Iterator[Item]]
        if not len(self):
            raise DataError(f"{root} has no rows.")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def open(self, start: int, stop: int) -> Callable[[], list[Item]]:
        if start != self._position:
            self._rows = self._from(start)
        items = [next(self._rows) for _ in range(start, stop)]
        self._position = stop
        return lambda: items

    def _from(self, start: int) -> Iterator[Item]:
        """Every row from ``start`` on, in order."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for number, path in enumerate(self.paths):
            first = int(self.ends[number - 1]) if number else 0
            if start < self.ends[number]:
                try:
                    with pq.ParquetFile(path, buffer_size=READ_BYTES) as file:
                        yield from self._file_rows(path, file, max(start - first, 0))
                except (OSError, pa.ArrowException) as error:
                    raise DataError(f"{path} is damaged ({error}); restore it, and give the command again.") from None

    def _file_rows(self, path: Path, file: pq.ParquetFile, start: int) -> Iterator[Item]:
        group = row = 0
        while row + file.metadata.row_group(group).num_rows <= start:
            row += file.metadata.row_group(group).num_rows
            group += 1
        wanted = [name for name in (self.column, self.id_column) if name]
        groups = list(range(group, file.num_row_groups))
        for batch in file.iter_batches(16, row_groups=groups, columns=wanted, use_threads=False):
            if row + len(batch) > start:
                ids = batch[self.id_column] if self.id_column else None
                for offset in range(max(start - row, 0), len(batch)):
                    known = None if ids is None else ids[offset].as_py()
                    name = f"{self._file(path)}:{row + offset}" if known is None else str(known)
                    yield name, _cell(batch[self.column][offset].as_py())
            row += len(batch)

    def _file(self, path: Path) -> str:
        return path.name if path == self.root else path.relative_to(self.root).as_posix()


def open_inputs(spec: str, column: str | None = None) -> Inputs:
    """Open ``folder:DIR``, ``wds:SHARDS``, ``parquet:FILE_OR_DIR``, or a bare path that shows which of these it is.

    Args:
        column: the Parquet column of images; needed where there are several that it could be.

    Raises:
        DataError: missing, empty, damaged, or a folder that could be read in two ways.
        ConfigError: a column for what has none.
    """
    refuse_remote(spec)
    kind, colon, path = spec.partition(":")
    if not colon or kind not in KINDS:
        kind, path = _kind(spec), spec
    if column is not None and kind != "parquet":
        raise ConfigError(f"--column names a column of Parquet files, and {spec} has none; leave it out.")
    if kind == "wds":
        return ShardInputs(path)
    root = Path(path)
    if not root.exists():
        raise DataError(f"There is no {path}.")
    if kind == "folder":
        return FolderInputs(root)
    files = [root] if root.is_file() else [root / name for name, _ in sorted(_walk(root, (".parquet",)))]
    if not files:
        raise DataError(f"{root} holds no .parquet files.")
    return ParquetInputs(files, root, column)


def absolute_input(spec: str) -> str:
    """The same input for a process that works in another folder."""
    kind, colon, path = spec.partition(":")
    if not colon or kind not in KINDS:
        kind, path = "", spec
    found = "::".join(str(Path(each).absolute()) for each in path.split("::"))
    return f"{kind}:{found}" if kind else found


def _kind(spec: str) -> str:
    """What a bare path is, by its ending or by what lies in the folder."""
    root = Path(spec)
    if not root.is_dir():
        if spec.endswith(".parquet"):
            return "parquet"
        if ".tar" in spec:  # one, or a pattern of many
            return "wds"
        raise DataError(
            f"{spec} is no folder, .tar or .parquet file; give one of them, or "
            f"{', '.join(f'{kind}:...' for kind in KINDS)}."
        )
    endings = {"folder": IMAGE_EXTENSIONS, "wds": (".tar",), "parquet": (".parquet",)}
    found = [kind for kind, extensions in endings.items() if next(_walk(root, extensions), None) is not None]
    if len(found) > 1:
        ways = " or ".join(f"{kind}:{spec}" for kind in found)
        raise DataError(f"{spec} holds several kinds of input; say which is meant: {ways}.")
    if not found:
        raise DataError(f"{spec} holds neither images ({', '.join(IMAGE_EXTENSIONS)}) nor .tar or .parquet files.")
    return found[0]


def _walk(root: Path, extensions: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """``(path from root, bytes)`` of every file with one of the extensions; a folder reached twice counts once."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        found = os.stat(folder)
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        kept = (name for name in folders if not name.startswith(".") and not name.endswith(PARTS_ENDING))
        folders[:] = sorted(kept)  # or the file system would choose by which link a folder is reached first
        for name in files:
            if name.lower().endswith(extensions) and not name.startswith("."):
                path = Path(folder, name)
                yield path.relative_to(root).as_posix(), file_size(path)


def _columns(schema: pa.Schema, path: Path, column: str | None) -> tuple[str, str | None]:
    """The columns of the images and of the ids, if there is one."""
    import pyarrow as pa

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    found = [field.name for field in schema if holds_bytes(field.type)]
    ids = next((name for name in ID_COLUMNS if name in schema.names and name not in found), None)
    if column is not None:
        if column not in found:
            known = ", ".join(found) or "none"
            raise DataError(
                f"{path} has no column {column!r} of bytes; it has {known}.{near_misses(column, schema.names)}"
            )
        return column, ids
    if len(found) != 1:
        held = f"several columns of bytes, so name one: --column {found[0]}" if found else "no column of bytes"
        raise DataError(f"{path} has {held} (its columns: {', '.join(schema.names)}).")
    return found[0], ids


def _footer(path: Path) -> tuple[pa.Schema, int]:
    """The columns of a file, and how many rows it has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}).") from None


def _cell(value: bytes | dict[str, bytes | None] | None) -> bytes | str:
    data = value.get("bytes") if isinstance(value, dict) else value
    return "The row has no bytes." if data is None else data


def _image(shards: Shards, index: int) -> bytes:
    members = shards.read(index, IMAGE_EXTENSIONS)
    if not members:
        raise SampleError("no image", f"{shards.sample_name(index)} has no image.")
    return next(iter(members.values()))


def _bytes_or_error(read: Callable[[], bytes]) -> bytes | str:
    try:
        return patiently(read)
    except SampleError as error:
        return str(error)


def patiently(read: Callable[[], T]) -> T:
    """``read()``, after a few pauses where a disk or a network fails that may recover.

    Raises:
        DataError: it did not. No row says so, since the image may be a good one: the job stops, and can continue.
        SampleError: as ``read``.
    """
    pauses = iter(PAUSES_S)
    while True:
        try:
            return read()
        except PassingError as error:
            pause = next(pauses, None)
            if pause is None:
                raise DataError(
                    f"{error} Reading it again did not help: mend the disk or the network, then give the same command "
                    "again, which continues."
                ) from None
            time.sleep(pause)


def _text(name: str) -> str:
    """A name as valid UTF-8; bytes that are none are spelt out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
