"""The store of a model's answers: one file per shard of a cell, so that a killed evaluation goes on where it stopped.

    store/store.json            model, protocol, classes, cells and views: what was asked of whom
    store/views.npz             labels, rows, classes and groups of the views
    store/classes.npy           the class matrix [C, D], for models that classify by text
    store/keys/<sha256>.txt     the names of a cell's images
    store/cells/<id>/00000.npz  logits [n, C] and embeddings [n, D], float32, of up to 2,048 images; or of masks the
                                pixels of each class, parts [n, K, 3], int64, of up to 32

Every number is computed from the store, so that ``python -m evaluate.recompute DIR`` needs neither model nor data.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.errors import ConfigError, DataError
from digpt.files import atomic_write, canonical_json
from evaluate.suite import AnyView, KnnView, MaskView, ProbeView, Suite, View

STORE_NAME = "store"
SHARD = 2048  # images, where a suite asks for no other number
VERSION = 1
_KINDS: dict[str, type[AnyView]] = {"classify": View, "probe": ProbeView, "knn": KnnView, "segment": MaskView}

Arrays = dict[str, NDArray[Any]]
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, AttributeError, zipfile.BadZipFile)


class Store:
    """Answers by cell and shard, on disk, or in memory where ``root`` is None.

    ``header`` is what ``store.json`` holds; ``views`` are those of the suite.
    """

    def __init__(self, root: Path | None, header: dict[str, Any], views: tuple[AnyView, ...]) -> None:
        self.root, self.header, self.views = root, header, views
        self.matrix: NDArray[np.float32] | None = None
        self._memory: dict[tuple[str, int], Arrays] = {}
        self._keys: dict[str, tuple[str, ...]] = {}

    # ---------------------------------------------------------------------------------------------- opening

    @classmethod
    def create(cls, root: Path | None, suite: Suite, model: Mapping[str, Any], *, overwrite: bool = False) -> Store:
        """Open the store of this question, or begin it.

        Raises:
            ConfigError: ``root`` holds the answers to another question, or of another model; what differs is named.
        """
        store = cls(root, header_of(suite, model), suite.views)
        store._keys = {cell.id: cell.keys for cell in suite.cells}
        if root is None:
            return store
        if overwrite and root.exists():
            if not (root / "store.json").is_file():
                raise ConfigError(f"{root} is no store of answers and is not removed: give another --output.")
            shutil.rmtree(root)
        if (root / "store.json").is_file():
            _refuse_other(_read_header(root), store.header, root)
            return store
        for cell in suite.cells:
            _write(store._keys_path(cell.id), "\n".join(cell.keys).encode("utf-8", "surrogateescape"))
        _write(root / "views.npz", _packed(view_arrays(suite.views)))
        _write(root / "store.json", (json.dumps(store.header, indent=1, ensure_ascii=False) + "\n").encode())
        return store

    @classmethod
    def open(cls, root: Path) -> Store:
        """Open a store to compute from it; ``root`` may be the directory that an evaluation was given.

        Raises:
            DataError: there is none, or it is damaged or newer.
        """
        root = root / STORE_NAME if (root / STORE_NAME).is_dir() else root
        header = _read_header(root)
        try:
            views = views_from(header["views"], _unpacked(root / "views.npz"))
            store = cls(root, header, views)
            if (root / "classes.npy").is_file():
                store.matrix = np.load(root / "classes.npy", allow_pickle=False)
        except _UNREADABLE as error:
            raise DataError(f"The store {root} is damaged ({error}); evaluate again with --overwrite.") from None
        return store

    # ---------------------------------------------------------------------------------------------- answers

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """``{id: {images, fingerprint, ...}}``."""
        return dict(self.header["cells"])

    def shards(self, cell: str) -> range:
        """The numbers of a cell's shards."""
        return range(-(-self.cells[cell]["images"] // self.header["shard"]))

    def rows_of(self, cell: str, shard: int) -> slice:
        """The rows of a cell that a shard holds."""
        size = self.header["shard"]
        return slice(shard * size, min((shard + 1) * size, self.cells[cell]["images"]))

    def has(self, cell: str, shard: int) -> bool:
        """Whether a shard is there; shards are written all or nothing."""
        return (cell, shard) in self._memory if self.root is None else self._path(cell, shard).is_file()

    def missing(self) -> list[tuple[str, int]]:
        """Every shard that is not there."""
        return [(cell, shard) for cell in self.cells for shard in self.shards(cell) if not self.has(cell, shard)]

    def put(self, cell: str, shard: int, arrays: Arrays) -> None:
        """Keep the answers of one shard, all or nothing."""
        if self.root is None:
            self._memory[cell, shard] = arrays
        else:
            _write(self._path(cell, shard), _packed(arrays))

    def put_matrix(self, matrix: NDArray[np.float32]) -> None:
        """Keep the class matrix ``[C, D]`` of unit rows."""
        self.matrix = np.asarray(matrix, np.float32)
        if self.root is not None:
            buffer = io.BytesIO()
            np.save(buffer, self.matrix, allow_pickle=False)
            _write(self.root / "classes.npy", buffer.getvalue())

    def array(self, cell: str, name: str) -> NDArray[np.float32]:
        """``logits`` or ``embeddings`` of all of a cell's images, in the order of its keys.

        Raises:
            DataError: a shard is missing or cut short.
        """
        parts = [self.load(cell, shard, name) for shard in self.shards(cell)]
        return np.concatenate(parts)

    def keys(self, cell: str) -> tuple[str, ...]:
        """The names of a cell's images."""
        if cell not in self._keys:
            text = self._keys_path(cell).read_bytes().decode("utf-8", "surrogateescape")
            self._keys[cell] = tuple(text.split("\n"))
        return self._keys[cell]

    def scores(self, view: View) -> NDArray[np.float32]:
        """Logits of the view's images ``[n, C]``, or ``[n, K]`` of its classes.

        A text model's are its logit scale times the cosine, plus its bias where it has one.
        """
        if not self.header["zero_shot"]:
            logits = self.array(view.cell, "logits")[view.rows]
            return logits if view.classes is None else logits[:, view.classes]
        assert self.matrix is not None
        matrix = self.matrix if view.classes is None else self.matrix[view.classes]
        cosine = self.array(view.cell, "embeddings")[view.rows] @ matrix.T
        scale, bias = self.header["zero_shot"]["logit_scale"], self.header["zero_shot"]["logit_bias"] or 0.0
        return np.asarray(np.float32(scale) * cosine + np.float32(bias), np.float32)

    def load(self, cell: str, shard: int, name: str) -> NDArray[np.float32]:
        """One array of one shard; errors as `array`."""
        rows = self.rows_of(cell, shard)
        if self.root is None:
            return self._memory[cell, shard][name]
        try:
            array = _unpacked(self._path(cell, shard))[name]
        except FileNotFoundError:
            raise DataError(f"{self.root} lacks shard {shard} of {cell}: the evaluation has not finished.") from None
        except _UNREADABLE:
            raise self._damaged(cell, shard) from None
        if len(array) != rows.stop - rows.start:
            raise self._damaged(cell, shard)
        return array

    def _damaged(self, cell: str, shard: int) -> DataError:
        return DataError(f"{self._path(cell, shard)} is damaged: delete it and evaluate again; the rest is kept.")

    def _path(self, cell: str, shard: int) -> Path:
        assert self.root is not None
        return self.root / "cells" / cell / f"{shard:05d}.npz"

    def _keys_path(self, cell: str) -> Path:
        assert self.root is not None
        return self.root / "keys" / f"{self.cells[cell]['keys'][:16]}.txt"


# -------------------------------------------------------------------------------------------------- what it is made of


def header_of(suite: Suite, model: Mapping[str, Any]) -> dict[str, Any]:
    """What ``store.json`` holds. ``model`` has the keys ``ref`` (of the results document) and ``zero_shot``."""
    cells = {
        cell.id: {
            "images": len(cell),
            "fingerprint": cell.fingerprint,
            "keys": hashlib.sha256("\n".join(cell.keys).encode("utf-8", "surrogateescape")).hexdigest(),
            "arrays": [name for name in ("logits", "embeddings") if getattr(cell, name)],
        }
        for cell in suite.cells
    }
    header = {
        "format": "digpt-store",
        "version": VERSION,
        "model": model["ref"],
        "zero_shot": model["zero_shot"],
        "protocol": dict(suite.protocol),
        "suite": suite.name,
        "shard": suite.shard or SHARD,
        "class_names": list(suite.class_names),
        "notes": list(suite.notes),
        "cells": cells,
        "views": [_meta(view) for view in suite.views],
    }
    return dict(json.loads(canonical_json(header)))


def _meta(view: AnyView) -> dict[str, Any]:
    """The fields of a view that are no arrays."""
    kind = next(kind for kind, cls in _KINDS.items() if type(view) is cls)
    values = {field.name: getattr(view, field.name) for field in fields(view)}
    plain = {name: value for name, value in values.items() if not isinstance(value, np.ndarray) and name != "answers"}
    return {"kind": kind, **{name: value for name, value in plain.items() if value is not None}}


def view_arrays(views: tuple[AnyView, ...]) -> Arrays:
    """The arrays of all views under ``<number>.<field>``; several answers become their numbers and one list."""
    arrays: Arrays = {}
    for number, view in enumerate(views):
        for field in fields(view):
            value = getattr(view, field.name)
            if isinstance(value, np.ndarray):
                arrays[f"{number}.{field.name}"] = value
        if isinstance(view, View) and view.answers is not None:
            arrays[f"{number}.answer_counts"] = np.array([len(answers) for answers in view.answers], np.int64)
            arrays[f"{number}.answer_labels"] = np.array([a for answers in view.answers for a in answers], np.int64)
    return arrays


def views_from(metas: list[dict[str, Any]], arrays: Mapping[str, NDArray[Any]]) -> tuple[AnyView, ...]:
    """The views again, from their JSON values and `view_arrays`."""
    own: list[dict[str, Any]] = [{} for _ in metas]
    for name, array in arrays.items():
        number, _, field = name.partition(".")
        own[int(number)][field] = array
    views: list[AnyView] = []
    for meta, values in zip(metas, own, strict=True):
        counts, flat = values.pop("answer_counts", None), values.pop("answer_labels", None)
        if counts is not None:
            parts = np.split(flat, np.cumsum(counts)[:-1])
            values["answers"] = tuple(tuple(part.tolist()) for part in parts)
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in meta.items() if k != "kind"}
        kind: Any = _KINDS[meta["kind"]]
        views.append(kind(**plain, **values))
    return tuple(views)


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, as ``path: one there, other here``."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in dict.fromkeys([*one, *other]):
            found += differences(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
        return found
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            line for n, (a, b) in enumerate(zip(one, other, strict=True)) for line in differences(a, b, f"{path}.{n}")
        ]
    return [] if one == other else [f"{path}: {_shown(one)} against {_shown(other)}"]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse_other(found: dict[str, Any], wanted: dict[str, Any], root: Path) -> None:
    """A store answers one question of one model; where the model lies does not matter.

    An earlier version recorded no engine file: its store goes on, and goes on saying nothing of it.
    """
    if "engine" not in found["model"]:
        found["model"]["engine"] = wanted["model"]["engine"] = None
    for header in (found, wanted):
        header["model"] = {**header["model"], "spec": wanted["model"]["spec"], "name": wanted["model"]["name"]}
    differing = sorted(differences(found, wanted), key=_is_consequence)
    lines = [line for line in differing if not line.startswith("model.engine:")]  # it differs where anything does
    if lines and all(_is_fingerprint_of_images(line) for line in lines):
        cells = found["cells"], wanted["cells"]
        changed = next((cell for cell in cells[1] if cells[0][cell] != cells[1][cell]), "a set")
        raise ConfigError(
            f"{root} holds answers about other files: those of {changed} were added, removed or changed since (names, "
            "labels or sizes). Give another --output, or --overwrite to begin again."
        )
    if differing and not lines:
        raise ConfigError(
            f"{root} holds the answers of another build of the engine: the model was exported again since. "
            "Give another --output, or --overwrite to begin again."
        )
    if lines:
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise ConfigError(
            f"{root} holds the answers to another question: {lines[0]}{more}. "
            "Give another --output, or --overwrite to begin again."
        )


def _is_fingerprint_of_images(line: str) -> bool:
    path = line.partition(":")[0]
    return path.startswith(("cells", "protocol.sets")) and path.endswith(".fingerprint")


def _is_consequence(line: str) -> bool:
    """Hashes and numbers of images differ because something else does: it is named first."""
    path = line.partition(":")[0]
    return path.startswith(("cells", "views", "protocol.sets")) or "fingerprint" in path


def _read_header(root: Path) -> dict[str, Any]:
    try:
        header = json.loads((root / "store.json").read_text(encoding="utf-8"))
        version, shard = header["version"], header["shard"]
    except OSError:
        raise DataError(f"There is no store at {root}; an evaluation with --output DIR writes one.") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{root / 'store.json'} is damaged; evaluate again with --overwrite.") from None
    if version != VERSION or not (isinstance(shard, int) and shard >= 1):
        raise DataError(f"{root} is a store of version {version}; this program reads {VERSION}. Evaluate again.")
    return dict(header)


def _unpacked(path: Path) -> Arrays:
    """All arrays of a file; from its bytes, for numpy leaves a damaged file open."""
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        return dict(arrays)


def _packed(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Replace a file all or nothing, whichever other processes write the same."""
    try:
        atomic_write(path, content, shared=True)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}.") from error
