"""The published rows, spot-checked against the paper, and how names and signs are printed."""

from __future__ import annotations

import pytest

from evaluate.paper_rows import BASE, LARGE, PUBLISHED_4, TABLE_1, TABLE_2, TABLE_4, Published
from evaluate.table_formats import escape_latex, escape_markdown, latex, markdown
from evaluate.tables import Column, Line, Table, Value


def rows_of(table: tuple[Published, ...], group: str, name: str) -> list[tuple[float | None, ...]]:
    return [tuple(row.values.values()) for row in table if row.group == group and row.name == name]


def test_the_papers_numbers() -> None:
    assert (len(TABLE_1), len(TABLE_2), len(TABLE_4)) == (28, 12, 4)
    assert rows_of(TABLE_1, BASE, "D-iGPT") == [(86.2, 53.8)] and rows_of(TABLE_1, LARGE, "D-iGPT") == [(87.8, 57.3)]
    assert rows_of(TABLE_1, BASE, "BEiTv2") == [(85.0, 52.7), (85.5, 53.1)]
    assert rows_of(TABLE_1, BASE, "FD") == [(84.8, None)] and rows_of(TABLE_1, BASE, "BEiT") == [(84.0,)]  # lost
    assert rows_of(TABLE_2, BASE, "MAE") == [(83.6, 72.9, 88.1, 33.6, 50.0, 37.8, 36.4)]
    assert rows_of(TABLE_2, LARGE, "D-iGPT") == [(87.8, 79.6, 90.4, 73.0, 80.5, 24.7, 60.3)]
    assert [row.values["imagenet"] for row in TABLE_4] == [69.3, 71.6, 75.3, 77.1]
    # what the text says of the tables: +5.0 over DeiT, +2.6 over MAE, +0.7 over EVA
    best, deit, mae, eva = (rows_of(TABLE_1, BASE, name)[0][0] for name in ("D-iGPT", "DeiT", "MAE", "EVA"))
    assert best and deit and mae and eva
    assert (best - deit, best - mae, best - eva) == pytest.approx((5.0, 2.6, 0.7))
    assert PUBLISHED_4[1].values["imagenet"] == 68.34


def test_a_signed_column_shows_its_signs() -> None:
    lines = (Line("m", "ours", "", (), {"x": Value(1.25, (-0.5, 3.0)), "y": Value(-0.04)}),)
    table = Table("t", "T", (), (Column("x", "X", signed=True), Column("y", "Y", signed=True)), lines)
    assert "| m | +1.2 [-0.5, +3.0] | -0.0 |" in markdown(table)
    assert r"m & $+1.2$ {\scriptsize $[-0.5, +3.0]$} & $-0.0$ \\" in latex(table)


def test_escaping() -> None:
    assert escape_latex(r"a_b & 50% of $x$ #1 {y} ~^\ <z> |") == (
        r"a\_b \& 50\% of \$x\$ \#1 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"\textless{}z\textgreater{} \textbar{}"
    )
    assert escape_latex("[best]*\nnext\x00") == "{[}best{]}{*} next"  # `\\ [` and `\\*` would be read as options
    assert escape_markdown("vit_b | <b>`x`*\r\ny") == r"vit_b \| \<b\>\`x\`\* y"
    assert escape_markdown("_x_ a_b") == r"\_x\_ a_b"
