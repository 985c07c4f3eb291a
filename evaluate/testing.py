"""Stores of made-up answers, for tests of what is computed from them: which images a model gets right is chosen.

    stores = Stores(tmp_path)
    a = stores.write("a", one_set(), {"toy/val": answers(wrong=[3, 7])})

Image ``i`` has the label ``i`` modulo `CLASSES`. No model, no images and no files but the store's.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.results import ModelRef
from evaluate.store import STORE_NAME, Store
from evaluate.suite import Cell, KnnView, Suite, View

CLASSES = 6
N = 60  # images of a cell unless another number is given
# Which images `Stores.pair` gets wrong: only A is right on 9 of them, only B on 2, neither on 2.
WRONG_A, WRONG_B = (9, 10, 11, 12), (*range(9), 11, 12)


class NoImages:
    """A source that nobody may read."""

    def __len__(self) -> int:
        return 0

    def read(self, index: int) -> tuple[bytes, int]:
        """Always raises."""
        raise AssertionError("the store holds all that is needed")


def cell(name: str, n: int = N, keys: Sequence[str] = (), **options: Any) -> Cell:
    """A cell of ``n`` images, ``image-0`` and so on, or of those called ``keys``."""
    names = tuple(keys) or tuple(f"image-{number}" for number in range(n))
    return Cell(name, NoImages(), np.arange(len(names)), names, f"sha256:{name}", **options)


def labels_of(n: int) -> NDArray[np.int64]:
    """The labels of the images 0 to ``n - 1``."""
    return (np.arange(n) % CLASSES).astype(np.int64)


def view(name: str, n: int = N, split: str = "", rows: NDArray[np.int64] | None = None, **options: Any) -> View:
    """The question of the cell ``name``, or of the ``rows`` of it, as ``split``."""
    rows = np.arange(n, dtype=np.int64) if rows is None else rows
    dataset, _, of_cell = name.partition("/")
    return View(dataset, split or of_cell, name, rows, labels_of(n)[rows], **options)


def suite_of(cells: Sequence[Cell], views: Sequence[View | KnnView], **protocol: Any) -> Suite:
    """A suite of `CLASSES` classes with seed 3; ``protocol`` adds to its protocol."""
    names = tuple(f"class {number}" for number in range(CLASSES))
    return Suite("toy", names, tuple(cells), tuple(views), {"name": "toy", "seed": 3, **protocol})


def one_set(**options: Any) -> Suite:
    """The single set ``toy/val``; ``options`` are those of its view."""
    return suite_of([cell("toy/val")], [view("toy/val", **options)])


def several_sets() -> Suite:
    """Three sets, a part of one, and a sweep of two corruptions at two severities."""
    cells = [cell("toy/val"), cell("toy/flat"), cell("other/test")]
    views: list[View | KnnView] = [view(one.id) for one in cells]
    views.append(view("toy/flat", split="flat/part", rows=np.arange(0, N, 2, dtype=np.int64)))
    for name, severity in itertools.product(("fog", "snow"), (1, 3)):
        swept = cell(f"toy-c/{name}/{severity}")
        cells.append(swept)
        views.append(view(swept.id, corruption=(name, severity), clean="toy/val"))
    return suite_of(cells, views)


def answers(wrong: Sequence[int] = (), n: int = N) -> NDArray[np.bool_]:
    """Which images are right, ``[n]``: all but ``wrong``."""
    right = np.ones(n, np.bool_)
    right[list(wrong)] = False
    return right


def all_answers(wrong: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.bool_]]:
    """What a model answers to `several_sets`, by cell: all right but ``wrong``."""
    return {one.id: answers(wrong.get(one.id, ())) for one in several_sets().cells}


def logits_of(right: NDArray[np.bool_], scale: float = 3.0) -> NDArray[np.float32]:
    """Logits ``[n, C]``: ``scale`` for the label where ``right``, otherwise for the next class; 0 for the rest."""
    labels = labels_of(len(right))
    rows = np.zeros((len(right), CLASSES), np.float32)
    rows[np.arange(len(right)), np.where(right, labels, (labels + 1) % CLASSES)] = scale
    return rows


@dataclass(frozen=True)
class Stores:
    """Writes what evaluations of made-up models leave, a directory each below ``root``."""

    root: Path

    def write(
        self,
        directory: str,
        suite: Suite,
        right: Mapping[str, NDArray[np.bool_]],
        embeddings: Mapping[str, NDArray[np.float32]] | None = None,
        **model: Any,
    ) -> Path:
        """Write the store of a model; return its directory.

        Args:
            directory: its name; also the model's name and fingerprint.
            suite: what was asked.
            right: which images the model gets right, by cell that keeps logits.
            embeddings: by cell that keeps them.
            model: fields of `ModelRef` that are to differ.
        """
        values: dict[str, Any] = {"spec": f"{directory}.pt", "fingerprint": f"sha256:{directory}", "backend": "torch"}
        values |= {"name": directory, "precision": "float32", "has_text": False, "preprocess": {}, "templates": ()}
        ref = ModelRef(**{**values, "classifier": "linear head", **model})
        store = Store.create(self.root / directory / STORE_NAME, suite, {"ref": asdict(ref), "zero_shot": None})
        for one in suite.cells:
            arrays: dict[str, NDArray[Any]] = {}
            if one.logits:
                arrays["logits"] = logits_of(right[one.id])
            if one.embeddings:
                arrays["embeddings"] = (embeddings or {})[one.id]
            store.put(one.id, 0, arrays)
        return self.root / directory

    def pair(self, **model: Any) -> tuple[Path, Path]:
        """Models A and B on `one_set`, wrong on `WRONG_A` and `WRONG_B`; ``model`` as in `write`, of B."""
        a = self.write("a", one_set(), {"toy/val": answers(WRONG_A)})
        return a, self.write("b", one_set(), {"toy/val": answers(WRONG_B)}, **model)
