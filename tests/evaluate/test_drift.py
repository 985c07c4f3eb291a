"""Whether a model's numbers drifted between engines, on stores of made-up answers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digpt.errors import ConfigError
from evaluate.compare import main, open_pair
from evaluate.drift import Drift, Drifts, drifts
from evaluate.suite import Suite
from evaluate.testing import Stores, answers, cell, suite_of, view

CELLS = 75
IMAGES = 500
NAMES = [f"c{number}/{severity}" for number, severity in itertools.product(range(15), range(1, 6))]


def sweep(n: int = IMAGES) -> Suite:
    """Fifteen corruptions at five severities, without the clean images."""
    cells = [cell(f"toy-c/{name}", n) for name in NAMES]
    views = [
        view(one.id, n, corruption=(name.partition("/")[0], int(name[-1])))
        for one, name in zip(cells, NAMES, strict=True)
    ]
    return suite_of(cells, views)


def engine(stores: Stores, name: str, wrong: dict[str, Any], precision: str = "fp32", n: int = IMAGES) -> Path:
    right = {f"toy-c/{cell}": answers(wrong.get(cell, wrong.get("all", ())), n) for cell in NAMES}
    model = {"fingerprint": "sha256:one", "backend": name, "precision": precision}
    return stores.write(name, sweep(n), right, **model)


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(tmp_path)


def found(a: Path, *others: Path) -> Drifts:
    pairs = [open_pair(a, other) for other in others]
    return drifts(pairs[0][0], [other for _, other in pairs])


def only(a: Path, b: Path) -> Drift:
    return found(a, b).engines[0]


def test_engines_that_answer_alike_pass(stores: Stores, capsys: Any) -> None:
    a = engine(stores, "torch", {"all": range(100)})
    others = [engine(stores, "onnx", {"all": range(100)}), engine(stores, "openvino", {"all": range(100)}, "float32")]
    for one in found(a, *others).engines:
        assert len(one.cells) == CELLS and not one.failures and one.exact
        assert one.changed == (0, CELLS * IMAGES) and one.sweeps[0].difference == 0
    assert main([str(a), *map(str, others), "--same"]) == 0
    out = capsys.readouterr().out
    assert "same  onnx fp32: every one of 75 cells is within 0.1 point" in out and "same  openvino float32:" in out


def test_one_cell_that_is_two_tenths_off_fails_in_float32(stores: Stores, capsys: Any) -> None:
    a = engine(stores, "torch", {"all": range(100)})
    b = engine(stores, "onnx", {"all": range(100), "c7/3": range(101)})  # one image of 500
    drift = only(a, b)
    (failure,) = drift.failures
    assert (failure.id, failure.changed) == ("toy-c/c7/3", 1) and failure.points == pytest.approx(0.2)
    assert drift.sweeps[0].points == pytest.approx(0.2 / CELLS)
    assert main([str(a), str(b), "--same"]) == 1
    out = capsys.readouterr().out
    assert "DRIFTED  onnx fp32: 1 of 75 cells are more than 0.1 point off" in out
    assert "0.20 points, of toy-c/c7/3" in out and "+0.20 (1)" in out


def test_a_tenth_of_a_point_is_allowed(stores: Stores) -> None:
    a = engine(stores, "torch", {}, n=1000)
    for wrong, failures in ((range(1), 0), (range(2), 1)):
        b = engine(stores, f"onnx{len(wrong)}", {"c0/1": wrong}, n=1000)
        assert len(only(a, b).failures) == failures


def test_a_better_cell_is_drift_too(stores: Stores) -> None:
    drift = only(engine(stores, "torch", {"all": range(100)}), engine(stores, "onnx", {"all": range(99)}))
    assert len(drift.failures) == CELLS and drift.sweeps[0].points == pytest.approx(-0.2)


def test_answers_that_cancel_are_counted(stores: Stores) -> None:
    """As many images gained as lost: the error is the same, the predictions are not."""
    a, b = engine(stores, "torch", {"all": range(4)}), engine(stores, "onnx", {"all": range(2, 6)})
    drift = only(a, b)
    assert not drift.failures and drift.changed == (4 * CELLS, IMAGES * CELLS)


def scattered(seed: int, each: int) -> dict[str, list[int]]:
    rng = np.random.default_rng(seed)
    return {name: rng.choice(IMAGES, each, replace=False).tolist() for name in NAMES}


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_coarse_engines_are_held_to_the_interval_of_the_sweep(stores: Stores, precision: str, capsys: Any) -> None:
    """Other images are wrong, as many of them: cells differ by their noise, the sweep does not."""
    a, b = engine(stores, "torch", scattered(1, 10)), engine(stores, "other", scattered(2, 10), precision)
    drift = only(a, b)
    assert not drift.exact and not drift.failures and drift.judged == drift.sweeps
    low, high = drift.sweeps[0].ci95
    assert low <= 0 <= high and "contains zero" in drift.verdict and drift.changed[0] > 0
    assert main([str(a), str(b), "--same"]) == 0
    worse = engine(stores, "worse", {name: [*range(490, 500), *range(5)] for name in NAMES}, precision)
    base = engine(stores, "base", {name: list(range(490, 500)) for name in NAMES})
    drift = only(base, worse)
    assert drift.failures == drift.sweeps and drift.sweeps[0].points == pytest.approx(1.0)
    assert drift.sweeps[0].beyond == pytest.approx(100 * drift.sweeps[0].ci95[0]) and drift.sweeps[0].beyond > 0
    assert f"leaves out zero by {drift.sweeps[0].beyond:.3f} points" in drift.verdict
    assert main([str(base), str(worse), "--same"]) == 1
    capsys.readouterr()


def test_few_images_are_no_evidence(stores: Stores, tmp_path: Path, capsys: Any) -> None:
    """As many images are wrong, but one set of 500 cannot show that no half point was lost."""
    suite = suite_of([cell("toy/val")], [view("toy/val")])
    model = {"fingerprint": "sha256:one"}
    a = stores.write("a", suite, {"toy/val": answers(range(10))}, **model)
    for name, precision, wrong, word in (
        ("far", "int8", range(10, 20), "too few images to tell"),
        ("near", "int8", range(10), "same"),
        ("exact", "fp32", range(10, 20), "same"),
    ):
        b = stores.write(name, suite, {"toy/val": answers(wrong)}, **model | {"precision": precision})
        drift = only(a, b)
        assert (drift.word, drift.failures) == (word, ())
        assert bool(drift.undecided) == (drift.judged[0].reach > 0.5 and name == "far")
        assert ("too few images to rule out a shift of 0.5 points" in drift.verdict) == (name == "far")
        assert main([str(a), str(b), "--same", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["engines"][0]["decided"] == (name != "far")


def test_the_report_holds_every_cell_of_every_engine(stores: Stores, tmp_path: Path, capsys: Any) -> None:
    a = engine(stores, "torch", {})
    others = [engine(stores, "onnx", {"c7/3": range(1)}), engine(stores, "openvino-bf16", {}, "bf16")]
    output = tmp_path / "report"
    assert main([str(a), *map(str, others), "--same", "--output", str(output), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((output / "drift.json").read_text())
    assert [(one["engine"], one["passed"], len(one["cells"])) for one in document["engines"]] == [
        ("onnx fp32", False, CELLS),
        ("openvino-bf16", True, CELLS),
    ]
    (off,) = [cell for cell in document["engines"][0]["cells"] if cell["difference"]]
    assert off["split"] == "c7/3" and off["difference"] == pytest.approx(0.002) and off["changed"] == 1
    assert off["ci95"][0] == 0 and 0.002 < off["ci95"][1] < 0.02
    assert document["engines"][0]["bound_points"] == 0.1 and document["engines"][1]["bound_points"] is None
    html = (output / "drift.html").read_text()
    assert document["engines"][0]["verdict"] in html and html.count("toy-c/c7/3") >= 2 and "+0.20" in html


def test_runs_without_a_sweep_are_judged_by_their_sets(stores: Stores) -> None:
    suite = suite_of([cell("toy/val")], [view("toy/val")])
    model = {"fingerprint": "sha256:one"}
    a = stores.write("a", suite, {"toy/val": answers()}, **model)
    b = stores.write("b", suite, {"toy/val": answers(range(20))}, **model | {"precision": "int8"})
    drift = only(a, b)
    assert [shift.id for shift in drift.failures] == ["toy/val"] and drift.sweeps == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{a}", "{other}", "--same"], "has other weights than"),
        (["{a}", "{a}", "{a}"], "add --same"),
        (["{a}", "{a}", "--same", "--fail-if-worse"], "--same is a gate of its own"),
        (["{a}", "{a}", "{b}", "--same", "--output", "{b}"], "holds an evaluation"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(
    stores: Stores, capsys: Any, arguments: list[str], message: str
) -> None:
    places = {"a": engine(stores, "a", {}, n=6), "b": engine(stores, "b", {}, n=6)}
    right = {f"toy-c/{name}": answers((), 6) for name in NAMES}
    places["other"] = stores.write("other", sweep(6), right)
    assert main([argument.format(**places) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1


def test_other_options_are_no_drift(stores: Stores) -> None:
    a = engine(stores, "torch", {})
    other = {"fingerprint": "sha256:one", "backend": "onnx", "preprocess": {"size": 64, "crop_pct": 0.875}}
    b = stores.write("cropped", sweep(), {f"toy-c/{cell}": answers((), IMAGES) for cell in NAMES}, **other)
    with pytest.raises(ConfigError, match=r"other options \(.*crop_pct .* / 0.875"):
        found(a, b)
