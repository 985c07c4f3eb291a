"""What the readers of images and of image-text pairs share: one bad sample's error, open files, packed names."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from digpt.errors import DataError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class SampleError(DataError):
    """One sample that cannot be used: training counts it by ``kind`` and takes its neighbour, evaluation stops."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str]]:
        return SampleError, (self.kind, str(self))  # so that loader processes can hand it over


class PassingError(SampleError):
    """A sample that cannot be read now: a fault of the disk or the network, not of the file, and it may pass."""

    def __reduce__(self) -> tuple[type[PassingError], tuple[str, str]]:
        return PassingError, (self.kind, str(self))


# What the file system says of a name or a file, and says again: everything else may pass.
LASTING = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)
)


def unreadable(path: Path, error: OSError) -> SampleError:
    """The error of a sample in a file that cannot be read: PassingError where that may pass."""
    kind = SampleError if error.errno in LASTING else PassingError
    return kind("unreadable file", f"{path} cannot be read ({error.strerror or error}).")


def seeded_choice(size: int, limit: int) -> NDArray[np.int64]:
    """``limit`` of ``range(size)`` in order, int64: always the same ones."""
    return np.sort(np.random.RandomState(0).permutation(size)[:limit]).astype(np.int64)  # the generator NumPy froze


class Source(Protocol):
    """What the training loader needs of a data set, besides reading it.

    Attributes:
        name: the data set in words, for messages.
        fingerprint: sha256 of the listing (names, labels, sizes), not of the pixels.
        counts: samples per shard, int64 ``[shards]``, where the order should stay within windows of shards; or None.
    """

    name: str
    counts: NDArray[np.int64] | None

    @property
    def fingerprint(self) -> str:
        """See the class."""

    def __len__(self) -> int:
        """Number of samples."""

    def sample_name(self, index: int) -> str:
        """What a message calls one sample."""

    def neighbour(self, index: int, attempt: int) -> int:
        """The sample that stands in for ``index`` when it and ``attempt - 1`` others could not be used."""


class Names(Sequence[str]):
    """Strings in two arrays: less memory than objects, and forked workers share it, as nothing counts references."""

    def __init__(self, values: Iterable[str]) -> None:
        encoded = [value.encode("utf-8", "surrogateescape") for value in values]
        self.text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self.ends = np.cumsum([len(value) for value in encoded], dtype=np.int64)

    @classmethod
    def of(cls, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> Names:
        """From the two arrays of another one."""
        names = cls(())
        names.text, names.ends = text, ends
        return names

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self.ends[index - 1]) if index else 0
        return self.text[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


class OpenFiles:
    """Reads parts of files and keeps at most ``limit`` of them open.

    ``pread`` has no position, so that processes forked with a file open do not move it under each other.
    """

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit
        self._open: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; fewer where the file ends before.

        Raises:
            SampleError: the file cannot be opened or read; PassingError where that may pass.
        """
        try:
            return self._read(path, offset, size)
        except OSError as error:
            descriptor = self._open.pop(path, None)
            if descriptor is not None:
                os.close(descriptor)  # it may be the one of a server that is gone; the next read opens the file again
            raise unreadable(path, error) from None

    def _read(self, path: Path, offset: int, size: int) -> bytes:
        descriptor = self._open.get(path)
        if descriptor is None:
            while len(self._open) >= self.limit:
                os.close(self._open.popitem(last=False)[1])
            descriptor = self._open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._open.move_to_end(path)
        parts: list[bytes] = []
        while size > 0:  # one call reads 2 GiB at most, and less on network file systems
            part = os.pread(descriptor, size, offset)
            if not part:
                break
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """Close every file; the next read opens what it needs again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit, "_open": OrderedDict()}  # a descriptor means nothing in another process


def file_size(path: str | os.PathLike[str]) -> int:
    """A file's bytes, for fingerprints; -1 where it cannot be asked, which reading it will explain."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def read_file(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        SampleError: it is missing or unreadable; PassingError where that may pass.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def refuse_remote(spec: str) -> None:
    """Raise DataError for URLs and pipes: only local files can be read at any place."""
    if "://" in spec or spec.startswith("pipe:"):
        raise DataError(
            f"{spec} is not on this machine: mount or copy the data and give its path, which may have {{00..99}}."
        )
