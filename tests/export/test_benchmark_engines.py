"""The benchmark of all engines, in miniature: one table, the mark of `auto`, and reasons for what is missing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import engines
from digpt.errors import BackendError, ConfigError
from digpt.runtime.timing import take_turns

FEW = (
    "--engines",
    "torch",
    "torch-bf16",
    "onnx",
    "openvino",
    "--parity-images",
    "16",
    "--threads",
    "1",
    "--rounds",
    "1",
)


def test_engines_of_both_kinds_are_in_one_table(
    text_spec: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(target: str) -> None:
        if target == "openvino":
            raise BackendError("there is none today")

    monkeypatch.setattr(engines, "check_machine", check)
    assert engines.main([text_spec, *FEW, "--json"]) == 0
    (figures,) = json.loads(capsys.readouterr().out)
    assert list(figures["engines"]) == ["torch", "torch-bf16", "onnx"]
    assert figures["missing"] == {"openvino": "there is none today"} and figures["peak_memory_mb"] > 50
    torch, bf16, onnx = figures["engines"].values()
    assert torch["parity"]["cosine_min"] == pytest.approx(1, abs=1e-12) and onnx["parity"]["cosine_min"] > 0.99999
    assert (bf16["parity"]["precision"], onnx["parity"]["agreement"]) == ("bf16", 1.0)
    assert 1e-7 < 1 - bf16["parity"]["cosine_min"] < 1e-2
    assert (onnx["auto"], onnx["ratio_batch_16"]) == ("artifact", 1.0)  # the only one of an artifact
    assert {torch["auto"], bf16["auto"]} <= {"checkpoint", ""}
    expected = onnx["timings"]["batch_16_ms"] / torch["timings"]["batch_16_ms"]
    assert torch["ratio_batch_16"] == pytest.approx(expected)


@pytest.fixture(scope="module")
def row(text_spec: str) -> engines.Row:
    options = engines.Options(engines=("torch",), parity_images=16, threads=1, rounds=1)
    return engines.compare(text_spec, options).rows[0]


def test_auto_is_the_fastest_that_passes_of_each_kind(row: engines.Row, monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(engine: str, milliseconds: float, passed: bool = True) -> engines.Row:
        timings = {"batch_1_ms": milliseconds, "batch_16_ms": 16 * milliseconds}
        return dataclasses.replace(row, engine=engine, timings=timings, passed=passed)

    monkeypatch.setattr(engines, "default_targets", lambda: ("onnx", "openvino", "openvino-bf16"))
    rows = [
        planned("torch", 4.0),
        planned("torch-bf16", 3.0),
        planned("onnx", 8.0),
        planned("openvino", 2.0),
        planned("openvino-bf16", 1.0, passed=False),
        planned("aoti", 0.5),
    ]
    marked = engines.mark_auto(rows)
    assert [row.auto for row in marked] == ["", "checkpoint", "", "artifact", "", ""]
    assert [engines.ratio(row, marked) for row in marked] == [2.0, 8 / 3, 1.0, 4.0, 8.0, 16.0]
    assert engines.ratio(marked[0], marked[:2]) is None
    shown = engines.table(engines.Comparison("tiny", marked, {}, None))
    assert shown.row_count == 6 and list(shown.columns[-1].cells)[1] == "checkpoint"


def test_a_seeded_model_is_a_local_file_and_the_same_every_time(tmp_path: Path) -> None:
    from digpt.sources import load_model

    specs = [engines.seeded_spec("test_vit", folder) for folder in (tmp_path, tmp_path)]
    assert specs[0].startswith("timm:test_vit@")
    assert load_model(specs[0]).fingerprint == load_model(specs[1]).fingerprint
    with pytest.raises(ConfigError, match="seeded:test_vti: timm has no such model"):
        engines.seeded_spec("test_vti", tmp_path)


def test_an_unknown_engine_is_refused(text_spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert engines.main([text_spec, "--engines", "onxx"]) == 2
    assert "onnx" in capsys.readouterr().err


def test_rounds_can_be_asked_for() -> None:
    calls: list[int] = []

    def compute(batch: np.ndarray) -> np.ndarray:
        calls.append(len(batch))
        return batch

    take_turns({"a": compute}, np.zeros(1), least=30)
    assert len(calls) == 31
