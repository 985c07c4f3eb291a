"""The page of a comparison: which differences are certain, how large, under which corruption, and in which classes.

    write_page("compare.html", page(comparison, alpha=0.05))

One self-contained file in the look of all reports (`digpt.report`): forest plots, heat tables, reliability diagrams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from digpt.calibration import Reliability
from digpt.charts import Series, element, line_chart, number, ticks
from digpt.report import Cell, Column, Tile, cards, document, header, notice, section, table, tiles
from digpt.results_table import PLAIN
from evaluate.compare_table import (
    SWEPT,
    claim,
    class_claim,
    interval,
    model_line,
    outside,
    points,
    shown_p,
    shown_value,
    title_of,
)
from evaluate.paired import ClassRow, Comparison, Row

MOST_CLASSES = 500  # of one set; the CSV holds all
_WIDE = 1000  # a forest plot's rows run from 0 to this


def page(
    comparison: Comparison, alpha: float = 0.05, margin: float | None = None, failures: Sequence[str] | None = None
) -> str:
    """The report as HTML.

    Args:
        comparison: what is shown.
        alpha: the level below which an adjusted p is called significant.
        margin: of the gate, in points, drawn into the forest plots.
        failures: of the gate, one sentence per set; None where no gate was asked for.
    """
    title = " against ".join(_names(comparison))
    sets = [row for row in comparison.family if row.metric not in SWEPT]
    beside = [row for row in outside(comparison) if row.p is not None]
    lines = [str(model_line("A", comparison.a)), str(model_line("B", comparison.b)), claim(comparison)]
    lower = None if margin is None else -margin
    return document(
        title,
        header(title, eyebrow="paired comparison", lines=lines),
        _verdict(failures or ()),
        *(notice(line) for line in comparison.notices),
        tiles(_headline(comparison, alpha, failures)),
        section(
            "Accuracy",
            _forest("B minus A in points, by set", "right of the line B is better", sets, alpha, lower),
            _note("Green and red: significant after Holm's adjustment. Bars are 95 % paired bootstrap intervals."),
        ),
        section(
            "Other figures",
            _forest("B minus A in points", "right of the line B is better", beside, alpha, None),
            _note("Parts of sets, neighbours and what else is tested; these p-values are not adjusted."),
        ),
        *(_sweep(dataset, comparison.rows, alpha, margin) for dataset in _swept(comparison)),
        _calibration(comparison) if comparison.reliability else None,
        section("Classes", _note(class_claim(comparison)), *_class_tables(comparison.classes))
        if comparison.classes
        else None,
        section("All figures", _figures_table(comparison)),
    )


def _names(comparison: Comparison) -> list[str]:
    """B's and A's names, with what computed them where they are alike."""
    models = comparison.b, comparison.a
    alike = comparison.a["name"] == comparison.b["name"]
    return [f"{model['name']} on {model['backend']}" if alike else str(model["name"]) for model in models]


def _calibration(comparison: Comparison) -> Markup:
    note = _note("Below the diagonal a model is too sure of itself.")
    return section("Reliability", note, cards(*_diagrams(comparison)))


def _verdict(failures: Sequence[str]) -> Markup | None:
    lines = [element("div", failure) for failure in failures]
    return notice(element("b", "The gate failed.") + Markup("").join(lines), bad=True) if lines else None


def _swept(comparison: Comparison) -> list[str]:
    """The data sets that are sweeps of corruptions."""
    return list(dict.fromkeys(row.dataset for row in comparison.rows if row.metric == "error"))


def _note(text: str) -> Markup:
    return element("p", text, class_="note")


def _headline(comparison: Comparison, alpha: float, failures: Sequence[str] | None) -> list[Tile]:
    family = comparison.family
    certain = [row for row in family if row.p_holm is not None and row.p_holm < alpha]
    better, worse = sum(row.gain > 0 for row in certain), sum(row.gain < 0 for row in certain)
    entries = [
        Tile("Tests", str(len(family)), "one per set"),
        Tile("B better", str(better), f"adjusted p below {alpha:g}"),
        Tile("B worse", str(worse), f"adjusted p below {alpha:g}"),
    ]
    if family:
        for label, row in (("Largest gain", max(family, key=_gain)), ("Largest loss", min(family, key=_gain))):
            if (row.gain > 0) == (label == "Largest gain") and row.gain:
                entries.append(Tile(label, points(row.difference), f"points, {title_of(row)}"))
    if failures is not None:
        entries.append(Tile("Gate", "failed" if failures else "passed", f"{len(failures)} of {len(family)} sets fail"))
    return entries


def _gain(row: Row) -> float:
    return row.gain


# -------------------------------------------------------------------------------------------------------- forest plots


def _forest(title: str, hint: str, rows: Sequence[Row], alpha: float, margin: float | None) -> Markup:
    """Differences in points with their intervals, a row each, on one axis; a dashed line at the gate's ``margin``."""
    if not rows:
        return Markup("")
    ends = [100 * value for row in rows for value in (*row.ci95, row.difference)] + [margin or 0.0, 0.0]
    marks = ticks(min(ends), max(ends))

    def at(value: float) -> float:
        return (value - marks[0]) / (marks[-1] - marks[0])

    body: list[Markup] = []
    for row in rows:
        values = element("small", f"{interval(row)} {_p_text(row)}")
        plot = _whisker(row, at, _paint(row, alpha), margin)
        name = row.split if row.metric == "error" else title_of(row)
        body += [element("span", name), plot, element("b", points(row.difference)), values]
    place = "position:absolute;left:{:.2f}%;transform:translateX(-50%);white-space:nowrap"
    labels = [element("span", f"{mark:g}", style=place.format(100 * at(mark)), class_="soft") for mark in marks]
    axis = element("div", *labels, style="position:relative;height:18px")
    body += [element("span", "points", class_="soft"), axis, element("b"), element("small")]
    caption = element("figcaption", element("b", title), element("span", hint, class_="note"))
    return element("figure", caption, element("div", *body, class_="rows"))


def _whisker(row: Row, at: Callable[[float], float], paint: str, margin: float | None) -> Markup:
    """One row's interval and difference; it stretches with the page, and so do its neighbours, on the same axis."""
    low, high, value = (_WIDE * at(100 * end) for end in (*row.ci95, row.difference))
    shapes = [_stroke(_WIDE * at(0.0), -6, _WIDE * at(0.0), 26, "var(--soft)", 1)]
    if margin is not None:
        shapes.append(_stroke(_WIDE * at(margin), -6, _WIDE * at(margin), 26, "var(--mark)", 1, "2 3"))
    shapes.append(_stroke(low, 10, high, 10, paint, 2))
    style = f"stroke:{paint};stroke-width:9;stroke-linecap:round;vector-effect:non-scaling-stroke;fill:none"
    shapes.append(element("path", d=f"M{value:.1f} 10h.01", style=style))
    box = "display:block;width:100%;height:20px;overflow:visible"
    return element("svg", *shapes, viewBox=f"0 0 {_WIDE} 20", preserveAspectRatio="none", aria_hidden="true", style=box)


def _stroke(x1: float, y1: float, x2: float, y2: float, paint: str, width: float, dashes: str = "") -> Markup:
    style = f"stroke:{paint};stroke-width:{width:g};vector-effect:non-scaling-stroke"
    style += f";stroke-dasharray:{dashes}" if dashes else ""
    return element("line", x1=f"{x1:.1f}", y1=f"{y1:g}", x2=f"{x2:.1f}", y2=f"{y2:g}", style=style)


def _paint(row: Row, alpha: float) -> str:
    if row.p_holm is None or row.p_holm >= alpha or not row.gain:
        return "var(--soft)"
    return "var(--good)" if row.gain > 0 else "var(--bad)"


def _p_text(row: Row) -> str:
    if row.p_holm is not None:
        return f"p Holm {shown_p(row.p_holm)}"
    return "" if row.p is None else f"p {shown_p(row.p)}"


# ------------------------------------------------------------------------------------------- corruptions, calibration


def _sweep(dataset: str, rows: Sequence[Row], alpha: float, margin: float | None) -> Markup:
    """One sweep: its mean and those by corruption as a forest plot, its cells as a heat table."""
    own = {row.split: row for row in rows if row.dataset == dataset and row.metric == "error"}
    means = sorted((row for split, row in own.items() if "/" not in split), key=lambda row: row.split != "mean")
    return section(
        f"Errors on {dataset}",
        _forest("Error, B minus A in points", "left of the line B is better", means, alpha, margin),
        _note("The sweep is tested once, by its mean; single corruptions have intervals only."),
        element("div", heat_table(own), class_="scroll"),
        _note("Error by severity, B minus A in points: red where B errs more. Tooltips hold both errors."),
    )


def heat_table(own: Mapping[str, Row]) -> Markup:
    """Corruptions by severity: how much more (red) or less (green) B errs, in points; ``own`` are errors by split."""
    names = [split for split in own if "/" not in split and split != "mean"]
    severities = sorted({split.partition("/")[2] for split in own if "/" in split})
    most = max(abs(row.difference) for row in own.values())
    heads = [element("th", element("button", "corruption"), scope="col")]
    heads += [_head(f"severity {severity}") for severity in severities] + [_head("mean")]
    body = []
    for name in names:
        cells = [_heat(own.get(f"{name}/{severity}"), most) for severity in severities]
        body.append(element("tr", element("td", name), *cells, _heat(own[name], most)))
    return element("table", element("thead", element("tr", *heads)), element("tbody", *body))


def _head(title: str) -> Markup:
    return element("th", element("button", title), scope="col", class_="num")


def _heat(row: Row | None, most: float) -> Markup:
    if row is None:
        return element("td")
    share = round(45 * abs(row.difference) / most) if most else 0
    paint = "var(--bad)" if row.difference > 0 else "var(--good)"
    said = f"A {shown_value(row.a, row.metric)} %, B {shown_value(row.b, row.metric)} %, {interval(row)}"
    style = f"background:color-mix(in srgb,{paint} {share}%,transparent)"
    return element("td", points(row.difference), data_v=row.difference, style=style, title=said, class_="num")


def _diagrams(comparison: Comparison) -> list[Markup]:
    """Accuracy by confidence of both models, for every whole set."""
    calibration = {row.id: row for row in comparison.rows if row.metric == "ece"}
    charts = []
    for name, pair in comparison.reliability.items():
        row = calibration[name]
        if "/" in row.split:
            continue
        title = f"{name}: ECE {shown_value(row.a, 'ece')} % and {shown_value(row.b, 'ece')} %"
        curves = [_reliability(letter, one) for letter, one in zip("AB", pair, strict=True)]
        diagonal = Series("as sure as right", [0, 100], [0, 1], color="var(--soft)", dashed=True)
        charts.append(line_chart(title, [*curves, diagonal], x_label="confidence in %", kind="percent"))
    return charts


def _reliability(letter: str, one: Reliability) -> Series:
    filled = np.flatnonzero(one.count)
    return Series(letter, (100 * one.confidence[filled]).tolist(), one.accuracy[filled].tolist())


# -------------------------------------------------------------------------------------------------------------- tables


def _class_tables(rows: Sequence[ClassRow]) -> list[Markup]:
    """Per whole set, the classes that the models answer differently, the largest differences first."""
    columns = [Column("class"), *(Column(name, True) for name in ("images", "right A", "right B"))]
    columns += [Column("B - A, points", True, lambda value: f"{value:+.1f}")]
    columns += [Column("only A", True), Column("only B", True), Column("p Holm", True, shown_p)]
    by_set: dict[str, list[ClassRow]] = {}
    for row in rows:
        if "/" not in row.split:
            by_set.setdefault(f"{row.dataset}/{row.split}", []).append(row)
    found = []
    for name, members in by_set.items():
        differ = [row for row in members if row.only_a or row.only_b]
        differ.sort(key=lambda row: (-abs(row.difference), -row.images, row.label))
        body: list[list[Cell]] = [
            [r.name, r.images, r.a, r.b, 100 * r.difference, r.only_a, r.only_b, r.p_holm]
            for r in differ[:MOST_CLASSES]
        ]
        cut = f", the {MOST_CLASSES} largest differences shown" if len(differ) > MOST_CLASSES else ""
        said = f"{name}: {len(differ):,} of {len(members):,} classes answered differently{cut}"
        found.append(element("details", element("summary", said), table(columns, body)))
    return found


def _figures_table(comparison: Comparison) -> Markup:
    """Every figure but those of a sweep's cells."""
    swept = _swept(comparison)
    others = [row for row in comparison.rows if not row.primary and not (row.dataset in swept and "/" in row.split)]
    numeric = ("A", "B", "B - A", "low", "high", "p", "p Holm")
    columns = [
        Column("figure"),
        *(Column(name, True, shown_p if name[0] == "p" else number) for name in numeric),
        Column("test"),
        Column("images", True),
    ]
    body: list[list[Cell]] = []
    for row in (*comparison.family, *others):
        scale = 1 if row.metric in PLAIN else 100
        values = [scale * value for value in (row.a, row.b, row.difference, *row.ci95)]
        body.append([title_of(row), *values, row.p, row.p_holm, (row.test or "").partition(",")[0], row.n])
    return table(columns, body)
