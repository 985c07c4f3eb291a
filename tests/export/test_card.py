"""Model cards: the front matter that hubs read, and the text, from records alone."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from digpt.artifact import write_checkpoint
from digpt.errors import DataError
from digpt.results import ModelRef, Result, ResultsDocument, read_results, with_fingerprint, write_results
from digpt.runtime import load_runtime
from digpt.sources import BUNDLED, load_model
from digpt.testing import tiny_checkpoint
from export.card import card, main
from export.facts import facts_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def document(text_artifact: Path) -> ResultsDocument:
    """Results of the artifact: one set, one part of it, and a sweep of one corruption."""
    rows = [
        Result("emoji", "flat", "top1", 0.8084, (0.789, 0.828), 1462),
        Result("emoji", "unseen/noto", "top1", 0.26, (0.18, 0.36), 100),
        Result("emoji-c", "fog/1", "error", 0.2, None, 10),
        Result("emoji-c", "fog", "error", 0.3, (0.25, 0.35), 10),
        Result("emoji-c", "mean", "error", 0.3, (0.28, 0.32), 10),
    ]
    ref = ModelRef.of(load_runtime(str(text_artifact), threads=1).info, "zero-shot")
    return ResultsDocument(model=ref, protocol=with_fingerprint({"name": "emoji", "limit": 20}), results=tuple(rows))


def test_front_matter_is_what_the_hub_reads(text_artifact: Path, document: ResultsDocument) -> None:
    parsed = ModelCard(card(facts_of(str(text_artifact)), [document], license="apache-2.0")).data
    assert (parsed.library_name, parsed.license, parsed.model_name) == ("digpt", "apache-2.0", "tiny")
    assert parsed.pipeline_tag == "zero-shot-image-classification" and "onnx" in parsed.tags
    assert parsed.eval_results is not None
    found = {
        (r.dataset_type, r.dataset_split, r.metric_type): (r.metric_value, r.metric_name) for r in parsed.eval_results
    }
    assert found == {
        ("emoji", "flat", "top1"): (0.8084, "top-1 80.8 %, 95 % interval 78.9 to 82.8 %, 1,462 images, onnx fp32"),
        ("emoji-c", "mean", "error"): (0.3, "error 30.0 %, 95 % interval 28.0 to 32.0 %, 10 images, onnx fp32"),
    }


def test_text_of_an_artifact(text_artifact: Path, text_spec: str, document: ResultsDocument) -> None:
    text = card(facts_of(str(text_artifact)), [document], license="unknown")
    assert f"`{load_model(text_spec).fingerprint}`" in text and str(text_artifact) not in text
    assert "- **tiny** `sha256:" in text and "`digpt.testing.tiny_checkpoint`" in text
    assert "uint8 RGB of 32 x 32 pixels: resize `shortest` (bicubic), crop_pct 1; alpha `white`" in text
    (engine,) = [line for line in text.splitlines() if line.startswith("| onnx fp32 |")]
    assert "| 1 - " in engine and "| 100.00% | 40 |" in engine and engine.endswith("| CPUExecutionProvider |")
    assert "| flat | top1 | 80.8 % | 78.9 to 82.8 | 1,462 |" in text and "| fog | 20.0 |" in text
    assert "- Some figures are of a seeded subset" in text and "Not stated." in text


def test_text_of_checkpoints(segment_spec: str, linear_spec: str, tmp_path: Path) -> None:
    segmenter, linear = (card(facts_of(spec), [], license="mit") for spec in (segment_spec, linear_spec))
    assert "one of 5 classes for every pixel" in segmenter and "pipeline_tag: image-segmentation" in segmenter
    assert "python -m evaluate.segmentation tiny.pt" in segmenter and "model-index" not in segmenter
    assert "one of 4 classes" in linear and "pipeline_tag: image-classification" in linear
    assert "ViT of width 48, 1 blocks, patch 8 at 32 px" in linear and "Nothing of it was measured" in linear
    write_checkpoint(tmp_path / "encoder.pt", tiny_checkpoint(text=False, labels=None))
    encoder = card(facts_of(str(tmp_path / "encoder.pt")), [], license="mit")
    assert "alone it does not classify" in encoder and "python -m evaluate.knn encoder.pt" in encoder


def test_results_of_another_model_are_refused(text_artifact: Path, document: ResultsDocument) -> None:
    other = replace(document, model=replace(document.model, fingerprint="sha256:" + "0" * 64))
    with pytest.raises(DataError, match="give results of this very model"):
        card(facts_of(str(text_artifact)), [other], license="mit")


def test_command(
    text_artifact: Path, document: ResultsDocument, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, results = tmp_path / "README.md", tmp_path / "results.json"
    write_results(document, results)
    options = [str(text_artifact), "--results", str(results), "--license", "mit"]
    assert main([*options, "--output", str(output)]) == 0
    assert output.read_text(encoding="utf-8") == card(facts_of(str(text_artifact)), [document], license="mit")
    assert main(options) == 0 and capsys.readouterr().out == output.read_text(encoding="utf-8")
    output.write_text("by hand")
    assert main([*options, "--output", str(output)]) == 2 and output.read_text() == "by hand"
    assert "add --overwrite" in capsys.readouterr().err
    assert main([*options, "--output", str(output), "--overwrite"]) == 0 and output.read_text() != "by hand"
    assert main([str(tmp_path / "nothing.pt")]) == 2


def test_bundled_card_is_what_its_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "model_card.py"))
    written = script["bundled_card"](read_results(BUNDLED / "results.json"))
    assert written == (BUNDLED / "README.md").read_text(encoding="utf-8")
