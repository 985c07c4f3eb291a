"""The passport: what it says of rigged records, what it says is missing, and that nothing in them becomes markup."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digpt.errors import ConfigError, DataError
from digpt.exhibits import EXHIBITS_NAME, Exhibit, Exhibits, SetExhibits, SweepExhibits, picture_of, write_exhibits
from digpt.manifest import engine_hash
from digpt.passport import FINGERPRINT_META, MOST_BYTES, PASSPORT_NAME, read_passport
from digpt.results import ModelRef, Result, ResultsDocument, with_fingerprint, write_results
from digpt.sources import BUNDLED
from export import passport as passport_module
from export.card import main
from export.facts import Facts, facts_of
from export.passport import passport
from export.passport_checks import Check, checks_of, verdict_of
from export.passport_records import Records, read_records

EVIL = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
PICTURES = {name: picture_of(np.full((8, 8, 3), value, np.uint8)) for name, value in (("a", 10), ("b", 200))}


def shown(
    split: str, label: str = "red apple", given: str = "tomato", right: bool = False, picture: str = "a"
) -> Exhibit:
    return Exhibit(split, "1F34E.flat", label, given, right, 0.9123, PICTURES[picture])


def engine_of(facts: Facts, backend: str) -> str | None:
    """The hash of the engine file in there; torch has none."""
    return engine_hash(facts.manifest, backend) if backend in facts.manifest.get("engines", {}) else None


def document_of(facts: Facts, backend: str = "onnx", **protocol: Any) -> ResultsDocument:
    """One set with its calibration and a sweep of two corruptions."""
    rows = [
        Result("emoji", "flat", "top1", 0.8084, (0.789, 0.828), 1462),
        Result("emoji", "flat", "ece", 0.152, (0.13, 0.181), 1462),
        Result("emoji", "flat/part", "top1", 0.7, None, 100),
        Result("emoji-c", "fog/5", "error", 0.82, (0.8, 0.84), 500),
        Result("emoji-c", "snow/5", "error", 0.41, (0.4, 0.42), 500),
        Result("emoji-c", "snow", "error", 0.41, (0.4, 0.42), 500),
        Result("emoji-c", "fog", "error", 0.82, (0.8, 0.84), 500),
        Result("emoji-c", "mean", "error", 0.615, (0.6, 0.63), 1000),
    ]
    model = {"spec": "x", "name": "tiny", "precision": "fp32", "has_text": True, "preprocess": {}, "templates": ("{}",)}
    model |= {"fingerprint": facts.fingerprint, "backend": backend, "engine": engine_of(facts, backend)}
    ref = ModelRef(**{**model, "classifier": "zero-shot"})
    return ResultsDocument(model=ref, protocol=with_fingerprint({"name": "emoji", **protocol}), results=tuple(rows))


def exhibits_of(document: ResultsDocument, label: str = "red apple") -> Exhibits:
    mistake = shown("flat", label)
    one = SetExhibits("emoji", "flat", 1462, 280, (0.25, 0.75), (0.5, 0.9), (462, 1000), (mistake,))
    sweep = SweepExhibits(
        "emoji-c",
        (shown("flat", given="red apple", right=True),),
        (shown("snow/5", given="dove", picture="b"), shown("fog/5", given="ghost", picture="b")),
    )
    model, protocol = document.model, str(document.protocol["fingerprint"])
    return Exhibits(model=model.fingerprint, backend=model.backend, protocol=protocol, sets=(one,), sweeps=(sweep,))


def drift_of(facts: Facts, *, passed: bool = True, backend: str = "onnx") -> dict[str, Any]:
    mean = {"dataset": "emoji-c", "split": "mean", "n": 1000, "reference": 0.6, "other": 0.615, "difference": 0.015}
    mean |= {"ci95": [0.01, 0.02], "changed": 17}
    engine = {"engine": f"{backend} fp32", "model": {"backend": backend, "engine": engine_of(facts, backend)}}
    engine |= {"passed": passed, "verdict": "as <rigged>", "predictions_changed": 17, "predictions": 1000}
    engine |= {"means": [mean], "cells": []}
    reference = {"backend": "torch", "fingerprint": facts.fingerprint}
    return {"schema_version": 1, "reference": reference, "protocol": {}, "passed": passed, "engines": [engine]}


@pytest.fixture(scope="module")
def facts(text_artifact: Path) -> Facts:
    return facts_of(str(text_artifact))


@pytest.fixture(scope="module")
def records(facts: Facts, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Everything that can be known: results with exhibits, drift, a licence, a full lineage."""
    folder = tmp_path_factory.mktemp("records")
    document = document_of(facts)
    write_results(document, folder / "results.json")
    write_exhibits(exhibits_of(document), folder / EXHIBITS_NAME)
    (folder / "drift.json").write_text(json.dumps(drift_of(facts)))
    provenance = {"command": "python -m train.zeroshot", "data": {"name": "emoji"}, "seed": 0, "commit": "abc"}
    parent = {"role": "teacher", "fingerprint": "sha256:parent", "command": "python -m train.teacher"}
    full = replace(facts, provenance={**provenance, "parents": [parent], "config": {"lr": 0.001}})
    found = read_records(full, [folder], folder, "apache-2.0")
    return replace(found, facts=replace(full, manifest={**full.manifest, "abstain": abstain()}))


def abstain() -> dict[str, Any]:
    errors = [{"labels": 1, "false_reject": 0.034, "false_accept": 0.03}]
    rates = {"errors": errors, "unseen_false_accept": {"1": 0.018}, "rule": "equal error", "of": "the bundled set"}
    return {"labels": [1, 1000], "cosine": [0.25, 0.4], "images": 983, **rates}


def states(records: Records) -> dict[str, str]:
    return {check.name: check.state for check in checks_of(records)}


def text_of(page: str) -> str:
    """What a reader sees, elements apart by spaces."""
    found: list[str] = []

    class Words(HTMLParser):
        def handle_data(self, data: str) -> None:
            found.append(data)

    Words().feed(re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL))
    return " ".join(" ".join(found).split())


def test_every_question_is_answered_from_the_records(records: Records) -> None:
    assert states(records) == {
        "Files": "passed",
        "Same answers as torch": "passed",
        "Accuracy": "measured",
        "On the engine that runs": "measured",
        "Corruptions": "measured",
        "Calibration": "measured",
        "Drift between engines": "passed",
        "None of these": "measured",
        "Lineage": "recorded",
        "Licence": "recorded",
    }
    text = text_of(passport(records))
    assert "All 10 questions are answered, and nothing failed" in text
    assert "The figures are of emoji, emoji-c." in text and "how it fares on other images" in text
    for words in (
        "1 set, 1,462 images.",
        "emoji-c: mean error 61.5 % [60.0, 63.0], 1,000 answers.",
        "80.8 [78.9, 82.8]",
        "emoji flat, ECE 15.2 % [13.0, 18.1]",
        "fog/5: 82.0 % of 500 wrong",
        "emoji flat: 280 of 1,462 wrong",
        "is red apple said tomato 91.2 %",
        "✗ ghost 91.2 %",
        "onnx did not drift from torch, as far as these answers show.",
        "+1.50 [+1.00, +2.00] 17 1,000",
        "1 0.25 3.4 % 3.0 % 1.8 %",
        "teacher sha256:parent python -m train.teacher",
        "Weights: apache-2.0.",
        "uint8 RGB of 32 x 32 pixels",
        "tokenizer.json",
    ):
        assert words in text, words
    assert text.index("fog/5: 82.0 %") < text.index("snow/5: 41.0 %")  # worst first


def test_pictures_are_inlined_and_nothing_else_is_loaded(records: Records) -> None:
    page = passport(records)
    sources = re.findall(r'src="([^"]*)"', page)
    pictures = [base64.b64decode(source.removeprefix("data:image/webp;base64,")) for source in sources]
    assert len(pictures) == 4 and all(data[:4] == b"RIFF" for data in pictures)
    assert not re.search(r"https?:|url\(|@import|<link|<iframe|href=|file:", page)
    assert "default-src &#39;none&#39;" in page and len(page.encode()) < MOST_BYTES


def test_what_was_not_measured_is_said(linear_spec: str, records: Records) -> None:
    bare = read_records(facts_of(linear_spec), [], None, "unknown")
    assert {name for name, state in states(bare).items() if state != "missing"} == {"Files", "Same answers as torch"}
    text = text_of(passport(bare))
    assert "Incomplete: 8 of 10 questions are open, nothing failed" in text
    assert "No figure of its answers was given, so this page does not know how good they are." in text
    for heading in ("Accuracy", "Corruptions", "Calibration", "Drift between engines"):
        assert f"{heading} Not measured." in text, heading
    assert "No pictures of mistakes were kept." in text and "Not calibrated:" in text
    without = replace(records, exhibits=[None])
    assert "the evaluation left no exhibits" in text_of(passport(without)) and "src=" not in passport(without)


@pytest.mark.parametrize(
    ("change", "name", "state", "said"),
    [
        ({"drift": False}, "Drift between engines", "failed", "onnx drifted from torch."),
        ({"parity": False}, "Same answers as torch", "failed", "onnx: out of the bounds"),
        ({"engines": {}}, "Same answers as torch", "missing", "No engine was compared"),
        ({"backend": "torch"}, "On the engine that runs", "missing", "figures are of torch, but onnx runs"),
        ({"drift_of": "openvino"}, "Drift between engines", "missing", "Not compared: onnx."),
        ({"provenance": {"command": "x"}}, "Lineage", "missing", "Not recorded: data, seed, commit."),
        ({"commit": "abc+"}, "Lineage", "recorded", "Of 1 model in it the code had changes"),
        ({"limit": 20}, "Accuracy", "measured", "a seeded subset"),
        ({"refused": {"onnx-int8": {}}}, "Same answers as torch", "passed", "not in here: onnx-int8"),
    ],
)
def test_a_claim_follows_its_record(
    records: Records, tmp_path: Path, change: dict[str, Any], name: str, state: str, said: str
) -> None:
    changed = altered(records, tmp_path, change)
    check = next(check for check in checks_of(changed) if check.name == name)
    assert (check.state, said in check.said) == (state, True), check.said
    claim, lines, good = verdict_of(changed, checks_of(changed))
    assert good == {"failed": False, "missing": None}.get(state, True)
    if state == "failed":
        assert claim == "Not as it is: 1 of 10 checks failed" and lines[0] == f"{name}: {check.said}"
        assert 'class="notice verdict bad"' in passport(changed)
    if state == "missing":
        assert claim.startswith("Incomplete: 1 of 10") and name in lines[0]


def altered(records: Records, tmp_path: Path, change: dict[str, Any]) -> Records:
    facts = records.facts
    if "parity" in change:
        onnx = (facts.engines or {})["onnx"]
        facts = replace(facts, engines={"onnx": {**onnx, "parity": {**onnx["parity"], "passed": False}}})
    if "engines" in change:
        facts = replace(facts, engines=change["engines"])
    if "provenance" in change:
        facts = replace(facts, provenance=change["provenance"])
    if "commit" in change:
        facts = replace(facts, provenance={**facts.provenance, "commit": change["commit"]})
    if "refused" in change:
        facts = replace(facts, manifest={**facts.manifest, "refused": change["refused"]})
    found = replace(records, facts=facts)
    if "drift" in change or "drift_of" in change:
        values = drift_of(facts, passed=change.get("drift", True), backend=change.get("drift_of", "onnx"))
        (tmp_path / "drift.json").write_text(json.dumps(values))
        found = replace(found, drift=read_records(facts, [], tmp_path, "mit").drift)
    if "backend" in change or "limit" in change:
        options = {key: value for key, value in change.items() if key in ("backend", "limit")}
        found = replace(found, documents=[document_of(facts, **options)])
    return found


class Tags(HTMLParser):
    """The elements of a page, and the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.attributes |= {name for name, _ in attrs}


def test_hostile_names_and_labels_are_text(records: Records) -> None:
    def named(word: str) -> str:
        document = records.documents[0]
        facts = replace(records.facts, name=word, source=word, provenance={**records.facts.provenance, "commit": word})
        engines = {word: next(iter((facts.engines or {}).values()))}
        versions, files = {word: word}, {word: {"sha256": word, "bytes": 1}}
        refused = {word: {"parity": {"faults": [word]}}}
        manifest = {**facts.manifest, "versions": versions, "files": files, "refused": refused, "backend": word}
        facts = replace(facts, engines=engines, files={word: 1}, manifest=manifest)
        results = (*document.results, Result(word, word.replace("/", ""), "top1", 0.5, None, 1))
        drift = records.drift
        assert drift is not None
        engine = replace(drift.engines[0], verdict=word, engine=word)
        return passport(
            replace(
                records,
                facts=facts,
                documents=[replace(document, results=results)],
                exhibits=[exhibits_of(document, word)],
                drift=replace(drift, engines=(engine,)),
                license=word,
            )
        )

    evil, plain = Tags(named(EVIL)), Tags(named("word"))
    assert evil.found == plain.found
    assert not any(name.startswith("on") for name in evil.attributes)
    assert EVIL not in named(EVIL) and "&lt;script&gt;alert(1)" in named(EVIL)


def test_the_same_records_give_the_same_bytes_and_no_path(records: Records, text_artifact: Path) -> None:
    assert passport(records) == passport(records)
    assert str(text_artifact.parent) not in passport(records)
    assert Path(records.facts.source).is_absolute() and records.facts.source not in passport(records)
    assert f"made from {Path(records.facts.source).name}" in text_of(passport(records))


def test_a_page_that_would_be_too_large_is_refused(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passport_module, "MOST_BYTES", 20_000)
    with pytest.raises(ConfigError, match=r"0\.02 at most: give fewer --results"):
        passport(records)


def test_records_of_other_models_and_evaluations_are_refused(facts: Facts, tmp_path: Path) -> None:
    document = document_of(facts)
    write_results(document, tmp_path / "results.json")
    write_exhibits(replace(exhibits_of(document), protocol="sha256:other"), tmp_path / EXHIBITS_NAME)
    with pytest.raises(DataError, match="of another evaluation"):
        read_records(facts, [tmp_path], None, "mit")
    (tmp_path / EXHIBITS_NAME).unlink()
    with pytest.raises(DataError, match="give results of this very model"):
        read_records(replace(facts, fingerprint="sha256:other"), [tmp_path], None, "mit")
    values = drift_of(replace(facts, fingerprint="sha256:other"))
    (tmp_path / "drift.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="give results of this very model"):
        read_records(facts, [], tmp_path, "mit")
    (tmp_path / "drift.json").write_text("{}")
    with pytest.raises(DataError, match="no drift report"):
        read_records(facts, [], tmp_path, "mit")
    with pytest.raises(DataError, match="There is no drift report"):
        read_records(facts, [], tmp_path / "nothing.json", "mit")


def test_command(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fingerprint = facts_of(str(copied)).fingerprint
    output = tmp_path / "page.html"
    assert main([str(copied), "--html", str(output)]) == 0
    assert capsys.readouterr().out == ""
    page = output.read_text(encoding="utf-8")
    assert f'<meta name="{FINGERPRINT_META}" content="{fingerprint}">' in page
    assert read_passport(str(copied), fingerprint) == page  # beside the sealed files, which still verify
    assert facts_of(str(copied)).fingerprint == fingerprint and PASSPORT_NAME not in facts_of(str(copied)).files
    assert main([str(copied), "--html", str(tmp_path / "other.html")]) == 2
    assert f"{PASSPORT_NAME} exists; add --overwrite" in capsys.readouterr().err
    assert not (tmp_path / "other.html").exists()
    both = [str(copied), "--html", str(copied / PASSPORT_NAME), "--output", str(copied / "README.md"), "--overwrite"]
    assert main(both) == 0 and (copied / "README.md").read_text().startswith("---")
    assert main([str(copied), "--drift", str(tmp_path)]) == 2 and "add --html" in capsys.readouterr().err


def test_the_bundled_passport_is_what_its_records_give() -> None:
    """Made by: python -m export.card bundled --results digpt/bundled/emoji-tiny --license apache-2.0 --html FILE."""
    facts = facts_of("bundled")
    written = read_passport("bundled", facts.fingerprint)
    assert written is not None and written == passport(read_records(facts, [BUNDLED], None, "apache-2.0"))
    assert "openvino" not in written and "Drift between engines, None of these" in text_of(written)


def test_the_words_of_a_check_say_that_nothing_was_measured() -> None:
    words = [Check("x", "missing", "", missing).word for missing in ("", "not stated")]
    assert words == ["not measured", "not stated"]


def test_too_few_images_are_no_proof_of_no_drift(records: Records) -> None:
    drift = records.drift
    assert drift is not None
    unclear = replace(drift.engines[0], decided=False)
    for changed in (
        replace(drift, engines=(unclear,)),
        replace(drift, reference={**drift.reference, "backend": "onnx"}, engines=(replace(unclear, model={}),)),
    ):
        (check,) = [one for one in checks_of(replace(records, drift=changed)) if one.name == "Drift between engines"]
        assert (check.state, check.word) == ("missing", "too few images")
        assert "too few images to tell" in check.said


@pytest.mark.parametrize(
    ("engine", "word", "said"),
    [
        ("sha256:" + "0" * 64, "another build", "measured on another build of the engine than the one that runs"),
        (None, "not recorded", "do not say which build of the engine answered"),
    ],
)
def test_another_build_of_the_engine_is_no_evidence(records: Records, engine: str | None, word: str, said: str) -> None:
    """Same weights, same backend, another file: an export by another version."""
    document, drift = records.documents[0], records.drift
    assert drift is not None
    older = replace(document, model=replace(document.model, engine=engine))
    other = replace(drift.engines[0], model={**drift.engines[0].model, "engine": engine})
    changed = replace(records, documents=[older], drift=replace(drift, engines=(other,)))
    open_ = {check.name: check for check in checks_of(changed) if check.state == "missing"}
    assert set(open_) == {"On the engine that runs", "Drift between engines"}
    assert all(check.word == word and said in check.said for check in open_.values())
    assert "Incomplete: 2 of 10 questions are open" in text_of(passport(changed))
    both = replace(changed, documents=[older, document])
    assert states(both)["On the engine that runs"] == "measured"
    drifted = replace(changed, drift=replace(drift, engines=(replace(other, passed=False),)))
    assert states(drifted)["Drift between engines"] == ("missing" if engine else "failed")


def test_the_engine_that_runs_fails_where_others_drift_from_it(records: Records) -> None:
    """Compared with itself it would never drift: the coarse one of two may be the reference."""
    drift = records.drift
    assert drift is not None
    engine = replace(drift.engines[0], model={"backend": "openvino"}, passed=False)
    turned = replace(drift, reference={**drift.reference, "backend": "onnx"}, engines=(engine,))
    assert states(replace(records, drift=turned))["Drift between engines"] == "failed"


def test_a_manifest_that_was_edited_has_no_passport(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["engines"]["onnx"]["parity"]["agreement"] = 1.0
    manifest["engines"]["onnx"]["parity"]["images"] = 100_000
    path.write_text(json.dumps(manifest))
    assert main([str(copied), "--html", str(copied.parent / "page.html")]) == 2
    assert "engines" in capsys.readouterr().err and not (copied.parent / "page.html").exists()
