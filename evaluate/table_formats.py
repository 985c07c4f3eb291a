r"""Tables as text: Markdown (GitHub's), LaTeX with booktabs, and JSON values.

    print(markdown(table))

Names come from files of unknown origin, so everything but the layout itself is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from evaluate.tables import Column, Line, Table, Value

Escape = Callable[[str], str]
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # \textquotedbl needs a font encoding that LaTeX does not start with
    # A row that begins with one of these would be read as an option of the line end before it.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "↓": r"$\downarrow$",
}
# An underscore within a word is no emphasis to GitHub's Markdown, and names have many.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f\ud800-\udfff]+")


def escape_latex(text: str) -> str:
    """``text`` as LaTeX prints it literally; line ends and control characters become spaces."""
    return "".join(_LATEX.get(letter, letter) for letter in _plain(text))


def escape_markdown(text: str) -> str:
    """``text`` as Markdown prints it literally within a cell; line ends and control characters become spaces."""
    return _MARKDOWN.sub(lambda found: "\\" + found.group(), _plain(text))


def _plain(text: str) -> str:
    return _UNPRINTABLE.sub(" ", text).strip()


def shown(value: Value | None, column: Column) -> str:
    """``'85.6 [85.3, 85.9]'``; a dash for None. Signed columns show their plus, and intervals with both signs."""
    if value is None:
        return "-"
    form = f"{'+' if column.signed else ''}.{value.digits}f"
    if value.interval is None:
        return f"{value.value:{form}}"
    return f"{value.value:{form}} [{value.interval[0]:{form}}, {value.interval[1]:{form}}]"


def markdown(table: Table) -> str:
    """The table under a heading, its groups as rows of their own, footnotes below."""
    titles = [table.first, *table.details]
    heads = [escape_markdown(title) for title in titles]
    heads += [escape_markdown(column.title) + _sup(column.mark) for column in table.columns]
    lines = [f"### {escape_markdown(table.title)}", "", _row(heads)]
    lines.append(_row(["---"] * len(titles) + ["--:"] * len(table.columns)))
    for group, members in grouped(table.lines):
        if group:
            lines.append(_row([f"**{escape_markdown(group)}**", *[""] * (len(heads) - 1)]))
        for line in members:
            name = escape_markdown(line.name) + _sup(",".join(line.marks))
            details = [escape_markdown(text) for text in _details(line, table)]
            lines.append(_row([name, *details, *_cells(line, table.columns)]))
    lines += ["", f"{escape_markdown(table.remark)}."]
    for mark, text in table.notes:
        lines += ["", f"{_sup(mark)} {escape_markdown(text)}."]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _sup(marks: str) -> str:
    return f"<sup>{marks}</sup>" if marks else ""


def latex(table: Table) -> str:
    r"""A ``table`` float with booktabs' rules; the preamble needs ``\usepackage{booktabs}`` alone."""
    titles = [table.first, *table.details]
    heads = [escape_latex(title) for title in titles]
    heads += [escape_latex(column.title) + _power(column.mark) for column in table.columns]
    width = len(heads)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.title)}}}",
        rf"\label{{tab:{re.sub('[^a-z0-9-]', '', table.id)}}}",
        rf"\begin{{tabular}}{{{'l' * len(titles)}{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
    ]
    for group, members in grouped(table.lines):
        lines.append(r"\midrule")
        if group:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escape_latex(group)}}}}} \\")
        for line in members:
            name = escape_latex(line.name) + _power(",".join(line.marks))
            details = [escape_latex(text) for text in _details(line, table)]
            cells = [_small_interval(cell) for cell in _cells(line, table.columns)]
            lines.append(" & ".join([name, *details, *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", "", rf"{{\footnotesize {escape_latex(table.remark)}."]
    lines += [rf"\par {_power(mark)} {escape_latex(text)}." for mark, text in table.notes]
    return "\n".join([*lines, r"\par}", r"\end{table}"]) + "\n"


def _power(marks: str) -> str:
    return rf"\textsuperscript{{{marks}}}" if marks else ""


def _small_interval(cell: str) -> str:
    """Signs as mathematics has them, the interval in small type."""
    if cell == "-":
        return "--"
    value, bracket, rest = cell.partition(" [")
    value = f"${value}$" if value[:1] in "+-" and value else value
    return rf"{value} {{\scriptsize $[{rest[:-1]}]$}}" if bracket else value


def grouped(lines: Sequence[Line]) -> Iterator[tuple[str, list[Line]]]:
    """Lines by their group, in the order of the groups' first lines."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.group, []).append(line)
    yield from groups.items()


def _details(line: Line, table: Table) -> list[str]:
    return [*line.details, *[""] * (len(table.details) - len(line.details))]


def _cells(line: Line, columns: Sequence[Column]) -> list[str]:
    return [shown(line.values[column.key], column) if column.key in line.values else "" for column in columns]


def to_values(table: Table) -> dict[str, Any]:
    """JSON values; numbers are percent (or points), as in the other formats, but not rounded."""
    return {
        "table": table.id,
        "title": table.title,
        "unit": "percent",
        "columns": [{"key": column.key, "title": column.title, "note": column.mark} for column in table.columns],
        "rows": [
            {
                "name": line.name,
                "source": line.source,
                "group": line.group,
                **{title: text for title, text in zip(table.details, _details(line, table), strict=True) if text},
                "notes": list(line.marks),
                "values": {key: _json(value) for key, value in line.values.items()},
            }
            for line in table.lines
        ],
        "notes": dict(table.notes),
        "remark": table.remark,
    }


def _json(value: Value | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"value": value.value, "ci95": None if value.interval is None else list(value.interval)}
