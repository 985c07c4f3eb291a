"""Is model B better or worse than model A? A paired comparison of two evaluations, and a gate for releases.

    python -m evaluate.compare runs/released runs/candidate
    python -m evaluate.compare runs/released runs/candidate --output runs/comparison --fail-if-worse --margin 0.5
    python -m evaluate.compare runs/torch runs/onnx runs/openvino runs/openvino-bf16 --same

A and B are what two evaluations of the same protocol were given as --output; their stores hold every answer, so that
neither models nor data are needed.

One test per set forms the family that p-values are adjusted for (Holm): each whole set by top-1, each sweep of
corruptions by its mean error, each segmented set by mIoU. Independent images: McNemar's exact test. Images that belong
together, such as drawings of one concept, and means over corruptions: a paired permutation test. mIoU: the paired
bootstrap. Intervals are 95 % paired bootstrap intervals.

--fail-if-worse ends with exit code 1 where B is significantly worse on any set of the family (adjusted p below
--alpha). With --margin M also where B may be worse by more than M points, which is where the interval's lower end lies
below -M: a non-inferiority test of each set at the one-sided level of 2.5 %. Passing claims non-inferiority on every
set at once, so that this part needs no adjustment. A loss that is certain but within the margin fails by the first
test alone; --alpha 0 leaves that out.

--same asks instead whether one model answers alike on several engines, of which the first is the reference: exit code
1 where an engine of float32 gives any cell another error by more than 0.1 points, or where a coarser one shifts the
mean error of a sweep (its 95 % paired interval leaves out zero). See evaluate.drift.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from digpt.calibration import Reliability
from digpt.cli import Command
from digpt.errors import ConfigError, DataError, near_misses
from digpt.files import atomic_json, atomic_write
from digpt.report import write_page
from digpt.results import other_answers, with_fingerprint
from digpt.significance import holm
from evaluate.cli import GROUPS, TABLE_WIDTH
from evaluate.compare_report import page
from evaluate.compare_table import largest, points, render, shown_p
from evaluate.drift import drifts
from evaluate.drift_report import publish
from evaluate.measure import ALEXNETS, Bootstraps, answers_of
from evaluate.paired import (
    PRIMARY,
    ClassRow,
    Comparison,
    Errors,
    Row,
    class_rows,
    diagram,
    knn_rows,
    mask_rows,
    sweep_rows,
    view_rows,
)
from evaluate.progress import Progress, bars, no_progress
from evaluate.store import Store, differences, view_arrays
from evaluate.suite import AnyView, KnnView, MaskView, ProbeView

COMMAND = Command("evaluate.compare", __doc__, GROUPS, {1: "B is worse (--fail-if-worse), or engines differ (--same)"})
SCHEMA_VERSION = 1
JSON_NAME, CSV_NAME, PAGE_NAME = "compare.json", "per_class.csv", "compare.html"
_SHOWN = 5  # differing protocol keys that a refusal names


@dataclass(frozen=True)
class CompareOptions:
    """Options of the comparison."""

    a: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """What the evaluation of the model to compare with was given as --output."""
    b: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """What the evaluation of the new model was given as --output."""
    more: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[B ...]")] = ()
    """With --same: the evaluations on further engines."""
    same: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """All are one model on several engines, A's being the reference: exit code 1 where the numbers drifted."""
    output: Path | None = None
    """Directory for compare.json, per_class.csv and compare.html (default: keep nothing)."""
    fail_if_worse: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[METRIC ...]")] = None
    """Release gate: exit code 1 where B is significantly worse than A on any set. Metrics make up the family of tests
    instead of top1 and error, such as knn_top1_k20."""
    alpha: float = 0.05
    """B is significantly worse where the Holm-adjusted p is below; 0 leaves this test out of the gate."""
    margin: float | None = None
    """Points: the gate fails too where the lower end of a difference's 95 % interval is below -MARGIN, that is unless B
    is shown not to be worse by more than this (a non-inferiority test)."""
    classes: int = 5
    """Classes that gained and that lost the most, to show of each set; all are in per_class.csv."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON document on standard output, and nothing else there."""


@dataclass(frozen=True)
class Gate:
    """What the release gate found: one sentence per set that failed."""

    alpha: float
    margin: float | None
    sets: int
    failures: tuple[str, ...]

    @property
    def verdict(self) -> str:
        if not self.failures:
            return "gate passed: B is worse on no set"
        return "\n  ".join([f"gate failed on {len(self.failures)} of {self.sets} sets:", *self.failures])


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print and judge; return the exit code."""
    return COMMAND.run(CompareOptions, argv, _run)


def _run(options: CompareOptions) -> int:
    _check(options)
    if options.same:
        return _run_same(options)
    with redirect_stdout(sys.stderr), bars() as progress:
        a, b = open_pair(options.a, options.b)
        comparison = compare(a, b, metrics=options.fail_if_worse or (), progress=progress)
    gate = None if options.fail_if_worse is None else judge(comparison, options.alpha, options.margin)
    document = to_json(comparison, gate, options.classes)
    if options.output is not None:
        atomic_json(options.output / JSON_NAME, document)
        atomic_write(options.output / CSV_NAME, per_class_csv(comparison.classes).encode("utf-8", "replace"))
        failures = None if gate is None else gate.failures
        write_page(options.output / PAGE_NAME, page(comparison, options.alpha, options.margin, failures))
    if options.json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
        console.print(render(comparison, options.classes))
        if options.output is not None:
            console.print(f"written to {options.output}", highlight=False, markup=False, soft_wrap=True)
    if gate is None:
        return 0
    print(gate.verdict, file=sys.stderr if options.json else sys.stdout)
    return int(bool(gate.failures))


def _run_same(options: CompareOptions) -> int:
    with redirect_stdout(sys.stderr), bars() as progress:
        pairs = [open_pair(options.a, other) for other in (options.b, *options.more)]
        found = drifts(pairs[0][0], [other for _, other in pairs], progress)
    publish(found, options.output, as_json=options.json)
    return int(not found.passed)


def _check(options: CompareOptions) -> None:
    if options.more and not options.same:
        raise ConfigError("Two models are compared at a time; one model on several engines: add --same.")
    if options.same and options.fail_if_worse is not None:
        raise ConfigError("--same is a gate of its own: leave --fail-if-worse out.")
    if not 0 <= options.alpha < 1:
        raise ConfigError(f"--alpha {options.alpha} must be at least 0 and below 1, such as 0.05.")
    if options.margin is not None and options.fail_if_worse is None:
        raise ConfigError("--margin belongs to --fail-if-worse: give both.")
    if options.margin is not None and not 0 <= options.margin <= 100:
        raise ConfigError(f"--margin {options.margin} must be 0 to 100 points.")
    if options.classes < 0:
        raise ConfigError(f"--classes {options.classes} must be at least 0.")
    if options.output is None:
        return
    if options.output.resolve() in [path.resolve() for path in (options.a, options.b, *options.more)]:
        raise ConfigError(
            f"--output {options.output} holds an evaluation, whose files would be replaced; give another."
        )
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {options.output} cannot be a directory: {error.strerror}.") from error


# ------------------------------------------------------------------------------------------------ what can be compared


def open_pair(a: Path, b: Path) -> tuple[Store, Store]:
    """Open the stores of two evaluations that were asked the same.

    Raises:
        DataError: no store, or one that is damaged or not finished.
        ConfigError: the protocols differ, or the images or labels behind them.
    """
    stores = Store.open(a), Store.open(b)
    for path, store in zip((a, b), stores, strict=True):
        if missing := len(store.missing()):
            raise DataError(f"{path} lacks {missing} shards: run its evaluation again, it continues.")
        if store.header["zero_shot"] and store.matrix is None:
            raise DataError(f"{path} lacks its class matrix: run its evaluation again, it continues.")
    refuse_incomparable(*stores)
    return stores


def refuse_incomparable(a: Store, b: Store) -> None:
    """Raise ConfigError where two stores do not answer the same question about the same images."""
    lines = differences(a.header["protocol"], b.header["protocol"])
    if lines:
        more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise ConfigError(
            "A and B were evaluated by different protocols, so their numbers cannot be compared: "
            f"{'; '.join(lines[:_SHOWN])}{more}. Evaluate both with the same options and data."
        )
    for cell in (cell for cell in a.cells if cell in b.cells):
        if any(a.cells[cell][key] != b.cells[cell][key] for key in ("images", "keys", "fingerprint")):
            raise ConfigError(f"{cell} holds other images in A than in B: evaluate both on the same files.")
    other = _named(b)
    for key, (meta, view) in _named(a).items():
        found = other.get(key)
        if found is not None and (meta != found[0] or not _same_arrays(view, found[1])):
            raise ConfigError(f"{view.dataset}/{view.split} has other labels in A than in B: evaluate both again.")
    if a.header["class_names"] != b.header["class_names"]:
        raise ConfigError("A and B were asked for other class names: evaluate both on the same data.")
    if not set(_named(a)) & set(other):
        raise ConfigError(
            "A and B answer nothing in common: one classifies, the other has neither head nor text tower. "
            "Compare both by evaluate.knn."
        )


def _named(store: Store) -> dict[tuple[str, str, str], tuple[dict[str, Any], AnyView]]:
    metas = store.header["views"]
    return {(m["kind"], m["dataset"], m["split"]): (m, v) for m, v in zip(metas, store.views, strict=True)}


def _same_arrays(one: AnyView, other: AnyView) -> bool:
    a, b = view_arrays((one,)), view_arrays((other,))
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def _notices(a: Store, b: Store) -> Iterator[str]:
    one, other = a.header["model"], b.header["model"]
    if one["fingerprint"] == other["fingerprint"]:
        options = ", ".join(other_answers(one, other))
        cause = f"options: {options}" if options else "the backend, the precision or the machine; see --same"
        yield f"A and B are the same model, fingerprint {one['fingerprint'][:19]}: what differs comes from {cause}."
    if one.get("classifier") != other.get("classifier"):
        by = (one.get("classifier") or "nothing", other.get("classifier") or "nothing")
        yield f"A classifies by {by[0]}, B by {by[1]}."
    if a.header["protocol"].get("limit") or a.header["protocol"].get("preview"):
        yield "Both were asked about a subset of the images (--limit or --preview): a release wants all of them."
    for name, lone in (("A", set(_named(a)) - set(_named(b))), ("B", set(_named(b)) - set(_named(a)))):
        if lone:
            sets = sorted(f"{dataset}/{split} ({kind})" for kind, dataset, split in lone)
            more = f" and {len(sets) - 3} more" if len(sets) > 3 else ""
            yield f"Only {name} answers {', '.join(sets[:3])}{more}: left out."


def compare(a: Store, b: Store, *, metrics: Sequence[str] = (), progress: Progress = no_progress) -> Comparison:
    """Compare two comparable stores (see `open_pair`).

    The family of tests is one per set: the whole sets (those without a slash in their split) by top-1 or mIoU, and each
    sweep by its mean error. ``metrics`` names others instead, such as ``knn_top1_k20``.

    Raises:
        ConfigError: a metric that no whole set is tested by.
        DataError: a damaged shard.
    """
    bootstraps = Bootstraps(int(a.header["protocol"].get("seed") or 0))
    rows: list[Row] = []
    classes: list[ClassRow] = []
    diagrams: dict[str, tuple[Reliability, Reliability]] = {}
    cells: list[Errors] = []
    other = _named(b)
    views = [view for key, (_, view) in _named(a).items() if key in other]
    names: dict[str, tuple[str, ...]] = {}  # of images, once for all cells that hold the same
    for number, view in enumerate(views):
        progress("numbers", number, len(views))
        if isinstance(view, KnnView):
            rows += knn_rows(a, b, view, bootstraps)
            continue
        if isinstance(view, MaskView):
            rows += mask_rows(a, b, view, bootstraps)
            continue
        one, two = answers_of(a, view), answers_of(b, view)
        rows += view_rows(view, one, two, bootstraps)
        digest = a.cells[view.cell]["keys"]
        keys = names[digest] if digest in names else names.setdefault(digest, a.keys(view.cell))
        cells.append(Errors(view, tuple(keys[row] for row in view.rows), ~one.correct, ~two.correct))
        if view.corruption is None:
            if not isinstance(view, ProbeView):
                diagrams[view.id] = diagram(one), diagram(two)
            if view.answers is None:
                classes += class_rows(view, one.correct, two.correct, a.header["class_names"])
    rows += _sweeps(cells, bootstraps)
    progress("numbers", len(views), len(views))
    chosen, adjusted = _adjusted(rows, metrics)
    protocol, notices = with_fingerprint(a.header["protocol"]), tuple(_notices(a, b))
    models = a.header["model"], b.header["model"]
    return Comparison(*models, protocol, chosen, adjusted, tuple(classes), diagrams, notices)


def _sweeps(answers: Sequence[Errors], bootstraps: Bootstraps) -> Iterator[Row]:
    """The figures of each sweep; ImageNet-C's need the clean images too, where they are there."""
    plain = {errors.view.id: errors for errors in answers if errors.view.corruption is None}
    sweeps: dict[str, list[Errors]] = {}
    for errors in answers:
        if errors.view.corruption is not None:
            sweeps.setdefault(errors.view.dataset, []).append(errors)
    for dataset, cells in sweeps.items():
        clean = plain.get(cells[0].view.clean) if dataset == ALEXNETS else None
        yield from sweep_rows(dataset, cells, clean, bootstraps)


def _adjusted(rows: Sequence[Row], metrics: Sequence[str]) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """Mark the family and adjust its p-values by Holm's method."""
    tested = {row.metric for row in rows if row.whole}
    for metric in metrics:
        if metric not in tested:
            valid = ", ".join(sorted(tested))
            raise ConfigError(f"No set is tested by {metric!r}.{near_misses(metric, tested)} Valid: {valid}.")
    chosen = tuple(dict.fromkeys(metrics)) or tuple(metric for metric in PRIMARY if metric in tested)
    members = [number for number, row in enumerate(rows) if row.metric in chosen and row.whole]
    adjusted = dict(zip(members, holm([p for n in members if (p := rows[n].p) is not None]), strict=True))
    return chosen, tuple(
        replace(row, primary=True, p_holm=float(adjusted[number])) if number in adjusted else row
        for number, row in enumerate(rows)
    )


# ---------------------------------------------------------------------------------------------------- what comes of it


def judge(comparison: Comparison, alpha: float, margin: float | None) -> Gate:
    """Find the sets of the family on which B is worse; ``margin`` in points.

    Raises:
        ConfigError: there is no test to judge by.
    """
    if not comparison.family:
        valid = ", ".join(sorted({row.metric for row in comparison.rows if row.whole}))
        raise ConfigError(
            f"None of {', '.join(PRIMARY)} is measured here; name a metric: --fail-if-worse with one of {valid}."
        )
    failures = []
    for row in comparison.family:
        assert row.p_holm is not None
        reasons = []
        if row.gain < 0 and row.p_holm < alpha:
            reasons.append(f"significantly worse, Holm-adjusted p {shown_p(row.p_holm)} below {alpha:g}")
        # An end that equals the margin but for rounding is within it.
        if margin is not None and 100 * row.lowest_gain < -margin - 1e-9:
            reasons.append(f"may be worse by {-100 * row.lowest_gain:.2f} points, more than the margin of {margin:g}")
        if reasons:
            figures = f"{100 * row.a:.2f} to {100 * row.b:.2f} %, {points(row.difference)} points"
            failures.append(f"{row.id} {row.metric} ({figures}): {' and '.join(reasons)}")
    return Gate(alpha, margin, len(comparison.family), tuple(failures))


def to_json(comparison: Comparison, gate: Gate | None, classes: int) -> dict[str, Any]:
    """The whole comparison as JSON values; of the classes, those that the table shows."""
    return {
        "schema_version": SCHEMA_VERSION,
        "a": dict(comparison.a),
        "b": dict(comparison.b),
        "protocol": {key: comparison.protocol[key] for key in ("name", "fingerprint")},
        "family": len(comparison.family),
        "metrics": list(comparison.metrics),
        "rows": [{**asdict(row), "ci95": list(row.ci95)} for row in comparison.rows],
        "classes": [
            {**asdict(row), "difference": row.difference}
            for gains, losses in largest(comparison.classes, classes).values()
            for row in (*gains, *losses)
        ],
        "gate": None if gate is None else {**asdict(gate), "failures": list(gate.failures)},
        "notices": list(comparison.notices),
    }


def per_class_csv(rows: Sequence[ClassRow]) -> str:
    """Every class of every plain set: images, accuracies, their difference, the images that one model alone gets right,
    and the p-value adjusted for the set's classes (empty where none is claimed)."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    header = ["dataset", "split", "class", "name", "images", "a", "b", "difference", "only_a", "only_b", "p_holm"]
    writer.writerow(header)
    for row in rows:
        values = [f"{value:.6f}" for value in (row.a / row.images, row.b / row.images, row.difference)]
        p = "" if row.p_holm is None else f"{row.p_holm:.6g}"
        counts = [row.only_a, row.only_b, p]
        writer.writerow([row.dataset, row.split, row.label, row.name, row.images, *values, *counts])
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
