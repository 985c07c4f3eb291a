"""docs/tutorial.md from its first line to its last, with fewer steps and pictures, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.docs.pages import Scratch, to_run


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    trained = {f"-m train.{name}": "--steps 30 --threads 1 --workers 0" for name in ("finetune", "pretrain")}
    scratch.options = trained | {"-m evaluate.robustness": "--limit 20", "-m export": "--parity-images 64"}
    try:
        said = "".join(scratch.run(block) for block in to_run("docs/tutorial.md"))
    finally:
        scratch.close()
    assert "my-pictures/train: 1,347 images of 10 classes" in said
    assert '"model":"mine"' in said
    assert "scratch" in (tmp_path / "runs/compared/compare.html").read_text(encoding="utf-8")
    assert "passport" in (tmp_path / "runs/mine-artifact/passport.html").read_text(encoding="utf-8")
    figures = json.loads((tmp_path / "runs/mine-measured/results.json").read_text(encoding="utf-8"))["results"]
    top1 = next(line["value"] for line in figures if line["metric"] == "top1")
    assert top1 > 0.3  # chance is 0.1
