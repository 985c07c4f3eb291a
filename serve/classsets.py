"""Class sets: named matrices of label embeddings, so that classifying is one matrix product.

Kept in memory and, with a directory, in one npz file each: its labels and matrix are believed only if their hashes fit.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from digpt.errors import near_misses
from digpt.files import atomic_write, canonical_json
from digpt.text import class_set_hash
from serve.errors import ConflictError, QueueFullError, SchemaError, UnknownClassSetError
from serve.schemas import ClassifyRequest
from serve.settings import Settings

log = logging.getLogger("serve")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_WAITING = 4  # class sets being embedded or waiting for it
STORED = Literal["created", "replaced", "unchanged"]


@dataclass(frozen=True)
class StoredSet:
    """Labels and their embeddings under one served model: ``matrix`` is float32 ``[C,D]`` with unit rows."""

    name: str
    model: str
    labels: tuple[str, ...]
    templates: tuple[str, ...]
    fingerprint: str
    matrix: np.ndarray

    @cached_property
    def content_hash(self) -> str:
        """Of what decides the matrix: the labels, the templates and the model's weights."""
        return class_set_hash(self.labels, self.templates, self.fingerprint)

    def matrix_for(self, fingerprint: str) -> np.ndarray:
        """Return the matrix if it was made with these weights.

        Raises:
            ConflictError: it was made with others.
        """
        if fingerprint != self.fingerprint:
            raise ConflictError(
                f"Class set {self.name!r} was made with other weights than {self.model!r} has now; PUT it again.",
                param="class_set",
            )
        return self.matrix


class ClassSets:
    """The stored sets by name, within the quotas of ``settings``. Used on the event loop; files are read at start."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sets: dict[str, StoredSet] = {}
        self._waiting = 0
        self.building = asyncio.Lock()
        """Held while a set is embedded and written: one at a time, and no model is unloaded meanwhile."""
        for path in sorted(settings.class_sets_dir.glob("*.npz")) if settings.class_sets_dir else ():
            try:
                found = read(path)
                self.check_room(found.name, len(found.labels))
                self._sets[found.name] = found
            except (ValueError, ConflictError) as error:
                log.warning("class set %s is left out: %s", path, error)

    def all(self) -> list[StoredSet]:
        return [self._sets[name] for name in sorted(self._sets)]

    def get(self, name: str) -> StoredSet:
        """Return the set of that name; UnknownClassSetError without one."""
        if name not in self._sets:
            raise UnknownClassSetError(
                f"There is no class set {name[:80]!r} here.{near_misses(name[:80], self._sets)}", param="class_set"
            )
        return self._sets[name]

    def asked_for(self, request: ClassifyRequest) -> StoredSet | None:
        """Return the set that a request names, or None.

        Raises:
            SchemaError: the request says as well what the set says already.
            UnknownClassSetError: there is none of that name.
        """
        if request.class_set is None:
            return None
        for field in ("labels", "templates", "logits"):
            if getattr(request, field) is not None:
                raise SchemaError(f"Give either class_set or {field}, not both.", param=field)
        found = self.get(request.class_set)
        if request.model not in (None, found.model):
            raise SchemaError(
                f"Class set {found.name!r} belongs to the model {found.model!r}; leave model out.", param="model"
            )
        return found

    def check_room(self, name: str, rows: int) -> None:
        """Raise ConflictError if a set of that name and size would exceed a quota."""
        others = [kept for kept in self._sets.values() if kept.name != name]
        if len(others) >= self._settings.max_class_sets:
            raise ConflictError(f"There are {len(others)} class sets already, as many as are allowed; delete one.")
        held = sum(len(kept.labels) for kept in others)
        if held + rows > self._settings.max_class_set_rows:
            raise ConflictError(
                f"{rows} labels beside the {held} of the other class sets are more than the "
                f"{self._settings.max_class_set_rows} allowed; delete some.",
                param="labels",
            )

    def check_queue(self) -> None:
        """Raise QueueFullError if enough sets are waiting to be embedded."""
        if self._waiting >= MAX_WAITING:
            raise QueueFullError("Enough class sets are waiting to be embedded; try again later.", retry_after=5)

    async def put(self, new: StoredSet) -> STORED:
        """Keep a set, whose name is valid, in place of what had the name. Call it with ``building`` held."""
        self.check_room(new.name, len(new.labels))
        old = self._sets.get(new.name)
        if old is not None and (old.content_hash, old.model) == (new.content_hash, new.model):
            return "unchanged"
        if self._settings.class_sets_dir is not None:
            await asyncio.to_thread(write, self._settings.class_sets_dir, new)
        self._sets[new.name] = new
        return "created" if old is None else "replaced"

    async def delete(self, name: str) -> None:
        """Forget a set, also on disk; UnknownClassSetError without one."""
        async with self.building:
            self.get(name)
            if self._settings.class_sets_dir is not None:
                await asyncio.to_thread((self._settings.class_sets_dir / f"{name}.npz").unlink, missing_ok=True)
            del self._sets[name]

    async def __aenter__(self) -> ClassSets:
        """Wait for the turn to embed a set; QueueFullError if too many wait."""
        self.check_queue()
        self._waiting += 1
        try:
            await self.building.acquire()
        except BaseException:
            self._waiting -= 1
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._waiting -= 1
        self.building.release()


def write(directory: Path, stored: StoredSet) -> None:
    """Write one set to ``directory``, all or nothing."""
    about = {name: value for name, value in asdict(stored).items() if name != "matrix"}
    about |= {"content_hash": stored.content_hash, "matrix_sha256": matrix_hash(stored.matrix)}
    text = np.frombuffer(canonical_json(about), np.uint8)
    atomic_write(
        directory / f"{stored.name}.npz", lambda file: np.savez(file, matrix=stored.matrix, about=text), shared=True
    )


def read(path: Path) -> StoredSet:
    """Read one set.

    Raises:
        ValueError: it is damaged, was changed, or is none.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            matrix, about = archive["matrix"], json.loads(archive["about"].tobytes())
        expected = about.pop("content_hash"), about.pop("matrix_sha256")
        labels, templates = _strings(about.pop("labels")), _strings(about.pop("templates"))
        stored = StoredSet(matrix=matrix, labels=labels, templates=templates, **about)
        found = stored.content_hash, matrix_hash(matrix)
    except Exception as error:  # numpy, zipfile and zlib raise many unrelated types for what is no file of ours
        raise ValueError(f"it cannot be read ({type(error).__name__})") from None
    if found != expected or matrix.dtype != np.float32 or len(matrix) != len(labels) or stored.name != path.stem:
        raise ValueError("its content is not what its hash says")
    return stored


def matrix_hash(matrix: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(matrix).tobytes()).hexdigest()


def _strings(values: Sequence[object]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
