"""The report as one HTML page: tables and charts, and a scatter of effective robustness per shifted set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from digpt.charts import Bar, bar_chart, element
from digpt.report import Cell, Shown, cards, document, header, section, unbroken
from digpt.report import Column as PageColumn
from digpt.report import table as page_table
from digpt.scatter import Dot, Dots, scatter_chart, style
from evaluate.effective import Measured
from evaluate.effective_tables import TITLES, Study, Subject, expected_curve
from evaluate.population import CLEAN
from evaluate.table_formats import grouped, shown
from evaluate.tables import Column, Line, Table

ORIGINS = {"paper": "paper", "published": "published", "ours": "evaluated here"}
_CURVE = 100  # points; on logit axes they lie on a straight line, of which a chart draws what lies within it


def page(tables: Sequence[Table], study_tables: Sequence[Table], study: Study | None, names: Sequence[str]) -> str:
    """The whole page as text; ``names`` are the models'."""
    title = "Evaluation report"
    lines = [f"{len(names)} model{'s' if len(names) != 1 else ''}: {', '.join(names)}"]
    body = [style() if study else None, header(title, eyebrow="digpt", lines=lines)]
    body += [_section(table) for table in tables]
    if study is not None:
        charts = [_chart(study, name) for name in study.baselines]
        first, *rest = study_tables
        body += [
            _section(first, element("div", cards(*charts), style="margin-bottom:16px")),
            *(_section(table) for table in rest),
        ]
    return document(title, *body)


def _section(table: Table, *above: Markup) -> Markup:
    """A table by heading, without the group rows of print: a sorted table has no groups, so they are a column."""
    columns = [PageColumn(table.first), *(PageColumn(title) for title in table.details)]
    groups = [group for group, _ in grouped(table.lines)]
    if len(groups) > 1:
        columns.insert(0, PageColumn("Source"))
    columns += [PageColumn(_marked(column.title, column.mark), numeric=True) for column in table.columns]
    lines = [line for _, members in grouped(table.lines) for line in members]
    rows = [_row(line, table, with_group=len(groups) > 1) for line in lines]
    own = [index for index, line in enumerate(lines) if line.source == "ours"]
    notes = [element("p", f"{table.remark}.", class_="note")]
    notes += [element("p", element("sup", mark), f" {text}.", class_="note") for mark, text in table.notes]
    chart = element("div", bars, style="margin-bottom:16px") if (bars := _bars(table, lines)) else None
    return section(table.title, *above, chart, page_table(columns, rows, marked=own), *notes)


def _bars(table: Table, lines: Sequence[Line]) -> Markup:
    """A chart per column, or of a single model one with a bar per column; differences (signed) are no bars."""
    columns = [column for column in table.columns if not column.signed]
    if not any(line.source == "ours" for line in lines):
        return Markup("")
    if len(lines) == 1:
        return bar_chart(lines[0].name, [b for c in columns if (b := _bar(c.title, lines[0], c))], kind="percent")
    charts = [(c.title, [b for line in lines if (b := _bar(line.name, line, c))]) for c in columns]
    return cards(*(bar_chart(title, bars, kind="percent") for title, bars in charts if len(bars) > 1))


def _bar(label: str, line: Line, column: Column) -> Bar | None:
    value = line.values.get(column.key)
    if value is None:
        return None
    low, high = (None, None) if value.interval is None else (end / 100 for end in value.interval)
    return Bar(label, value.value / 100, low, high, color="var(--s0)" if line.source == "ours" else "var(--s7)")


def _row(line: Line, table: Table, *, with_group: bool) -> list[Cell]:
    cells: list[Cell] = [unbroken(_origin(line))] if with_group else []
    cells.append(unbroken(_marked(line.name, ",".join(line.marks))))
    cells += [*line.details, *[None] * (len(table.details) - len(line.details))]
    return [*cells, *(_value(line, column) for column in table.columns)]


def _value(line: Line, column: Column) -> Cell:
    """A number as every format prints it; it is sorted by its value."""
    if column.key not in line.values:
        return None
    value = line.values[column.key]
    text = shown(value, column)
    return text if value is None else Shown(value.value, text)


def _origin(line: Line) -> str:
    """The source in few words, with the size that a group of the paper's names in brackets."""
    size = line.group.partition("(")[2].rstrip(")")
    return f"{ORIGINS[line.source]} {size}".rstrip()


def _marked(text: str, marks: str) -> str:
    """``text``, escaped, with its footnotes."""
    return Markup("{}{}").format(text, element("sup", marks)) if marks else text


def _chart(study: Study, name: str) -> Markup:
    baseline = study.baselines[name]
    population = study.population
    standard = [
        Dot(float(x), float(y), model)
        for model, x, y in zip(population.models, population.top1[CLEAN], population.top1[name], strict=True)
        if not np.isnan(y)
    ]
    groups = [
        Dots(f"{len(standard):,} standard models", standard, color="var(--soft)"),
        Dots("the paper's rows", _dots(study, "paper", name), color="var(--s1)", look="hollow"),
        Dots("evaluated here", _dots(study, "ours", name), color="var(--s0)", look="large", labelled=True),
    ]
    known = [dot.x for group in groups for dot in group.dots if 0 < dot.x < 1]
    across = np.linspace(min(known, default=0.5), max(known, default=0.5), _CURVE).tolist()
    return scatter_chart(
        TITLES[name],
        groups,
        line=list(expected_curve(baseline, across)),
        line_name="fit",
        x_label="ImageNet top-1, logit axes",
        note=f"slope {baseline.slope:.2f}, intercept {baseline.intercept:.2f}, R² {baseline.r2:.2f}",
    )


def _dots(study: Study, source: str, name: str) -> list[Dot]:
    return [
        _dot(subject, subject.top1[CLEAN], subject.top1[name])
        for subject in study.subjects
        if subject.source == source and name in subject.top1
    ]


def _dot(subject: Subject, clean: Measured, shifted: Measured) -> Dot:
    return Dot(clean[0], shifted[0], subject.name, clean[1], shifted[1])
