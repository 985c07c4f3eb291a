"""Frozen features of a suite's images: what a model gives for a linear probe, and the file they are kept in.

store = FeatureStore.create(output / "features", suite, features.model())
fill(store, suite, features)
rows = store.array("imagenet/train", "features")  # [N, W], a memory map

Shapes: N images of a cell, W columns of all feature sets.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.engine import Engine
from digpt.errors import DataError
from evaluate.classify import Classifier
from evaluate.store import Arrays, Store
from evaluate.suite import Cell


@dataclass(frozen=True)
class Features(Classifier):
    """Stands where a classifier would, and keeps the encoder's features instead of answers.

    ``rows`` gives ``[B, W]`` and which columns are which feature set, as `digpt.probe_features.block_rows` does.
    """

    rows: Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], dict[str, slice]]] | None = None
    dtype: str = "float32"

    def answer(self, crops: NDArray[np.uint8], cell: Cell) -> dict[str, NDArray[Any]]:
        assert self.rows is not None
        return {"features": self.rows(crops)[0].astype(self.dtype)}

    def sets(self) -> dict[str, slice]:
        """Which columns are which feature set: the same for every image, so that a black one tells."""
        size = self.engine.info.preprocess.size
        assert self.rows is not None
        return self.rows(np.zeros((1, size, size, 3), np.uint8))[1]


def features_of(engine: Engine, dtype: str) -> Features:
    """The feature sets of a model: of its blocks where torch runs it, else its pooled embedding alone."""
    model = getattr(engine.runtime, "model", None)
    if model is None:

        def rows(crops: NDArray[np.uint8]) -> tuple[NDArray[np.float32], dict[str, slice]]:
            embeddings = engine.embed_images(crops, normalize=False, batch_size=len(crops))
            return embeddings, {"embedding": slice(0, engine.info.dim)}
    else:
        from digpt.probe_features import block_rows

        def rows(crops: NDArray[np.uint8]) -> tuple[NDArray[np.float32], dict[str, slice]]:
            return block_rows(model, crops)

    return Features(engine, "", 0, rows=rows, dtype=dtype)


class FeatureStore(Store):
    """Features in one file beside the store, ``<root>.npy``: ``[N, W]`` of all cells, one after the other.

    Training reads the file as it lies, so that the features, by far the most that a probe keeps, are on disk once. The
    store's own shards are empty: each is the mark that its rows are written. One process at a time.
    """

    @property
    def file(self) -> Path:
        assert self.root is not None
        return self.root.with_suffix(".npy")

    def has(self, cell: str, shard: int) -> bool:
        """Whether the rows are there: marked, in a file that was not cut short since."""
        return super().has(cell, shard) and self._held() is not None

    def put(self, cell: str, shard: int, arrays: Arrays) -> None:
        """Write the rows of a shard, then its mark.

        Raises:
            DataError: they cannot be written.
        """
        rows = arrays["features"]
        try:
            held = self._opened(rows.shape[1], rows.dtype)
            first = self._first(cell) + self.rows_of(cell, shard).start
            with open(self.file, "r+b") as file:  # not through the map, where a full disk kills the process
                file.seek(held.offset + first * held.strides[0])
                file.write(rows.tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{self.file} cannot be written: {error.strerror}.") from error
        super().put(cell, shard, {})

    def array(self, cell: str, name: str) -> NDArray[Any]:
        """The features of all of a cell's images ``[N, W]``, mapped and not read.

        Raises:
            DataError: rows are missing, or the file is damaged.
        """
        held, first = self._held(), self._first(cell)
        if held is None:
            raise DataError(f"{self.file} is damaged: delete it and run the probe again.")
        if not all(super(FeatureStore, self).has(cell, shard) for shard in self.shards(cell)):
            raise DataError(f"{self.file} lacks features of {cell}: run the probe again, it continues.")
        return held[first : first + self.cells[cell]["images"]]

    def _held(self) -> np.memmap[Any, Any] | None:
        """The file, mapped; None where there is none, or not all of it."""
        try:
            held = np.load(self.file, mmap_mode="r")
        except (OSError, EOFError, ValueError):
            return None
        return held if len(held) == self._total else None

    def _opened(self, width: int, dtype: np.dtype[Any]) -> np.memmap[Any, Any]:
        """The file, made anew where it is not whole: then no row is marked as written."""
        assert self.root is not None
        held = self._held()
        if held is None:
            shutil.rmtree(self.root / "cells", ignore_errors=True)
            return np.lib.format.open_memmap(self.file, mode="w+", dtype=dtype, shape=(self._total, width))
        if (held.shape[1:], held.dtype) != ((width,), dtype):
            raise DataError(f"{self.file} holds other features: begin again with --overwrite.")
        return held

    @property
    def _total(self) -> int:
        return sum(cell["images"] for cell in self.cells.values())

    def _first(self, cell: str) -> int:
        """The row of the file at which a cell begins."""
        cells = self.cells
        return sum(cells[name]["images"] for name in list(cells)[: list(cells).index(cell)])
