"""A comparison as a console prints it: the family of tests, its parts, sweeps, calibration, and single classes.

    Console().print(render(comparison, classes=5))

Values are percent, differences points; what a model is called is printed as it is and never read as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from digpt.results_table import PLAIN, TITLES
from evaluate.paired import PRIMARY, ClassRow, Comparison, Row

CALIBRATION = ("ece", "nll", "brier")
UNTESTED = ("top5", "probe_top5", "macc", "aacc", *CALIBRATION)
SWEPT = ("error", "ce", "mce", "relative_mce")


def render(comparison: Comparison, classes: int) -> RenderableType:
    """Return what a console prints; ``classes`` is how many gains and losses to show of each set."""
    parts: list[RenderableType] = [model_line("A", comparison.a), model_line("B", comparison.b)]
    parts += [Text(f"note: {line}") for line in comparison.notices]
    parts += [Text(claim(comparison))]
    parts += [_rows_table("", comparison.family)] if comparison.family else []
    beside = [row for row in outside(comparison) if row.p is not None]
    parts += [_rows_table("beside the family: p not adjusted", beside)] if beside else []
    for dataset in dict.fromkeys(row.dataset for row in comparison.rows if row.metric == "error"):
        own = [row for row in sweep_rows(comparison) if row.dataset == dataset]
        parts.append(_rows_table(f"{dataset}: less is better, intervals only", own, of_dataset=True))
    untested = [row for row in comparison.rows if row.metric in UNTESTED and "/" not in row.split]
    parts += [_rows_table("intervals only; of ECE, NLL and Brier less is better", untested)] if untested else []
    shown = largest(comparison.classes, classes)
    if shown:
        parts += [_class_table(shown), Text(class_claim(comparison))]
    parts.append(
        Text("values in %, differences B - A in points with 95 % paired bootstrap intervals (NLL, Brier as they are)")
    )
    return Group(*parts)


def model_line(letter: str, model: Mapping[str, Any]) -> Text:
    """``A: ViT-B/16 on torch float32, fingerprint sha256:0123, by linear head``."""
    by = f", by {model['classifier']}" if model.get("classifier") else ""
    name, where = model["name"], f"{model['backend']} {model['precision']}"
    return Text(f"{letter}: {name} on {where}, fingerprint {model['fingerprint'][:19]}{by}")


def claim(comparison: Comparison) -> str:
    """What the adjusted p-values are about."""
    count, protocol = len(comparison.family), comparison.protocol
    tests = f"{count} test{'s' * (count != 1)}"
    per = "set" if set(comparison.metrics) <= set(PRIMARY) else "set and metric"
    made = f"one per {per}, by {' and '.join(comparison.metrics)}" if count else "no set is classified"
    return f"protocol {protocol['name']} {protocol['fingerprint'][:19]}; family of {tests} ({made}), p adjusted by Holm"


def outside(comparison: Comparison) -> list[Row]:
    """Figures beside the family that are no calibration and belong to no sweep."""
    return [r for r in comparison.rows if not r.primary and r.metric not in (*CALIBRATION, *SWEPT)]


def sweep_rows(comparison: Comparison) -> list[Row]:
    """Means by corruption, and the summaries of a sweep beside its mean."""
    return [r for r in comparison.rows if r.metric in SWEPT and not r.primary and "/" not in r.split]


def largest(rows: Iterable[ClassRow], count: int) -> dict[str, tuple[list[ClassRow], list[ClassRow]]]:
    """The ``count`` classes that gained and that lost the most accuracy, by whole set; not those of a single image."""
    by_set: dict[str, list[ClassRow]] = {}
    for row in rows:
        if "/" not in row.split and row.images > 1:
            by_set.setdefault(f"{row.dataset}/{row.split}", []).append(row)
    found = {}
    for name, members in by_set.items():
        falling = sorted(members, key=lambda row: (-row.difference, -row.images, row.label))
        rising = sorted(members, key=lambda row: (row.difference, -row.images, row.label))
        gains = [row for row in falling if row.difference > 0][:count]
        losses = [row for row in rising if row.difference < 0][:count]
        if gains or losses:
            found[name] = gains, losses
    return found


def class_claim(comparison: Comparison) -> str:
    """What may be said about single classes."""
    tested: dict[str, int] = {}
    whole = [row for row in comparison.classes if "/" not in row.split]
    for row in whole:
        if row.p_holm is not None:
            name = f"{row.dataset}/{row.split}"
            tested[name] = tested.get(name, 0) + 1
    sizes = sorted(set(tested.values()))
    over = f"the {sizes[0]:,}" if len(sizes) == 1 else f"the {sizes[0]:,} to {sizes[-1]:,}" if sizes else "all"
    adjusted = f"p of a class is McNemar's, adjusted by Holm for {over} classes of its set"
    none = "where images belong together there is no p, and nothing is claimed about single classes"
    has_none = any(row.p_holm is None for row in whole)
    said = [adjusted] * bool(sizes) + [none] * has_none
    return "; ".join([*said, "the largest gains and losses of many classes are mostly chance"])


def shown_p(p: float | None) -> str:
    """``0.031``, ``2.1e-07``; empty for None."""
    if p is None:
        return ""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def points(value: float, metric: str = "") -> str:
    """A difference with its sign: points with two decimals, three decimals for what is no fraction."""
    return f"{value:+.3f}" if metric in PLAIN else f"{100 * value:+.2f}"


def shown_value(value: float, metric: str) -> str:
    """``61.25``, or ``0.912`` for what is no fraction."""
    return f"{value:.3f}" if metric in PLAIN else f"{100 * value:.2f}"


def title_of(row: Row) -> str:
    """``emoji/flat top-1``."""
    metric = row.metric.replace("knn_top", "kNN top-").replace("probe_top", "linear probe top-").replace("_", " ")
    metric = TITLES.get(row.metric, metric)
    return f"{row.id} {metric.replace('relative mce', 'relative mCE')}"


def interval(row: Row) -> str:
    """``[-0.31, +1.20]``."""
    low, high = (points(end, row.metric) for end in row.ci95)
    return f"[{low}, {high}]"


def _rows_table(title: str, rows: Sequence[Row], *, of_dataset: bool = False) -> Table:
    table = Table(title=title or None, title_justify="left", title_style="bold")
    table.add_column("figure" if of_dataset else "set", no_wrap=True)
    for name in ("A", "B", "B - A"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("interval", justify="right", no_wrap=True)
    tested, adjusted = any(row.p is not None for row in rows), any(row.primary for row in rows)
    if tested:
        table.add_column("p", justify="right", no_wrap=True)
    if adjusted:
        table.add_column("p Holm", justify="right", no_wrap=True)
    if tested:
        table.add_column("test")
    table.add_column("images", justify="right", no_wrap=True)
    for row in rows:
        name = title_of(row).removeprefix(f"{row.dataset}/") if of_dataset else title_of(row)
        cells = [name, shown_value(row.a, row.metric), shown_value(row.b, row.metric)]
        cells += [points(row.difference, row.metric), interval(row)]
        cells += [shown_p(row.p)] * tested + [shown_p(row.p_holm)] * adjusted
        cells += [(row.test or "").partition(",")[0]] * tested
        table.add_row(*map(Text, cells), Text(f"{row.n:,}"))
    return table


def _class_table(shown: Mapping[str, tuple[list[ClassRow], list[ClassRow]]]) -> Table:
    table = Table(title="classes: largest gains and losses", title_justify="left", title_style="bold")
    table.add_column("set")
    table.add_column("class")
    for name in ("images", "right A", "right B", "B - A", "p Holm"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, (gains, losses) in shown.items():
        for row in (*gains, *losses):
            counts = (f"{row.images:,}", f"{row.a:,}", f"{row.b:,}", points(row.difference), shown_p(row.p_holm))
            table.add_row(*map(Text, (name, row.name, *counts)))
        table.add_section()
    return table
