"""``python -m train.tokenizer``: what it writes, and that a pretraining target comes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from train.config import Interrupted, main
from train.targets import CodeReport, check_teacher, load_tokenizer, target_from_spec
from train.targets.tokenizer_model import VqTokenizer
from train.task import Clock
from train.tokenizer import TokenizerConfig, TokenizerTask, run

SMALL = ["--vq.width", "8", "--vq.codebook-size", "32", "--vq.code-width", "8", "--threads", "1", "--device", "cpu"]


def train(output: Path, *more: str) -> int:
    arguments = ["--output", str(output), "--batch-size", "16", "--log-every", "2", "--eval-every", "100"]
    return main("tokenizer", run, [*arguments, *SMALL, *more])


def test_command_writes_a_tokenizer_whose_codes_are_a_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "--steps", "6", "--warmup", "0", "--lr", "5e-3") == 0
    path = tmp_path / "ckpt.pt"
    assert f"--teacher codes:{path}" in capsys.readouterr().out
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, VqTokenizer) and tokenizer.codebook_size == 32
    assert int(tokenizer.codebook.updates) == int(tokenizer.scale.updates) == 6  # every step moved the codebook once
    record = tokenizer.provenance
    assert record["command"] == "python -m train.tokenizer" and record["figures"]["val_codes"] >= 2
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == [2, 4, 6]
    assert all(0 < row["reconstruction"] < 1 and 1 < row["perplexity"] <= 32 for row in trained)
    target = target_from_spec(f"codes:{path}", 64, 16)
    report = check_teacher(target, TokenizerTask(TokenizerConfig(batch_size=16)).data.split("val")[0][:32])
    assert isinstance(report, CodeReport) and report.grid == (4, 4) and report.width == 32
    assert target.fingerprint == tokenizer.fingerprint
    capsys.readouterr()
    assert train(tmp_path, "--steps", "6", "--warmup", "0", "--lr", "5e-3", "--json") == 0  # it is finished already
    document = json.loads(capsys.readouterr().out)
    assert document["checkpoint"] == str(path) and document["figures"] == record["figures"]
    assert document["steps"] == 6 and document["command"] == "python -m train.tokenizer"


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    assert train(tmp_path / "whole", "--steps", "4", "--warmup", "0") == 0
    original = TokenizerTask.loss

    def broken(self: TokenizerTask, model: torch.nn.Module, batch: object, clock: Clock) -> dict[str, torch.Tensor]:
        if getattr(batch, "step", 0) == 2 and not done:
            done.append(True)
            raise Interrupted("broken off")
        return original(self, model, batch, clock)  # type: ignore[arg-type]

    done: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenizerTask, "loss", broken)
        arguments = ("--steps", "4", "--warmup", "0", "--save-every", "1")
        assert train(tmp_path / "halves", *arguments) == 143
        assert train(tmp_path / "halves", *arguments) == 0
    whole, halves = (load_tokenizer(tmp_path / name / "ckpt.pt") for name in ("whole", "halves"))
    assert done and whole.fingerprint == halves.fingerprint


def test_other_data_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--data", "folder:somewhere") == 2
    assert "bundled data only" in capsys.readouterr().err
