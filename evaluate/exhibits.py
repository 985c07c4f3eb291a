"""Chooses what an evaluation shows beside its numbers, from the store and the images: see `digpt.exhibits`.

    write_exhibits(exhibits_of(store, suite, engine), output / EXHIBITS_NAME)

The rules are the same for every model, so that nothing is picked to please: the most confident mistakes of each set,
and of a sweep pictures that are right without corruption, at even ranks of the model's confidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from digpt.calibration import reliability
from digpt.engine import Engine
from digpt.exhibits import Exhibit, Exhibits, SetExhibits, SweepExhibits, picture_of
from digpt.results import protocol_fingerprint
from evaluate.compute import Pixels, loading
from evaluate.measure import BINS, Answered, answers_of
from evaluate.store import Store
from evaluate.suite import Cell, ProbeView, Suite, View

MISTAKES = 4  # of each set
PICTURES = 4  # of a sweep, each under all corruptions


def exhibits_of(store: Store, suite: Suite, engine: Engine) -> Exhibits:
    """The exhibits of a finished store, whose images ``suite`` reads and ``engine`` prepares.

    Raises:
        DataError: an image cannot be read, or a shard is damaged.
    """
    cells = {cell.id: cell for cell in suite.cells}
    asked = [view for view in store.views if isinstance(view, View) and not isinstance(view, ProbeView)]
    whole = [view for view in asked if view.corruption is None and "/" not in view.split]
    swept: dict[str, list[View]] = {}
    for view in asked:
        if view.corruption is not None:
            swept.setdefault(view.dataset, []).append(view)
    model = store.header["model"]
    return Exhibits(
        model=model["fingerprint"],
        backend=model["backend"],
        protocol=protocol_fingerprint(store.header["protocol"]),
        sets=tuple(_set(store, view, cells, engine) for view in whole),
        sweeps=tuple(_sweep(store, views, asked, cells, engine) for views in swept.values()),
    )


def _set(store: Store, view: View, cells: Mapping[str, Cell], engine: Engine) -> SetExhibits:
    answered = answers_of(store, view)
    diagram = reliability(answered.confidence, answered.correct, BINS)
    filled = np.flatnonzero(diagram.count)
    wrong = np.flatnonzero(~answered.correct)
    return SetExhibits(
        dataset=view.dataset,
        split=view.split,
        n=len(view.rows),
        wrong=len(wrong),
        confidence=tuple(_rounded(diagram.confidence[filled])),
        accuracy=tuple(_rounded(diagram.accuracy[filled])),
        count=tuple(diagram.count[filled].tolist()),
        mistakes=tuple(_shown(store, view, answered, _mistakes(view, answered), cells, engine)),
    )


def _rounded(values: NDArray[np.float64]) -> list[float]:
    """Shares to a millionth, so that the last bits of a mean do not change the file."""
    return [round(float(value), 6) for value in values]


def _mistakes(view: View, answered: Answered) -> list[int]:
    """Rows of the most confident wrong answers, no true class twice."""
    chosen: dict[int, int] = {}
    for row in np.argsort(-answered.confidence, kind="stable").tolist():
        if not answered.correct[row] and len(chosen) < MISTAKES:
            chosen.setdefault(int(view.labels[row]), row)
    return list(chosen.values())


def _sweep(
    store: Store, views: list[View], asked: list[View], cells: Mapping[str, Cell], engine: Engine
) -> SweepExhibits:
    highest = max(view.corruption[1] for view in views if view.corruption)
    hardest = [view for view in views if view.corruption and view.corruption[1] == highest]
    clean = next((view for view in asked if view.id == views[0].clean), None)
    if clean is None:
        first, shown = hardest[0], []
        keys = [store.keys(first.cell)[of_cell] for of_cell in first.rows[:PICTURES].tolist()]
    else:
        answered = answers_of(store, clean)
        shown = list(_shown(store, clean, answered, _typical(answered), cells, engine))
        keys = [exhibit.key for exhibit in shown]
    corrupted: list[Exhibit] = []
    for view in hardest:
        names = store.keys(view.cell)
        position = {names[of_cell]: row for row, of_cell in enumerate(view.rows.tolist())}
        rows = [position[key] for key in keys if key in position]
        corrupted += _shown(store, view, answers_of(store, view), rows, cells, engine)
    return SweepExhibits(views[0].dataset, tuple(shown), tuple(corrupted))


def _typical(answered: Answered) -> list[int]:
    """Rows at even ranks of confidence among those that are right; among all, where none is."""
    rows = np.flatnonzero(answered.correct) if answered.correct.any() else np.arange(len(answered.correct))
    ranked = rows[np.argsort(-answered.confidence[rows], kind="stable")]
    count = min(PICTURES, len(ranked))
    return ranked[(np.arange(count) * 2 + 1) * len(ranked) // (2 * count)].tolist()


def _shown(
    store: Store, view: View, answered: Answered, rows: list[int], cells: Mapping[str, Cell], engine: Engine
) -> Iterator[Exhibit]:
    """The exhibits of a view's ``rows``, with the pixels that the model was given."""
    best = store.scores(view)[rows].argmax(axis=1)
    given = best if view.classes is None else view.classes[best]
    names, keys = store.header["class_names"], store.keys(view.cell)
    load = loading(engine, cells[view.cell])
    for row, answer in zip(rows, given.tolist(), strict=True):
        of_cell = int(view.rows[row])
        pixels: Pixels = load(of_cell)
        yield Exhibit(
            split=view.split,
            key=keys[of_cell],
            label=names[int(view.labels[row])],
            given=names[answer],
            right=bool(answered.correct[row]),
            confidence=round(float(answered.confidence[row]), 6),
            picture=picture_of(pixels),
        )
