"""The report of a run: what it shows of finished, running, failed and damaged folders, and what it must not believe."""

from __future__ import annotations

import fcntl
import json
import math
import re
import tempfile
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digpt.artifact import atomic_write, write_checkpoint
from digpt.errors import DataError
from digpt.testing import tiny_checkpoint
from train.record import read_run
from train.report import main, write_comparison, write_report

CONFIG: dict[str, Any] = {
    "command": "pretrain", "steps": 400, "batch_size": 128, "lr": 0.001, "variant": "Ti/16", "paradigm": "digpt",
    "teacher": "bundled-early-teacher", "image_size": 64, "objective": {"cluster_grid": [2, 2], "fidelity": "fixed"},
    "teacher fingerprint": "sha256:teacher",
}  # fmt: skip
EVIL = "</script><script>alert(1)</script>"


def rows(last: int = 400, every: int = 20) -> list[dict[str, Any]]:
    """What a run logs: training rows, and a figure at every fifth of them."""
    logged: list[dict[str, Any]] = []
    for step in range(every, last + 1, every):
        loss = 2.6 - step / 400
        logged.append(
            {
                "step": step, "lr": 1e-3, "loss": loss, "gen_loss": loss / 2, "gen_baseline": 1.4, "grad_norm": 0.5,
                "gen_step1_loss": 0.7, "gen_step1_baseline": 1.4, "gen_step2_loss": 0.35, "gen_step2_baseline": 1.4,
                "images_per_second": 160.0, "time_split": {"encoder": 0.75, "loader": 0.25}, "utilisation": 0.4321,
                "unknown_margin": step / 7, "broken_samples": 3,
            }
        )  # fmt: skip
        if step % (5 * every) == 0:
            logged.append({"step": step, "knn_flat": 0.3 if step < last else 0.25})
    return logged


def make_run(
    folder: Path, config: dict[str, Any] | None = None, logged: list[dict[str, Any]] | None = None, tail: str = ""
) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    lines = "".join(json.dumps(row) + "\n" for row in (rows() if logged is None else logged))
    (folder / "metrics.jsonl").write_text(lines + tail)
    (folder / ".lock").touch()
    return folder


def finish(folder: Path, **provenance: Any) -> str:
    checkpoint = tiny_checkpoint(text=False)
    checkpoint.provenance = {
        "command": "python -m train.pretrain", "steps": 400, "seconds": 3725.4, "figures": {"knn_flat": 0.25},
        "time_split": {"encoder": 30.0, "loader": 10.0}, "commit": "abc+", "versions": {"torch": "2.9"},
        "parents": [{"role": "teacher", "fingerprint": "sha256:feed", "parents": [{"role": "grandparent"}]}],
        **provenance,
    }  # fmt: skip
    return write_checkpoint(folder / "ckpt.pt", checkpoint)


def shown(path: Path) -> str:
    """The page's text without tags."""
    page = re.sub(r"<(script|style)>.*?</\1>", "", path.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page)))


def charts(path: Path) -> dict[str, dict[str, list[list[float]]]]:
    """``{chart: {series: [x, y, ...]}}``."""
    figures = re.findall(r"<figure class=\"chart\">(.*?)</figure>", path.read_text(), re.DOTALL)
    found = {}
    for figure in figures:
        title, data = re.search(r"<b>(.*?)</b>", figure), re.search(r'data-series="(.*?)"', figure)
        assert title and data
        found[unescape(title[1])] = {row[0]: row[2:] for row in json.loads(unescape(data[1]))}
    return found


def test_a_finished_run_is_told_in_full(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    fingerprint = finish(folder)
    text = shown(write_report(folder))
    assert "finished" in text and "Pretraining Ti/16 with D-iGPT" in text
    assert "Step 400 of 400" in text and "Time 1:02:05" in text and "Images per second 160 51.2k images seen" in text
    assert "knn_flat 25.0 % best 30.0 % at step 100" in text
    assert "Utilisation 43.2 %" in text
    assert fingerprint in text  # the identity that its children will name
    assert "teacher sha256:feed" in text and "grandparent" in text and "commit abc+" in text
    assert "versions.torch 2.9" in text and "objective." in text and "cluster_grid [2, 2]" in text


def test_every_logged_number_is_drawn_with_its_values(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "run"))
    drawn = charts(path)
    assert drawn["loss"]["loss"][1][:2] == [2.55, 2.5] and drawn["loss"]["loss"][0][-1] == 400
    assert set(drawn["parts of the loss"]) == {"gen_loss", "gen_baseline"}
    assert set(drawn["gen_loss by step"]) == {"step 1", "step 2"}
    assert {"lr", "grad_norm", "images_per_second", "utilisation", "knn_flat"} <= set(drawn)
    assert drawn["unknown_margin"]["unknown_margin"][1][0] == pytest.approx(20 / 7, rel=1e-5)  # a key nobody told it
    assert set(drawn["share of the time so far"]) == {"encoder", "loader"}
    assert "broken_samples 3" in shown(path) and "broken_samples" not in drawn  # constant: a line in a table
    assert "gen step 1 50.0 % 0.700 against 1.400" in shown(path)
    assert "gen step 2 75.0 % 0.350 against 1.400" in shown(path)


def test_where_the_time_goes_in_a_steps_order(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    parts = re.compile(r"flex-grow:([\d.]+);[^>]*title=\"(\w+):")
    assert parts.findall(write_report(folder).read_text()) == [("0.25000", "loader"), ("0.75000", "encoder")]
    finish(folder, time_split={"encoder": 1.0, "loader": 1.0})  # the final record counts
    assert parts.findall(write_report(folder).read_text()) == [("0.50000", "loader"), ("0.50000", "encoder")]


def test_running_stopped_finished(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", logged=rows(200))
    assert read_run(folder).state == "stopped"
    assert "Step 200 of 400" in shown(write_report(folder))
    with open(folder / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_run(folder).state == "running"
        assert "Time left 0:02:40" in shown(write_report(folder))  # 200 steps of 128 images at 160 images/s
        finish(folder)
        assert read_run(folder).state == "finished"  # the run itself writes the last report, holding the lock
    with open(folder / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a report leaves the folder free for the next run


def test_a_failure_is_in_front_until_the_run_has_gone_on(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", logged=[*rows(200), {"step": 120, "event": "skipped", "detail": "loss inf"}])
    (folder / "failure.json").write_text(json.dumps({"step": 201, "policy": "stop", "losses": {"loss": "nan"}}))
    path = write_report(folder)
    assert read_run(folder).state == "failed"
    assert "The gradient was not finite at step 201 (policy: stop). Lower --lr" in shown(path)
    assert 'class="notice bad"' in path.read_text() and "120 skipped loss inf" in shown(path)
    assert "<title>skipped at step 120</title>" in path.read_text()  # a line in the charts
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(300)))
    assert read_run(folder).state == "stopped" and 'class="notice bad"' not in write_report(folder).read_text()


def test_a_damaged_folder_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    odd = ['{"step": 40, "loss": NaN, "lr": Infinity}', "not json", "[1]", '{"loss": 1}', '{"step": "x", "loss": 2}']
    folder = make_run(tmp_path / "run", logged=rows(20), tail="\n".join(odd) + '\n{"step": 60, "loss": 1')
    (folder / "ckpt.pt").write_bytes(b"PK\x03\x04 half of a file")
    (folder / "failure.json").write_text("[")
    run = read_run(folder)
    assert run.step == 40 and math.isnan(run.curves["loss"].last)
    text = shown(write_report(folder))
    assert "4 lines of metrics.jsonl cannot be read" in text  # the last one is still being written
    assert "ckpt.pt is incomplete" in text and "failure.json cannot be read" in text
    assert "1 values not finite" in text


def test_before_the_first_entry(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "metrics.jsonl").unlink()
    text = shown(write_report(folder))
    assert "Nothing is logged yet" in text and "Step 0 of 400" in text and "Losses" not in text
    assert "teacher sha256:teacher" in text  # lineage so far: what the settings name


def test_other_tasks_need_nothing_of_pretraining(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"command": "teacher"}')
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 1, "val_top1": 0.5, "flat_top1": 0.25}\n')
    path = write_report(folder)
    assert set(charts(path)) == {"loss", "top1"} and set(charts(path)["top1"]) == {"val_top1", "flat_top1"}
    assert "Training a teacher" in shown(path) and "flat_top1 25.0 %" in shown(path)


def test_nothing_in_a_folder_becomes_code(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a<b>", {"teacher": EVIL, EVIL: EVIL, "objective": {EVIL: {"deep": EVIL}}})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 400, EVIL: 1.0}) + "\n")
        file.write(json.dumps({"step": 400, "event": EVIL, "detail": EVIL}) + "\n")
    (folder / "failure.json").write_text(json.dumps({"step": EVIL, "policy": EVIL, EVIL: EVIL}))
    finish(folder, commit=EVIL, parents=[{"role": EVIL, "figures": {EVIL: EVIL}}], time_split={EVIL: 1.0})
    for page in (write_report(folder), write_comparison([folder, folder], tmp_path / "both.html")):
        text = page.read_text()
        assert text.count("<script") == 1 and text.count("alert(1)") == text.count("&gt;alert(1)&lt;") > 8


def test_a_circle_of_parents_ends(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    finish(folder)
    run = read_run(folder)
    run.provenance["parents"] = [run.provenance] * 3  # as a foreign checkpoint may hold
    from digpt.lineage import MOST_PARENTS
    from train.report_run import run_page

    assert run_page(run).count("abc+") <= MOST_PARENTS


def test_a_long_run_stays_small_and_keeps_its_spike(tmp_path: Path) -> None:
    keys = [f"{branch}_step{i}_loss" for branch in ("gen", "dis") for i in range(1, 9)]
    logged: list[dict[str, Any]] = [{"step": s, "loss": 1.0, **dict.fromkeys(keys, 1 / s)} for s in range(1, 6001)]
    logged[777]["loss"] = 9.0
    path = write_report(make_run(tmp_path / "run", {"steps": 6000}, logged))
    assert path.stat().st_size < 600_000
    assert max(charts(path)["loss"]["loss"][3]) == 9.0


def test_a_comparison_shows_what_differs(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", {"lr": 0.002}, rows(200))
    (tmp_path / "other").mkdir()
    twin = make_run(tmp_path / "other" / "first", {"batch_size": 256})
    path = write_comparison([first, second], tmp_path / "both.html")
    drawn = charts(path)
    assert set(drawn["loss"]) == {"first", "second"} and drawn["loss"]["second"][0][-1] == 200
    assert set(drawn["gen_loss"]) == {"first", "second", "first baseline", "second baseline"}
    assert "only the 1 that differ" in shown(path)
    assert path.read_text().count('class="marked"') == 1 and "lr 0.001 0.002" in shown(path)
    assert "first Pretraining Ti/16 with D-iGPT stopped 400" in shown(path)
    path = write_comparison([first, twin], tmp_path / "both.html")
    assert set(charts(path)["loss"]) == {str(first), str(twin)}  # names alike: whole paths
    assert charts(path)["loss"][str(twin)][0][-1] == 400 * 256  # batches differ: over images seen
    assert 'data-label="images seen"' in path.read_text()


NUMBERS = st.one_of(
    st.floats(), st.integers(), st.sampled_from([5e-324, 1e308, -1e308, 10**400, 1e99, True, None, "x", [1], {}])
)
KEYS = ("loss", "lr", "gen_loss", "gen_baseline", "gen_step1_loss", "gen_step1_baseline", "knn_flat", "odd", "")
ROWS = st.dictionaries(st.sampled_from([*KEYS, "images_per_second", "time_split.loader"]), NUMBERS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS, max_size=6), NUMBERS, NUMBERS)
def test_any_numbers_give_a_page(tmp_path: Path, logged: list[dict[str, Any]], steps: Any, batch: Any) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        numbered = [{"step": number, **row} for number, row in enumerate(logged)]
        folder = make_run(Path(name) / "run", {"steps": steps, "batch_size": batch}, numbered)
        page = write_comparison([folder, folder], Path(name) / "both.html")
        assert write_report(folder).read_text().endswith("</html>\n") and page.read_text().endswith("</html>\n")
        assert sum(len(curve.x) for curve in read_run(folder).curves.values()) == sum(
            isinstance(value, (int, float)) and not isinstance(value, bool)
            for row in logged
            if "loss" in row or "lr" in row
            for value in row.values()
        )


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second")
    assert main([str(first)]) == 0
    assert capsys.readouterr().out == f"wrote {first / 'report.html'}\n"
    assert main([str(first), str(second), "--output", str(tmp_path / "c.html")]) == 0 and (tmp_path / "c.html").exists()
    assert main([str(tmp_path)]) == 2
    assert "is no run folder: it has no config.json" in capsys.readouterr().err
    atomic_write(second / "config.json", b"[]")
    with pytest.raises(DataError, match="holds no settings"):
        write_report(second)
