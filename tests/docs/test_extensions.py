"""The extensions of docs/how-to/add-a-*.md: their code goes into a copy of the checkout, and does what they say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import Scratch, to_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    scratch = Scratch(tmp_path)
    yield scratch
    scratch.close()


def said(scratch: Scratch, page: str) -> list[str]:
    return [scratch.run(block) for block in to_run(f"docs/how-to/{page}")]


def test_a_teacher(scratch: Scratch) -> None:
    checked = said(scratch, "add-a-teacher.md")[-1]
    assert "grid                2 x 2 tokens of width 320" in checked
    assert "class target        pooled embedding" in checked
    steps = (scratch.folder / "runs/from-convnext/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(steps[-1])["step"] == 20


def test_a_benchmark(scratch: Scratch) -> None:
    said(scratch, "add-a-benchmark.md")
    results = json.loads((scratch.folder / "runs/rotation/results.json").read_text(encoding="utf-8"))
    top1 = {line["split"]: line["value"] for line in results["results"] if line["metric"] == "top1"}
    assert list(top1) == ["flat", "flat-turned-90", "flat-turned-180", "flat-turned-270"]
    assert all(top1["flat"] > top1[split] for split in list(top1)[1:])  # the model knows emoji that stand upright


def test_a_backend(scratch: Scratch) -> None:
    said(scratch, "add-a-backend.md")
    manifest = json.loads((scratch.folder / "runs/reference/manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["engines"]) == {"onnx", "onnx-reference"}
    assert manifest["backend"] == "onnx"  # the reference is slower by far
