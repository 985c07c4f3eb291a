"""The command line of training: what an option overrides, what is refused, and what --print-config says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from digpt.errors import ConfigError
from train.config import TrainConfig, parse, resolved


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as end:
        parse("pretrain", [*arguments, "--print-config"])
    assert end.value.code == 0
    return dict(json.loads(capsys.readouterr().out))


def test_steps_rates_and_warm_up_win_over_a_recipes_epochs() -> None:
    images = 1_281_167
    untouched = resolved(parse("pretrain", ["b16_in1k"]), images)
    assert (untouched.steps, untouched.warmup) == (93_835, 12_511) and untouched.lr == pytest.approx(2.4e-3)
    changed = resolved(parse("pretrain", ["b16_in1k", "--steps=100", "--lr", "0.5", "--warmup", "7"]), images)
    assert (changed.steps, changed.warmup, changed.lr) == (100, 7, 0.5)
    shorter = resolved(parse("pretrain", ["b16_in1k", "--epochs", "1", "--warmup-epochs", "0.5"]), images)
    assert (shorter.steps, shorter.warmup) == (312, 156)
    for pair in (("--steps", "--epochs"), ("--warmup", "--warmup-epochs"), ("--lr", "--base-lr")):
        with pytest.raises(ConfigError, match="say the same thing: give one of them"):
            parse("pretrain", ["b16_in1k", pair[0], "1", pair[1], "1"])


def test_print_config_says_what_follows_from_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, "b16_in1k")
    assert shown["steps"] == "from epochs" and shown["lr"] == "from base_lr" and shown["recipe"] == "b16_in1k"
    shown = printed(capsys, "--miniature", "b16_in1k", "--steps", "9")  # the order of flags and recipe is free
    assert shown["steps"] == 9 and shown["epochs"] is None and shown["data"] == "emoji"


def test_options_of_another_paradigm_are_refused() -> None:
    assert parse("pretrain", ["b16_in1k", "--paradigm", "fd"]).paradigm == "fd"
    with pytest.raises(ConfigError, match="--objective options do not belong to the paradigm fd"):
        parse("pretrain", ["b16_in1k", "--paradigm", "fd", "--objective.decoder-depth", "2"])
    with pytest.raises(ConfigError, match="--mae options do not belong to the paradigm digpt"):
        parse("pretrain", ["--mae.decoder-depth=2"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must not be negative"),
        ({"warmup": -1}, "warmup=-1 must not be negative"),
        ({"clip": -0.5}, "clip=-0.5 must not be negative"),
        ({"epochs": 0.0}, "epochs=0.0 must be above 0"),
        ({"limit": 0}, "limit=0 must be above 0"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"compile": "inducter"}, "Unknown --compile 'inducter'.*inductor"),
    ],
)
def test_values_without_a_meaning_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**change)


def test_a_run_resumes_on_another_machine_but_not_with_another_schedule() -> None:
    here = TrainConfig()
    elsewhere = TrainConfig(workers=9, accumulate=2, compile="eager", checkpointing=True, nonfinite="skip", threads=1)
    assert here.to_dict() == elsewhere.to_dict() != TrainConfig(lr=0.5).to_dict()
