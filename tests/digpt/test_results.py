"""The results document: round trip, refusals by name, the published schema, the printed table."""

from __future__ import annotations

import copy
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from digpt.errors import DataError
from digpt.results import (
    RESULTS_SCHEMA,
    ModelRef,
    Result,
    ResultsDocument,
    from_json,
    protocol_fingerprint,
    read_results,
    to_json,
    with_fingerprint,
    write_results,
)
from digpt.results_table import format_value, render
from digpt.runtime.fake import FakeRuntime

DOCS = Path(__file__).resolve().parents[2] / "docs" / "results.md"


@pytest.fixture
def document() -> ResultsDocument:
    return ResultsDocument(
        model=ModelRef.of(FakeRuntime(templates=("a {}", "{}")).info, "zero-shot"),
        protocol=with_fingerprint({"name": "emoji", "limit": None, "k": (10, 20)}),
        results=(
            Result("emoji", "flat", "top1", 0.661, (0.64, 0.6832), 1118),
            Result("emoji", "flat", "top5", 0.92, None, 1118),
            Result("emoji", "flat", "knn_top1_k20", 0.5, (0.4, 0.6), 1118),
        ),
    )


def printed(document: ResultsDocument) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(render(document))
    return console.file.getvalue()


def test_round_trip_and_key_order(document, tmp_path):
    path = write_results(document, tmp_path / "new" / "results.json")
    assert read_results(path) == read_results(path.parent) == document
    values = json.loads(path.read_text())
    assert list(values) == ["schema_version", "model", "protocol", "results"]
    assert list(values["model"])[:3] == ["spec", "fingerprint", "backend"]
    assert values["schema_version"] == 3
    assert values["results"][0] == {
        "dataset": "emoji",
        "split": "flat",
        "metric": "top1",
        "value": 0.661,
        "ci95": [0.64, 0.6832],
        "n": 1118,
    }
    assert values["model"]["templates"] == ["a {}", "{}"]
    assert values["model"]["preprocess"]["size"] == 64


def test_protocol_fingerprint_ignores_order_and_itself():
    one = protocol_fingerprint({"a": 1, "b": [1, 2]})
    assert one == protocol_fingerprint({"b": [1, 2], "a": 1, "fingerprint": "x"})
    assert one == with_fingerprint({"a": 1, "b": (1, 2)})["fingerprint"]
    assert one != protocol_fingerprint({"a": 1, "b": [2, 1]})
    assert one == "sha256:" + hashlib.sha256(b'{"a":1,"b":[1,2]}').hexdigest()


def edited(document: ResultsDocument, *path: str | int, value: object = None, drop: bool = False) -> dict:
    values = copy.deepcopy(to_json(document))
    target = values
    for step in path[:-1]:
        target = target[step]
    if drop:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema_version",), 4, "schema version 4, this program reads up to 3; update"),
        (("schema_version",), 0, "no results document"),
        (("schema_version",), None, "no results document"),
        (("results", 1, "value"), float("nan"), "results.1.value"),
        (("results", 1, "value"), "0.5", "results.1.value"),
        (("results", 0, "n"), 0, "results.0.n"),
        (("results", 0, "ci95"), [0.1], "results.0.ci95"),
        (("results", 0, "ci95"), [0.7, 0.6], "ends exchanged for emoji / flat / top1"),
        (("results", 1, "metric"), "top1", "two rows for emoji / flat / top1"),
        (("results", 0, "extra"), 1, "results.0.extra"),
        (("model", "fingerprint"), "", "model.fingerprint"),
        (("protocol", "name"), None, "protocol without a name"),
        (("protocol", "limit"), 100, "does not match its fingerprint"),
        (("protocol", "fingerprint"), "sha256:0", "does not match its fingerprint"),
    ],
)
def test_refusals_name_the_place(document, path, value, message):
    with pytest.raises(DataError, match=message):
        from_json(edited(document, *path, value=value))


@pytest.mark.parametrize("path", [("schema_version",), ("model", "backend"), ("results", 0, "ci95"), ("results",)])
def test_nothing_may_be_missing(document, path):
    with pytest.raises(DataError, match="no schema_version" if path == ("schema_version",) else str(path[-1])):
        from_json(edited(document, *path, drop=True))


def test_a_bad_document_is_not_written_and_leaves_the_old_one(document, tmp_path):
    path = write_results(document, tmp_path / "results.json")
    before = path.read_bytes()
    bad = replace(document, results=(Result("emoji", "flat", "x", float("inf"), None, 1),))
    with pytest.raises(DataError, match=r"results\.0\.value"):
        write_results(bad, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_unreadable_files(tmp_path):
    with pytest.raises(DataError, match="no results at"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"schema_version": 1, "mod')
    with pytest.raises(DataError, match="is not JSON"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"schema_version": 1, "protocol": {"limit": NaN}}')
    with pytest.raises(DataError, match="is not JSON"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError, match="no results document"):
        read_results(tmp_path)


def test_percentages(document):
    assert [format_value(result) for result in document.results] == ["66.1 [64.0, 68.3]", "92.0", "50.0 [40.0, 60.0]"]


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]


def test_table(document):
    text = printed(document)
    assert text.startswith("fake on fake fp32, fingerprint sha256:") and ", by zero-shot" in text.splitlines()[0]
    assert rows(text) == [
        ["emoji flat", "66.1 [64.0, 68.3]", "92.0", "1,118"],
        ["emoji flat", "50.0 [40.0, 60.0]", "1,118"],
    ]
    assert "kNN" in text and "no classification" not in text


def test_calibration_stands_without_intervals_and_nll_is_no_percentage(document):
    calibrated = replace(
        document,
        results=(
            Result("emoji", "flat", "ece", 0.201, (0.17, 0.24), 9),
            Result("emoji", "flat", "nll", 0.4712, (0.4, 0.5), 9),
        ),
    )
    assert rows(printed(calibrated)) == [["emoji flat", "20.1", "0.471", "9"]]
    assert format_value(calibrated.results[1]) == "0.471 [0.400, 0.500]"


def test_a_sweep_is_a_table_by_severity(document):
    cells = [Result("imagenet-c", f"fog/{s}", "error", s / 10, (0.0, 1.0), 50) for s in (1, 2)]
    means = [
        Result("imagenet-c", "fog", "error", 0.15, (0.1, 0.2), 100),
        Result("imagenet-c", "fog", "ce", 0.183, None, 100),
        Result("imagenet-c", "mean", "error", 0.15, (0.1, 0.2), 100),
        Result("imagenet-c", "mean", "mce", 0.2, (0.1, 0.3), 100),
        Result("imagenet-c", "mean", "relative_mce", 0.33, None, 100),
    ]
    text = printed(replace(document, results=(*cells, *means)))
    assert ["fog", "10.0", "20.0", "15.0 [10.0, 20.0]", "18.3"] in rows(text)
    assert ["mean", "", "", "15.0 [10.0, 20.0]", "mCE 20.0 [10.0, 30.0]"] in rows(text)
    assert "relative mCE 33.0" in text


def test_a_part_of_imagenet_c_has_no_mce_and_says_so(document):
    """CE stands where a corruption is there at all severities."""
    whole = [Result("imagenet-c", f"fog/{s}", "error", 0.4, None, 50) for s in range(1, 6)]
    part = [Result("imagenet-c", "snow/2", "error", 0.6, None, 50)]
    means = [
        Result("imagenet-c", "fog", "error", 0.4, None, 250),
        Result("imagenet-c", "fog", "ce", 0.488, None, 250),
        Result("imagenet-c", "snow", "error", 0.6, None, 50),
        Result("imagenet-c", "mean", "error", 0.5, None, 300),
    ]
    text = printed(replace(document, results=(*whole, *part, *means)))
    assert ["fog", "40.0", "40.0", "40.0", "40.0", "40.0", "40.0", "48.8"] in rows(text)
    assert ["snow", "", "60.0", "", "", "", "60.0", ""] in rows(text)
    assert "no mCE: 14 of 15 corruptions are missing or lack a severity" in " ".join(text.split())
    elsewhere = [replace(one, dataset="mine-c-on-the-fly") for one in (*whole, *means) if one.metric == "error"]
    assert "mCE" not in printed(replace(document, results=tuple(elsewhere)))


def test_table_says_what_is_missing(document):
    blind = replace(document, model=ModelRef.of(FakeRuntime(text=False).info), results=document.results[2:])
    asked = replace(blind, protocol=with_fingerprint({**blind.protocol, "classification": {"splits": ["seen"]}}))
    limited = replace(blind, protocol=with_fingerprint({**blind.protocol, "limit": 100}))
    assert "no classification: this model has neither a linear head nor a text tower" in printed(asked)
    assert "no classification" not in printed(blind)  # where the neighbours alone were asked
    assert "at most 100 images per split" in printed(limited)
    assert "at most" not in printed(blind)
    assert blind.model.templates == ()


def test_version_1_is_migrated(document):
    """Its metrics carried the classifier, which stands with the model since."""
    old = to_json(document)
    del old["model"]["classifier"]
    old["schema_version"] = 1
    for row in old["results"][:2]:
        row["metric"] = "zeroshot_" + row["metric"]
    assert from_json(old) == document
    without = {**old, "results": old["results"][2:]}
    assert from_json(without).model.classifier is None


def test_version_2_has_no_engine_file(document):
    hashed = replace(document, model=ModelRef.of(replace(FakeRuntime().info, engine="sha256:e")))
    assert from_json(to_json(hashed)).model.engine == "sha256:e"
    old = to_json(document)
    del old["model"]["engine"]
    old["schema_version"] = 2
    assert from_json(old) == document and document.model.engine is None


def test_the_published_schema_is_the_one_in_force():
    """docs/results.md carries the schema; a change there must be meant, and raises SCHEMA_VERSION."""
    block = DOCS.read_text(encoding="utf-8").split("```json\n")[-1].split("```")[0]
    assert json.loads(block) == RESULTS_SCHEMA


def test_schema_asks_for_what_from_json_asks_for():
    assert RESULTS_SCHEMA["required"] == ["schema_version", "model", "protocol", "results"]
    assert RESULTS_SCHEMA["$defs"]["Result"]["required"] == ["dataset", "split", "metric", "value", "ci95", "n"]
    assert RESULTS_SCHEMA["properties"]["protocol"]["required"] == ["name", "fingerprint"]
    assert all(not entry["additionalProperties"] for entry in RESULTS_SCHEMA["$defs"].values())
