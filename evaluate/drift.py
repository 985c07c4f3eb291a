"""Did the numbers drift? One model's answers on several engines, paired image by image with those of a reference.

    drift = drifts(reference, others)
    [one.verdict for one in drift.engines]

What differs between runs of the same weights comes from the engine, its precision or the machine. Engines that compute
in float32 must give every cell's error within `POINTS`; coarser ones must not shift the error of the whole sweep (or,
where there is none, of a whole set): the 95 % paired bootstrap interval of the difference contains zero, and ends
within `EQUIVALENT` points of it; where it ends beyond, the images are too few to tell. Single cells of a sweep are
shown with intervals and take no part then, since of 75 intervals a few leave out zero by chance.

Every difference is the other engine's error minus the reference's, as a fraction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.errors import ConfigError
from digpt.results import other_answers, with_fingerprint
from digpt.shift import Shift
from digpt.significance import difference
from evaluate.measure import Bootstraps, answers_of
from evaluate.paired import Errors, sweep_rows
from evaluate.progress import Progress, no_progress
from evaluate.store import Store
from evaluate.suite import ProbeView, View

POINTS = 0.1  # of a cell's raw error, that engines of float32 may differ by
EQUIVALENT = 0.5  # points that the error of a coarser engine is to be shown not to shift by
FLOAT32 = ("fp32", "float32")
_ROUNDING = 1e-9  # points; a difference that equals the bound but for rounding is within it


@dataclass(frozen=True)
class Drift:
    """One engine against the reference. ``model`` is as the results document has it.

    ``cells`` are all sets, parts of sets and cells of sweeps; ``means`` are by corruption, and of each whole sweep.
    """

    model: Mapping[str, Any]
    cells: tuple[Shift, ...]
    means: tuple[Shift, ...]

    @property
    def sweeps(self) -> tuple[Shift, ...]:
        """The mean over all cells of each sweep."""
        return tuple(mean for mean in self.means if mean.split == "mean")

    @property
    def sets(self) -> tuple[Shift, ...]:
        """The cells that belong to no sweep."""
        swept = {mean.dataset for mean in self.means}
        return tuple(cell for cell in self.cells if cell.dataset not in swept)

    @property
    def exact(self) -> bool:
        """Whether the engine computes in float32, so that every cell is held to `POINTS`."""
        return self.model["precision"] in FLOAT32

    @property
    def engine(self) -> str:
        backend, precision = self.model["backend"], self.model["precision"]
        return backend if backend.endswith(precision) else f"{backend} {precision}"

    @property
    def judged(self) -> tuple[Shift, ...]:
        """What the verdict is about: every cell, or of coarser engines the sweeps (without one the whole sets)."""
        whole = tuple(cell for cell in self.cells if "/" not in cell.split)
        return self.cells if self.exact else self.sweeps or whole or self.cells

    @property
    def failures(self) -> tuple[Shift, ...]:
        if self.exact:
            return tuple(shift for shift in self.judged if abs(shift.points) > POINTS + _ROUNDING)
        return tuple(shift for shift in self.judged if shift.beyond > _ROUNDING)

    @property
    def undecided(self) -> tuple[Shift, ...]:
        """What shows no shift, and has too few images to rule out a large one."""
        if self.exact or self.failures:
            return ()
        return tuple(shift for shift in self.judged if shift.reach > EQUIVALENT + _ROUNDING)

    @property
    def word(self) -> str:
        """The verdict in short."""
        return "drifted" if self.failures else "too few images to tell" if self.undecided else "same"

    @property
    def largest(self) -> Shift:
        """The cell that differs most."""
        return max(self.cells, key=lambda cell: abs(cell.difference))

    @property
    def changed(self) -> tuple[int, int]:
        """How many predictions differ, of how many."""
        return sum(cell.changed for cell in self.cells), sum(cell.n for cell in self.cells)

    @property
    def verdict(self) -> str:
        """One sentence: passed, or what is off and by how much."""
        failed = self.failures
        if self.exact:
            most = f"the largest difference is {abs(self.largest.points):.2f} points, of {self.largest.id}"
            if failed:
                return (
                    f"{self.engine}: {len(failed)} of {len(self.cells)} cells are more than {POINTS} point off; {most}"
                )
            return f"{self.engine}: every one of {len(self.cells)} cells is within {POINTS} point; {most}"
        said = "; ".join(_sentence(shift) for shift in failed or self.undecided or self.judged)
        if failed:
            return f"{self.engine}: the error shifted; {said}"
        if self.undecided:
            return f"{self.engine}: too few images to rule out a shift of {EQUIVALENT} points; {said}"
        return f"{self.engine}: no shift of the error is shown; {said}"


@dataclass(frozen=True)
class Drifts:
    """All engines against one reference."""

    reference: Mapping[str, Any]
    protocol: Mapping[str, Any]
    engines: tuple[Drift, ...]

    @property
    def passed(self) -> bool:
        return not any(engine.failures for engine in self.engines)


def _sentence(shift: Shift) -> str:
    low, high = (100 * end for end in shift.ci95)
    zero = f"leaves out zero by {shift.beyond:.3f} points" if shift.beyond else "contains zero"
    return f"{shift.id} differs by {shift.points:+.3f} points, and the paired interval [{low:+.3f}, {high:+.3f}] {zero}"


def drifts(reference: Store, others: Sequence[Store], progress: Progress = no_progress) -> Drifts:
    """Compare runs of one model, all comparable with the reference (see `evaluate.compare.refuse_incomparable`).

    Raises:
        ConfigError: other weights, or nothing that is classified.
        DataError: a damaged shard.
    """
    model = reference.header["model"]
    for other in others:
        found = other.header["model"]
        if found["fingerprint"] != model["fingerprint"]:
            raise ConfigError(
                f"--same compares engines of one model, but {found['name']} ({found['fingerprint'][:19]}) has other "
                f"weights than {model['name']} ({model['fingerprint'][:19]}); leave --same out."
            )
        if options := other_answers(model, found):
            raise ConfigError(
                f"--same compares engines, but the evaluations had other options ({', '.join(options)}): "
                "evaluate alike, or leave --same out."
            )
    engines = []
    for number, other in enumerate(others):
        progress("engines", number, len(others))
        engines.append(_drift(reference, other))
    return Drifts(model, with_fingerprint(reference.header["protocol"]), tuple(engines))


def _drift(reference: Store, other: Store) -> Drift:
    bootstraps = Bootstraps(int(reference.header["protocol"].get("seed") or 0))
    theirs = {view.id for view in _classified(other)}
    views = [view for view in _classified(reference) if view.id in theirs]
    if not views:
        raise ConfigError("--same compares the classes that images are given, and these evaluations give none.")
    cells: list[Shift] = []
    sweeps: dict[str, list[tuple[Errors, int]]] = {}
    for view in views:
        changed = int((_first(reference, view) != _first(other, view)).sum())
        wrong = [~answers_of(store, view).correct for store in (reference, other)]
        diff = wrong[1].astype(np.float64) - wrong[0]
        found = difference(float(diff.mean()), bootstraps.of(len(diff), view.groups).means(diff))
        errors = float(wrong[0].mean()), float(wrong[1].mean())
        cells.append(Shift(view.dataset, view.split, len(diff), *errors, found.value, found.ci95, changed))
        if view.corruption is not None:
            names = reference.keys(view.cell)
            keys = tuple(names[row] for row in view.rows)
            sweeps.setdefault(view.dataset, []).append((Errors(view, keys, wrong[0], wrong[1]), changed))
    return Drift(other.header["model"], tuple(cells), tuple(_means(sweeps, bootstraps)))


def _classified(store: Store) -> list[View]:
    return [view for view in store.views if isinstance(view, View) and not isinstance(view, ProbeView)]


def _first(store: Store, view: View) -> NDArray[np.int64]:
    """The class that each image of a view is given ``[n]``."""
    return np.asarray(store.scores(view).argmax(axis=1), np.int64)


def _means(sweeps: Mapping[str, Sequence[tuple[Errors, int]]], bootstraps: Bootstraps) -> Iterator[Shift]:
    for dataset, members in sweeps.items():
        for row in sweep_rows(dataset, [errors for errors, _ in members], None, bootstraps):
            if row.metric == "error":
                changed = sum(n for errors, n in members if row.split in ("mean", (errors.view.corruption or ("",))[0]))
                yield Shift(dataset, row.split, row.n, row.a, row.b, row.difference, row.ci95, changed)


def to_json(found: Drifts) -> dict[str, Any]:
    """All figures as JSON values; errors and differences are fractions."""
    return {
        "schema_version": 1,
        "reference": dict(found.reference),
        "protocol": {key: found.protocol[key] for key in ("name", "fingerprint")},
        "passed": found.passed,
        "engines": [
            {
                "engine": one.engine,
                "model": dict(one.model),
                "passed": not one.failures,
                "decided": not one.undecided,
                "verdict": one.verdict,
                "bound_points": POINTS if one.exact else None,
                "predictions_changed": one.changed[0],
                "predictions": one.changed[1],
                "means": [_figures(shift) for shift in one.means],
                "cells": [_figures(shift) for shift in one.cells],
            }
            for one in found.engines
        ],
    }


def _figures(shift: Shift) -> dict[str, Any]:
    return {**asdict(shift), "ci95": list(shift.ci95)}
