"""Samples of webdataset tar shards by number, without reading the shards whole.

>>> shards = Shards.open("shards/{00000..00099}.tar")
>>> sorted(shards.read(123, (".jpg", ".txt")))
['.jpg', '.txt']
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.data.source import LASTING, Names, OpenFiles, PassingError, SampleError, refuse_remote, unreadable
from digpt.errors import DataError

SIZES = "sizes.json"  # {"00000.tar": 10000, ...} beside the shards, as webdataset's tools write it
_MEMBER = re.compile(r"^((?:.*/)?[^./][^./]*)(\.[^/]+)$")  # the key ends at the first dot of the file name
_WITHIN = 8  # stand-ins from the same shard before the following shards are asked
_INDEXES = 64  # shard indexes kept in memory: a window of shards, and the next


@dataclass(frozen=True)
class ShardIndex:
    """Where the members of a shard's samples lie: sample ``i`` owns the members ``starts[i]:starts[i+1]``."""

    keys: Names
    starts: NDArray[np.int64]
    extensions: tuple[str, ...]
    kinds: NDArray[np.int16]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def members(self, row: int) -> dict[str, tuple[int, int]]:
        """``{extension: (offset, size)}`` of one sample."""
        span = range(int(self.starts[row]), int(self.starts[row + 1]))
        return {self.extensions[self.kinds[i]]: (int(self.offsets[i]), int(self.sizes[i])) for i in span}


def scan_shard(path: Path) -> ShardIndex:
    """Read a shard's headers. A shard cut short yields what lies before the cut.

    Raises:
        DataError: no uncompressed tar, or missing.
    """
    keys: list[str] = []
    starts: list[int] = []
    extensions: dict[str, int] = {}
    members: list[tuple[int, int, int]] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for key, extension, member in _samples(archive):
                if not keys or keys[-1] != key:
                    keys.append(key)
                    starts.append(len(members))
                kind = extensions.setdefault(extension, len(extensions))
                members.append((kind, member.offset_data, member.size))
    except (tarfile.TarError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and error.errno not in LASTING:
            raise unreadable(path, error) from None
        raise DataError(f"{path} is no uncompressed tar shard that can be read ({error}).") from None
    columns = np.array(members, dtype=np.int64).reshape(-1, 3)
    ends = np.array([*starts, len(members)], dtype=np.int64)
    kinds, offsets, sizes = columns[:, 0].astype(np.int16), columns[:, 1], columns[:, 2]
    return ShardIndex(Names(keys), ends, tuple(extensions), kinds, offsets, sizes)


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """``(key, extension, member)`` of every file, until the end or the place where the tar is cut."""
    while True:
        try:
            member = archive.next()
        except tarfile.TarError:
            return
        if member is None:
            return
        archive.members = []  # type: ignore[attr-defined]  # tarfile would remember every header
        found = _MEMBER.match(member.name)
        if member.isfile() and found:
            yield found[1], found[2].lower(), member


class Shards:
    """The samples of all shards, numbered in the order of the shards' names.

    How many a shard holds is taken from ``sizes.json`` or img2dataset's ``NAME_stats.json`` beside it, from the cache,
    or from a scan. ``cache`` is a folder for the counts and indexes, which several processes may share.
    """

    def __init__(self, paths: list[Path], cache: Path | None = None, open_files: int = 64) -> None:
        self.paths, self.cache = paths, None if cache is None else cache / "shards"
        self.files = OpenFiles(open_files)
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        stats = [_stat(path) for path in paths]
        self.bytes = np.array([stat.st_size for stat in stats], dtype=np.int64)
        self._stamps = [f"{stat.st_size}-{stat.st_mtime_ns}" for stat in stats]  # the cache forgets a changed shard
        self.counts = np.array(self._count(), dtype=np.int64)
        self.ends = np.cumsum(self.counts)
        if not len(self):
            raise DataError(f"The shards hold no samples: {paths[0]} and {len(paths) - 1} more.")

    @classmethod
    def open(cls, pattern: str, cache: Path | None = None) -> Shards:
        """The shards of ``pattern``: a folder, or paths with ``{000..099}``, ``{a,b}``, ``*``, joined by ``::``."""
        return cls(expand(pattern), cache)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def fingerprint(self) -> str:
        """sha256 over the shards' names, bytes and counts."""
        rows = [[path.name, int(b), int(c)] for path, b, c in zip(self.paths, self.bytes, self.counts, strict=True)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def locate(self, index: int) -> tuple[int, int]:
        """The shard, and the row within it, of sample ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return shard, index - int(self.ends[shard] - self.counts[shard])

    def neighbour(self, index: int, attempt: int) -> int:
        """The next samples of the same shard, then the same row of the following shards: a shard may be lost whole."""
        shard, row = self.locate(index)
        if attempt > _WITHIN:
            filled = np.flatnonzero(self.counts)
            position = int(np.searchsorted(filled, shard))
            shard = int(filled[(position + attempt - _WITHIN) % len(filled)])
        else:
            row += attempt
        return int(self.ends[shard] - self.counts[shard]) + row % int(self.counts[shard])

    def sample_name(self, index: int) -> str:
        """Such as ``00012.tar: 000120034``."""
        shard, row = self.locate(index)
        try:
            keys = self.index(shard).keys
        except SampleError:
            keys = Names(())
        return f"{self.paths[shard].name}: {keys[row] if row < len(keys) else f'sample {row}'}"

    def read(self, index: int, wanted: tuple[str, ...]) -> dict[str, bytes]:
        """Those members of sample ``index`` whose extension is in ``wanted``.

        Raises:
            SampleError: the shard is unreadable, or ends before the sample does.
            DataError: the shard holds more samples than is stated.
        """
        shard, row = self.locate(index)
        content = self.index(shard)
        if row >= len(content):
            raise SampleError("missing sample", f"{self.paths[shard]} ends after {len(content)} samples.")
        found = {}
        for extension, (offset, size) in content.members(row).items():
            if extension in wanted:
                found[extension] = self.files.read(self.paths[shard], offset, size)
                if len(found[extension]) < size:
                    raise SampleError("truncated", f"{self.sample_name(index)} is cut off.")
        return found

    def index(self, shard: int) -> ShardIndex:
        """A shard's index, from memory, the cache folder, or its headers."""
        if shard in self._indexes:
            self._indexes.move_to_end(shard)
            return self._indexes[shard]
        try:
            content = self._load(shard)
        except PassingError:
            raise
        except DataError as error:
            raise SampleError("unreadable shard", str(error)) from None
        if len(content) > self.counts[shard]:
            raise DataError(
                f"{self.paths[shard]} holds {len(content)} samples, but {self.counts[shard]} are stated beside it: "
                f"delete the outdated {SIZES} or {_stats(self.paths[shard]).name}."
            )
        self._indexes[shard] = content
        if len(self._indexes) > _INDEXES:
            self._indexes.popitem(last=False)
        return content

    def _load(self, shard: int) -> ShardIndex:
        path = self.paths[shard]
        if self.cache is None:
            return scan_shard(path)
        name = hashlib.sha256(f"{path.resolve()}:{self._stamps[shard]}".encode()).hexdigest()[:24]
        file = self.cache / f"{name}.index"
        if (cached := _read_index(file)) is not None:
            return cached
        content = scan_shard(path)
        _replace(file, _pack(content))
        return content

    def _count(self) -> list[int]:
        """Samples per shard; what had to be scanned is written to the cache."""
        file = None if self.cache is None else self.cache / "counts.json"
        known = _read_counts(file) if file else {}
        stated: dict[Path, dict[str, Any]] = {}
        counts, scanned = [], False
        for shard, path in enumerate(self.paths):
            if path.parent not in stated:
                stated[path.parent] = _json(path.parent / SIZES)
            count = stated[path.parent].get(path.name, _json(_stats(path)).get("successes"))
            row = known.get(str(path.resolve()))
            if count is None and row and row[0] == self._stamps[shard]:
                count = row[1]
            if count is None:
                count, scanned = len(self._load(shard)), True
            known[str(path.resolve())] = [self._stamps[shard], int(count)]
            counts.append(int(count))
        if file and scanned:
            _replace(file, json.dumps(known).encode())
        return counts

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_indexes": OrderedDict()}


def expand(pattern: str) -> list[Path]:
    """The existing paths that a pattern stands for, sorted by name within each part between ``::``.

    Raises:
        DataError: a URL or pipe, a path that does not exist, or nothing found.
    """
    refuse_remote(pattern)
    paths: list[Path] = []
    for part in pattern.split("::"):
        for name in sorted(_braces(part)):
            if Path(name).is_dir():
                name = f"{glob.escape(name)}/*.tar"
            found = sorted(glob.glob(name)) if "*" in name or "?" in name else [name]
            missing = [path for path in found if not Path(path).is_file()]
            if missing or not found:
                raise DataError(f"There is no shard {missing[0] if missing else name}: check the path and the braces.")
            paths += map(Path, found)
    return paths


def _braces(pattern: str) -> list[str]:
    """``{000..003}`` counts, with its leading zeros; ``{a,b}`` lists."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    inner = found[1]
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    elif "," in inner:
        choices = inner.split(",")
    else:
        raise DataError(f"The braces in {pattern} mean nothing: write {{000..099}} or {{a,b}}.")
    return [name for choice in choices for name in _braces(pattern[: found.start()] + choice + pattern[found.end() :])]


def _stats(path: Path) -> Path:
    return path.with_name(f"{path.stem}_stats.json")


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"The shard {path} cannot be read ({error.strerror}).") from None


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it, and the shards will be counted.") from None
    return value if isinstance(value, dict) else {}


def _read_counts(file: Path) -> dict[str, Any]:
    try:
        return _json(file)
    except DataError:
        return {}  # a cache is only ever a shortcut


def _pack(index: ShardIndex) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        text=index.keys.text,
        ends=index.keys.ends,
        extensions=np.frombuffer("\n".join(index.extensions).encode(), dtype=np.uint8),
        starts=index.starts,
        kinds=index.kinds,
        offsets=index.offsets,
        sizes=index.sizes,
    )
    return buffer.getvalue()


def _read_index(file: Path) -> ShardIndex | None:
    try:
        with np.load(file, allow_pickle=False) as stored:
            names = Names.of(stored["text"], stored["ends"])
            extensions = tuple(stored["extensions"].tobytes().decode().split("\n"))
            columns = [stored[name] for name in ("kinds", "offsets", "sizes")]
            return ShardIndex(names, stored["starts"], extensions, *columns)
    except (OSError, ValueError, KeyError, EOFError):
        return None
    except Exception as error:  # zipfile and zlib have errors of their own for damaged files
        if type(error).__module__ in ("zipfile", "zlib"):
            return None
        raise


def _replace(path: Path, content: bytes) -> None:
    """All or nothing, by any number of processes at once: each writes a file of its own name first.

    A folder that is full, over quota or read-only goes without: a cache is only ever a shortcut.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
