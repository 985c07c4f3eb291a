"""Files written all or nothing, canonical JSON, and the hash of a file. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes. NaN raises ``ValueError``."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def atomic_write(path: str | Path, content: bytes | Callable[[BinaryIO], Any], *, shared: bool = False) -> None:
    """Replace ``path`` by ``content`` (bytes, or a function that writes to an open binary file), all or nothing.

    A process killed at any moment leaves the old file or the new one. The temporary name is fixed, so that an
    interrupted write leaves at most one file behind, which the next write reuses; one writer per path is assumed.
    ``shared`` paths may have several writers at a time, also on other machines: each has a temporary name of its own.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp" if shared else f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Make the rename itself survive a power cut (Windows cannot open directories)."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def atomic_json(path: str | Path, value: Any, *, shared: bool = False) -> None:
    """`atomic_write` of ``value`` as indented JSON. NaN and infinity raise ``ValueError``: they are no JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(path, text.encode(), shared=shared)


def file_sha256(path: str | Path) -> str:
    """The 64 hexadecimal digits of a file's sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
