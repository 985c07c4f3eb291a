"""The gate, the refusals and the files of a comparison, on stores of made-up answers."""

from __future__ import annotations

import csv
import dataclasses
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from digpt.errors import ConfigError, DataError
from evaluate import compare as command
from evaluate.compare import CompareOptions, compare, judge, main, open_pair
from evaluate.compare_report import page
from evaluate.paired import Comparison, Row
from evaluate.testing import (
    CLASSES,
    WRONG_A,
    WRONG_B,
    N,
    Stores,
    all_answers,
    answers,
    cell,
    labels_of,
    one_set,
    several_sets,
    suite_of,
    view,
)

EVIL = "</h1><script>alert(1)</script>[bold]&"


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(tmp_path)


def compared(a: Path, b: Path, *metrics: str) -> Comparison:
    return compare(*open_pair(a, b), metrics=metrics)


# ------------------------------------------------------------------------------------------------------------ the gate


def test_identical_models_pass(stores: Stores, capsys: Any) -> None:
    suite = several_sets()
    right = all_answers({"toy/val": WRONG_A, "toy-c/fog/1": WRONG_B})
    a, b = stores.write("a", suite, right), stores.write("b", suite, right, fingerprint="sha256:a")
    comparison = compared(a, b)
    assert {row.difference for row in comparison.rows} == {0.0}
    assert {row.ci95 for row in comparison.rows} == {(0.0, 0.0)}
    assert {row.p for row in comparison.rows} == {None, 1.0} and {row.p_holm for row in comparison.family} == {1.0}
    assert main([str(a), str(b), "--fail-if-worse", "--margin", "0"]) == 0
    out = capsys.readouterr().out
    assert "gate passed" in out and "A and B are the same model" in out
    assert main([str(a), str(a), "--fail-if-worse"]) == 0  # the very same directory


def test_a_model_under_other_options_is_said_to_be_so(stores: Stores) -> None:
    suite = several_sets()
    right = all_answers({})
    a = stores.write("a", suite, right)
    b = stores.write("b", suite, right, fingerprint="sha256:a", preprocess={"crop_pct": 0.875}, templates=("a {}",))
    notices = compared(a, b).notices
    assert any("comes from options: crop_pct None / 0.875, templates (0 / 1)" in notice for notice in notices)
    assert not any("backend" in notice for notice in notices)


@pytest.mark.parametrize(
    ("drop", "failing"),
    [("toy/flat", ["toy/flat top1"]), ("toy-c/fog/3", ["toy-c/mean error"]), ("", [])],
)
def test_a_planted_drop_fails_there_and_only_there(stores: Stores, capsys: Any, drop: str, failing: list[str]) -> None:
    suite = several_sets()
    a = stores.write("a", suite, all_answers({"other/test": range(20)}))  # B is better on other/test
    b = stores.write("b", suite, all_answers({drop: range(10)} if drop else {}))
    gate = judge(compared(a, b), 0.05, None)
    assert [line.partition(" (")[0] for line in gate.failures] == failing
    assert main([str(a), str(b), "--fail-if-worse"]) == int(bool(failing))
    assert main([str(b), str(a), "--fail-if-worse"]) == 1  # the other way round other/test is worse
    assert main([str(a), str(b)]) == 0  # no gate
    capsys.readouterr()
    main([str(a), str(b), "--fail-if-worse", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["gate"]["failures"] == list(gate.failures)
    assert "significantly worse, Holm-adjusted p " in err if failing else "gate passed" in err


def test_the_gate_wants_adjusted_significance(stores: Stores) -> None:
    """Six lost images of sixty: p = 2/64 alone, 8/64 among four tests."""
    suite = several_sets()
    a, b = stores.write("a", suite, all_answers({})), stores.write("b", suite, all_answers({"toy/val": range(6)}))
    comparison = compared(a, b)
    row = comparison.family[0]
    assert row.p is not None and row.p < 0.05 and row.p_holm == pytest.approx(8 / 64)
    assert judge(comparison, 0.05, None).failures == ()
    assert len(judge(comparison, 0.13, None).failures) == 1
    assert judge(comparison, 8 / 64, None).failures == ()  # below, not at


def made_up(**values: Any) -> Comparison:
    row = Row(
        "toy", "val", "top1", 100, 0.8, 0.79, -0.01, (-0.02, 0.0), 0.3, 0.3, "McNemar, exact binomial", primary=True
    )
    return Comparison({}, {}, {}, ("top1",), (replace(row, **values),), (), {}, ())


def test_a_margin_asks_what_the_interval_excludes() -> None:
    assert judge(made_up(), 0.05, None).failures == ()
    assert judge(made_up(), 0.05, 2.0).failures == ()  # the lower end is at the margin
    assert judge(made_up(), 0.05, 2.5).failures == ()
    (line,) = judge(made_up(), 0.05, 1.5).failures
    assert line.startswith("toy/val top1 (80.00 to 79.00 %, -1.00 points)")
    assert "may be worse by 2.00 points, more than the margin of 1.5" in line and "significantly" not in line
    assert judge(made_up(difference=0.01, ci95=(-0.01, 0.03)), 0.05, 0.5).failures  # better, but perhaps worse
    error = {"metric": "error", "split": "mean", "ci95": (-0.01, 0.02)}  # of an error the upper end counts
    assert judge(made_up(**error), 0.05, 1.5).failures and not judge(made_up(**error), 0.05, 2.5).failures
    assert not judge(made_up(**error | {"ci95": (-0.02, 0.01)}), 0.05, 1.5).failures


def test_a_certain_loss_within_the_margin() -> None:
    certain = made_up(p=0.001, p_holm=0.004, ci95=(-0.012, -0.008))
    (line,) = judge(certain, 0.05, 2.0).failures
    assert "Holm-adjusted p 0.004 below 0.05" in line and "margin" not in line
    assert judge(certain, 0.0, 2.0).failures == ()  # --alpha 0: non-inferiority alone
    gained = made_up(p=0.001, p_holm=0.004, difference=0.01, ci95=(0.008, 0.012))
    assert judge(gained, 0.05, 0.0).failures == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--margin", "1"], "--margin belongs to --fail-if-worse"),
        (["--fail-if-worse", "--margin", "-1"], "--margin -1.0 must be 0 to 100"),
        (["--alpha", "1"], "--alpha 1.0 must be"),
        (["--classes", "-1"], "--classes -1 must be"),
        (["--output", "{a}"], "holds an evaluation"),
        (["--output", "{file}"], "cannot be a directory"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(
    stores: Stores, capsys: Any, arguments: list[str], message: str
) -> None:
    a, b = stores.pair()
    file = stores.root / "file"
    file.write_text("")
    assert main([str(a), str(b), *(argument.format(a=a, file=file) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1


def test_the_flags_are_frozen() -> None:
    flags = [field.name for field in dataclasses.fields(CompareOptions)]
    assert flags == ["a", "b", "more", "same", "output", "fail_if_worse", "alpha", "margin", "classes", "json"]


# -------------------------------------------------------------------------------------------------------- the refusals


def test_other_protocols_are_refused_with_the_keys_that_differ(stores: Stores, capsys: Any) -> None:
    cells, views = [cell("toy/val")], [view("toy/val")]
    settings = {f"key{number}": number for number in range(7)}
    a = stores.write("a", suite_of(cells, views, **settings, deep={"limit": 5}), {"toy/val": answers()})
    other = {f"key{number}": -1 for number in range(7)}
    b = stores.write("b", suite_of(cells, views, **other, deep={"limit": 6}), {"toy/val": answers()})
    assert main([str(a), str(b), "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "different protocols" in err and err.count(" against ") == 5
    assert "deep.limit: 5 against 6; key0: 0 against -1; key1: " in err and "; and 3 more. Evaluate" in err
    c = stores.write("c", suite_of(cells, views, **settings, deep={"limit": 6}), {"toy/val": answers()})
    with pytest.raises(ConfigError, match=r"compared: deep\.limit: 5 against 6\. "):
        open_pair(a, c)


def test_other_images_and_labels_are_refused(stores: Stores) -> None:
    suite = one_set()
    a = stores.write("a", suite, {"toy/val": answers()})
    renamed = suite_of([cell("toy/val", keys=[f"other-{number}" for number in range(N)])], [view("toy/val")])
    with pytest.raises(ConfigError, match="toy/val holds other images in A than in B"):
        open_pair(a, stores.write("b", renamed, {"toy/val": answers()}))
    shifted = replace(view("toy/val"), labels=(labels_of(N) + 1) % CLASSES)
    with pytest.raises(ConfigError, match="toy/val has other labels in A than in B"):
        open_pair(a, stores.write("c", suite_of([cell("toy/val")], [shifted]), {"toy/val": answers()}))
    named = replace(suite, class_names=tuple("abcdef"))
    with pytest.raises(ConfigError, match="other class names"):
        open_pair(a, stores.write("d", named, {"toy/val": answers()}))


def test_nothing_in_common_is_refused(stores: Stores) -> None:
    a = stores.write("a", one_set(), {"toy/val": answers()})
    b = stores.write("b", suite_of([cell("toy/test")], [view("toy/test")]), {"toy/test": answers()})
    with pytest.raises(ConfigError, match="nothing in common"):
        open_pair(a, b)


def test_a_store_that_is_missing_or_not_finished(stores: Stores) -> None:
    a, b = stores.pair()
    with pytest.raises(DataError, match="There is no store at"):
        open_pair(a, stores.root / "nowhere")
    (b / "store/cells/toy/val/00000.npz").unlink()
    with pytest.raises(DataError, match="b lacks 1 shards: run its evaluation again"):
        open_pair(a, b)


# ---------------------------------------------------------------------------------------------------------- the output


class Outline(HTMLParser):
    """Checks that tags nest, and collects them and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data + " "


def test_the_page_shows_the_numbers_and_escapes_names(stores: Stores) -> None:
    suite = several_sets()
    a = stores.write("a", suite, all_answers({"toy-c/snow/1": range(3)}))
    b = stores.write("b", suite, all_answers({"toy/flat": range(10), "toy-c/fog/3": range(6)}), name=EVIL)
    comparison = compared(a, b)
    html = page(comparison, 0.05, 0.5, ["toy/flat fails"])
    assert "<script>alert" not in html and html.count("<script>") == 1
    outline = Outline()
    outline.feed(html)
    assert outline.open == [] and EVIL in outline.text
    for shown in ("family of 4 tests", "The gate failed. toy/flat fails", "Errors on toy-c"):
        assert shown in outline.text
    row = comparison.family[1]
    assert f"[{100 * row.ci95[0]:+.2f}, {100 * row.ci95[1]:+.2f}] p Holm 0.008" in outline.text
    assert "-16.67" in outline.text and "+10.00" in outline.text and "-5.00" in outline.text  # top-1, fog/3, snow/1
    assert outline.tags.count("svg") == 3 + 1 + 3 + 3  # whiskers of sets, the part, the sweep; reliability diagrams
    assert "toy/flat: 6 of 6 classes answered differently" in outline.text
    assert "toy/val: 0 of 6 classes answered differently" in outline.text
    calm = page(comparison, 0.05)
    assert "gate" not in calm.lower().partition("<main>")[2].partition("<script>")[0] and "var(--bad)" in calm


def test_red_is_worse_and_green_is_better(stores: Stores) -> None:
    """Both where more is better and, for errors, where less is."""
    suite = several_sets()
    a = stores.write("a", suite, all_answers({"toy-c/snow/1": range(3)}))
    for number, drop in enumerate(({"toy/flat": range(10)}, {"toy-c/fog/3": range(12)})):
        b = stores.write(f"b{number}", suite, all_answers(drop))
        worse, better, same = page(compared(a, b)), page(compared(b, a)), page(compared(a, a))
        assert "stroke:var(--bad)" in worse and "stroke:var(--good)" not in worse
        assert "stroke:var(--good)" in better and "stroke:var(--bad)" not in better
        assert "stroke:var(--good)" not in same and "stroke:var(--bad)" not in same
    assert "color-mix(in srgb,var(--bad) 45%,transparent)" in worse  # fog/3, the largest
    assert "color-mix(in srgb,var(--good) 11%,transparent)" in worse  # snow/1, a quarter of it


def test_json_holds_every_row_and_nothing_else_is_on_stdout(stores: Stores, capsys: Any) -> None:
    a, b = stores.pair()
    assert main([str(a), str(b), "--json", "--classes", "1", "--output", str(stores.root / "out")]) == 0
    out, _ = capsys.readouterr()
    document = json.loads(out)
    assert document == json.loads((stores.root / "out/compare.json").read_text())
    assert document["schema_version"] == 1 and document["family"] == 1 and document["gate"] is None
    assert (document["a"]["name"], document["b"]["fingerprint"]) == ("a", "sha256:b")
    assert set(document["protocol"]) == {"name", "fingerprint"}
    row = document["rows"][0]
    wanted = {"dataset", "split", "metric", "n", "a", "b", "difference", "ci95", "p", "p_holm", "test"}
    assert wanted <= set(row) and row["metric"] == "top1" and row["p"] == pytest.approx(134 / 2048)
    assert [(c["name"], c["difference"]) for c in document["classes"]] == [("class 0", pytest.approx(-0.2))]


def test_the_files_of_output(stores: Stores, capsys: Any) -> None:
    a, b = stores.pair()
    out = stores.root / "deep" / "out"
    assert main([str(a), str(b), "--output", str(out)]) == 0
    assert f"written to {out}" in capsys.readouterr().out.replace("\n", "")
    assert sorted(path.name for path in out.iterdir()) == ["compare.html", "compare.json", "per_class.csv"]
    rows = list(csv.DictReader((out / "per_class.csv").read_text().splitlines()))
    assert len(rows) == CLASSES
    assert rows[0] == {
        "dataset": "toy",
        "split": "val",
        "class": "0",
        "name": "class 0",
        "images": "10",
        "a": "0.900000",
        "b": "0.700000",
        "difference": "-0.200000",
        "only_a": "2",
        "only_b": "0",
        "p_holm": "1",
    }
    first = (out / "compare.json").read_bytes(), (out / "compare.html").read_bytes()
    assert main([str(a), str(b), "--output", str(out)]) == 0
    assert first == ((out / "compare.json").read_bytes(), (out / "compare.html").read_bytes())


def test_the_table_in_words(stores: Stores, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "TABLE_WIDTH", 140)
    a, b = stores.pair(name=EVIL)
    assert main([str(a), str(b), "--classes", "2"]) == 0
    out = capsys.readouterr().out
    assert f"B: {EVIL} on torch float32" in out  # markup in a name is text
    assert "family of 1 test (one per set, by top1), p adjusted by Holm" in out
    line = next(line for line in out.splitlines() if "toy/val top-1" in line)
    assert all(word in line for word in ("93.33", "81.67", "-11.67", "0.065", "McNemar", "60"))
    assert [name for name in ("class 0", "class 1", "class 2") if name in out] == ["class 0", "class 1"]
    assert "adjusted by Holm for the 6 classes of its set" in " ".join(out.split())
    assert main([str(a), str(b), "--classes", "0"]) == 0
    assert "class 0" not in capsys.readouterr().out
