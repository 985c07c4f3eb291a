"""The ablation tables: the paper's figures beside ours, blank where there are none, and a whole tiny table."""

from __future__ import annotations

from pathlib import Path

import pytest

from digpt.errors import ConfigError
from train.ablate import AblateConfig, interval, main
from train.tables import TABLES


def test_the_papers_figures() -> None:
    paper = {name: [row.paper for row in table.rows] for name, table in TABLES.items()}
    assert paper["5"][-1] == (86.2, 53.8) and paper["5"][1] == (82.0, 44.1)
    assert [top1 for top1, _ in paper["6"]] == [85.7, 85.9, 84.6, 84.8, 85.9, 86.2]
    assert set(paper["7"]) == {(None, None)}  # missing from the copy at hand
    assert [row[:1] for row in paper["9"]] == [(84.9,), (85.1,), (86.2,), (None,)]
    assert paper["8"][1] == (86.2, 53.6)


def test_intervals_are_those_of_students_t() -> None:
    assert interval([0.1, 0.2, 0.3]) == "20.0 ± 24.8"  # 4.303 * 10 / sqrt(3)
    assert interval([0.25]) == "25.0" and interval([-0.01, -0.03], sign=True) == "-2.0 ± 12.7"


def test_an_unknown_table_names_the_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["centrall"]) == 2
    assert "central" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="equal"):
        AblateConfig("9", equal=("money",))


TINY = ["--steps", "2", "--finetune-steps", "2", "--tune-steps", "2", "--batch-size", "8", "--threads", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("table", list(TABLES))
def test_a_whole_table_runs_and_resumes(table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = table == "9"  # the others less: the evaluations of a cell take half a minute
    equal, seeds = (["steps", "time"], "2") if whole else (["steps"], "1")
    command = [table, *TINY, "--seeds", seeds, "--timed-steps", "1", "--equal", *equal, "--output", str(tmp_path)]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert [f"## At equal {kind}" in text for kind in ("steps", "time")] == [True, whole]
    assert "What this can say" in text
    lines = [line for line in text.split("## At equal time")[0].splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(TABLES[table].rows) + 1  # head, rule, rows, no pretraining
    for row, line in zip(TABLES[table].rows, lines[2:], strict=False):
        assert ("±" in line) == (whole and row.changes is not None)
        measured = line.split("|")[1 + len(row.cells) : -3]
        assert any(cell.strip() for cell in measured) == (row.changes is not None)
        assert all(f"{value:.1f}" in line for value in row.paper if value is not None)
    assert main(command) == 0  # every cell is read back
    assert capsys.readouterr().out == text
    assert main([*command, "--tune-steps", "3"]) == 2
    assert "choose another --output" in capsys.readouterr().err
