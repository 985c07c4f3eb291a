"""What the engines of one model differ by, as a console, a JSON document and an HTML page show it.

    publish(drifts(reference, others), Path("runs/drift"), as_json=False)

Values are errors in percent, differences points (the other engine's minus the reference's).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from digpt.charts import element
from digpt.files import atomic_json
from digpt.report import Cell, Column, Tile, document, header, notice, section, table, tiles, unbroken, write_page
from digpt.shift import Shift
from evaluate.cli import TABLE_WIDTH
from evaluate.compare_report import heat_table
from evaluate.compare_table import model_line
from evaluate.drift import Drift, Drifts, to_json
from evaluate.paired import Row

JSON_NAME, PAGE_NAME = "drift.json", "drift.html"


def publish(found: Drifts, output: Path | None, *, as_json: bool) -> None:
    """Print the figures, as JSON if asked to; with ``output`` also write ``drift.json`` and ``drift.html`` there."""
    if output is not None:
        atomic_json(output / JSON_NAME, to_json(found))
        write_page(output / PAGE_NAME, page(found))
    if as_json:
        print(json.dumps(to_json(found), indent=2, ensure_ascii=False))
        return
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH, highlight=False)
    console.print(render(found))
    for engine in found.engines:
        console.print(Text(f"{'DRIFTED' if engine.failures else engine.word}  {engine.verdict}"), soft_wrap=True)
    if output is not None:
        console.print(f"written to {output}", highlight=False, markup=False, soft_wrap=True)


def render(found: Drifts) -> RenderableType:
    """Return what a console prints: all engines over all cells, then each engine cell by cell."""
    parts: list[RenderableType] = [model_line("reference", found.reference)]
    parts.append(
        _table("", ["engine", *_HEADS], [[one.engine, *_texts(s)] for one in found.engines for s in _whole(one)])
    )
    for one in found.engines:
        for sweep in one.sweeps:
            parts.append(_sweep_table(one, sweep.dataset))
    return Group(*parts, Text("points: the engine's error minus the reference's, with 95 % paired bootstrap intervals"))


_HEADS = ("set", "reference", "engine's", "points", "interval", "changed", "of")


def _whole(one: Drift) -> list[Shift]:
    """Sweeps by their means, and the sets beside them."""
    return [*one.sweeps, *one.sets]


def _texts(shift: Shift) -> list[str]:
    errors = [f"{100 * value:.2f}" for value in (shift.reference, shift.other)]
    return [shift.id, *errors, f"{shift.points:+.2f}", _interval(shift), f"{shift.changed:,}", f"{shift.n:,}"]


def _interval(shift: Shift) -> str:
    low, high = (100 * end for end in shift.ci95)
    return f"[{low:+.2f}, {high:+.2f}]"


def _sweep_table(one: Drift, dataset: str) -> Table:
    """Corruptions by severity: points, and in brackets how many predictions changed where any did."""
    cells = {cell.split: cell for cell in one.cells if cell.dataset == dataset}
    severities = sorted({split.partition("/")[2] for split in cells})
    rows = []
    for mean in one.means:
        if mean.dataset == dataset and mean.split != "mean":
            own = [cells.get(f"{mean.split}/{severity}") for severity in severities]
            rows.append(
                [mean.split, *("" if cell is None else _short(cell) for cell in own), _short(mean), _interval(mean)]
            )
    heads = ["corruption", *(f"severity {severity}" for severity in severities), "mean", "interval"]
    return _table(f"{dataset} on {one.engine}: points (predictions that changed)", heads, rows)


def _short(shift: Shift) -> str:
    return f"{shift.points:+.2f}" + (f" ({shift.changed})" if shift.changed else "")


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    shown = Table(title=title or None, title_justify="left", title_style="bold")
    texts = ("engine", "set", "corruption")
    for head in heads:
        shown.add_column(head, justify="left" if head in texts else "right", no_wrap=head != "set")
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown


# ---------------------------------------------------------------------------------------------------------------- page


def page(found: Drifts) -> str:
    """The report as HTML: a verdict for each engine, its cells as a heat table, and every cell's figures."""
    title = f"{found.reference['name']}: did the numbers drift?"
    lines = [str(model_line("reference", found.reference)), f"protocol {found.protocol['name']}"]
    return document(
        title,
        header(title, eyebrow="one model, several engines", lines=lines),
        *(notice(one.verdict, bad=bool(one.failures), good=one.word == "same") for one in found.engines),
        tiles([_tile(one) for one in found.engines]),
        section("All cells", _figures(found.engines, means=True)),
        *(_engine(one) for one in found.engines),
        section(
            "Cell by cell", element("details", element("summary", "every cell"), _figures(found.engines, means=False))
        ),
    )


def _tile(one: Drift) -> Tile:
    changed, predictions = one.changed
    return Tile(one.engine, one.word, f"{changed:,} of {predictions:,} predictions changed")


def _engine(one: Drift) -> Markup:
    maps = []
    for sweep in one.sweeps:
        own = {s.split: _row(s) for s in (*one.means, *one.cells) if s.dataset == sweep.dataset}
        maps.append(element("div", heat_table(own), class_="scroll"))
    note = element("p", "Points, red where this engine errs more. A in the tooltips is the reference.", class_="note")
    return section(one.engine, *maps, note) if maps else Markup("")


def _row(shift: Shift) -> Row:
    errors = shift.reference, shift.other
    return Row(shift.dataset, shift.split, "error", shift.n, *errors, shift.difference, shift.ci95)


def _figures(engines: Sequence[Drift], *, means: bool) -> Markup:
    def two(value: float) -> str:
        return f"{value:.2f}"

    def signed(value: float) -> str:
        return f"{value:+.2f}"

    columns = [Column("engine"), Column("set"), Column("reference, %", True, two), Column("engine's, %", True, two)]
    columns += [Column(name, True, signed) for name in ("points", "low", "high")]
    columns += [Column("predictions changed", True), Column("of", True)]
    body: list[list[Cell]] = []
    for one in engines:
        for shift in _whole(one) if means else one.cells:
            values = (shift.reference, shift.other, shift.difference, *shift.ci95)
            body.append(
                [unbroken(one.engine), unbroken(shift.id), *(100 * value for value in values), shift.changed, shift.n]
            )
    return table(columns, body)
