"""The command that a run or an export ends with is one that can answer: by the model's head and on its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from digpt.next_command import measuring, measuring_as_recorded

MODEL = Path("runs/mine/ckpt.pt")


@pytest.mark.parametrize(
    ("command", "data", "val_data", "expected"),
    [
        ("finetune", "folder:my-pictures", "", f"robustness {MODEL} --data folder:my-pictures"),
        ("finetune", "folder:my pictures", "", f"robustness {MODEL} --data 'folder:my pictures'"),
        ("finetune", "folder:a", "folder:b", f"robustness {MODEL} --data folder:b"),
        ("finetune", "emoji", "", f"knn {MODEL}"),
        ("pretrain", "folder:a", "", f"knn {MODEL} --data folder:a"),
        ("pretrain", "emoji", "", f"robustness {MODEL}"),
        ("segment", "scenes", "", f"segmentation {MODEL}"),
        ("segment", "folder:a", "folder:b", f"segmentation {MODEL} --data folder:b"),
        ("zeroshot", "wds:pairs", "wds:others", f"robustness {MODEL}"),
    ],
)
def test_the_command_names_an_evaluation_and_data_that_the_model_can_answer(
    command: str, data: str, val_data: str, expected: str
) -> None:
    assert measuring(MODEL, command, data, val_data) == f"python -m evaluate.{expected}"
    record = {"command": f"python -m train.{command}", "config": {"data": data, "val_data": val_data}}
    assert measuring_as_recorded(MODEL, record) == f"python -m evaluate.{expected}"


def test_a_record_that_says_nothing_asks_the_bundled_set() -> None:
    for record in ({}, {"config": None}, {"config": ["folder:a"], "command": 3}):
        assert measuring_as_recorded(MODEL, record) == f"python -m evaluate.robustness {MODEL}"
