"""Markdown as code hosts read it -> Markdown as mkdocs reads it, which wants more empty lines and deeper indents."""

from __future__ import annotations

import re
from collections.abc import Iterator

INDENT = 4  # of what belongs to a list's item, for Python-Markdown
MARKER = re.compile(r"(?P<indent> *)(?P<mark>[-*+]|\d{1,3}[.)])(?P<gap> +)(?P<text>\S.*)")
FENCE = re.compile(r" *(`{3,}|~{3,})")


def portable(markdown: str) -> str:
    """Indent what belongs to a list's item by four columns, and part lists and tables from the paragraph above."""
    return "\n".join(_lines(markdown.split("\n")))


def _lines(lines: list[str]) -> Iterator[str]:
    columns: list[int] = []  # where the text of each open item begins, the outermost first
    fence, before = "", ""  # what closes the open fence; the line above
    block = True  # whether the line above ends a block: it is empty or closes a fence
    loose = True  # whether the line above is a paragraph by itself, rather than an item's first
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if fence:
            yield _moved(line, columns)
            if line.strip() == fence:
                fence, before, loose, block = "", line, True, True
            continue
        marker = MARKER.fullmatch(line)
        loose = loose or not line.strip()
        if marker or (block and line.strip()):
            while columns and indent < columns[-1]:
                columns.pop()
        if _parted(line, before, bool(marker and loose)):
            yield ""
        if marker:
            yield f"{' ' * INDENT * len(columns)}{marker['mark']} {marker['text']}"
            columns.append(marker.start("text"))
            loose = False
        else:
            yield _moved(line, columns)
        if opened := FENCE.match(line):
            fence = opened[1]
        before, block = line, not line.strip()


def _moved(line: str, columns: list[int]) -> str:
    """A line with the indent of its item; a line that is not indented goes on lazily and stays."""
    if not columns or not line.startswith(" " * columns[-1]):
        return line
    return " " * INDENT * len(columns) + line[columns[-1] :]


def _parted(line: str, before: str, begins: bool) -> bool:
    """Whether an empty line has to stand above this line: below a paragraph, a list that ``begins``, or a table."""
    if not before.strip() or before.startswith("#"):
        return False
    return begins or (line.lstrip().startswith("|") and not before.lstrip().startswith("|"))
