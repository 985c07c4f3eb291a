"""Two processes over gloo against one: identical samples, equal losses; resuming with another number of processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from digpt.artifact import read_checkpoint
from digpt.errors import ConfigError
from train.share import Share

Alone = Callable[[str], tuple[Path, list[dict[str, float]]]]
WORKER = Path(__file__).with_name("processes_worker.py")


def run(output: Path, world: int, command: str, **changes: Any) -> list[dict[str, float]]:
    """Train with ``world`` processes; the logged rows that have a loss."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = json.dumps({"output": str(output), **changes})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(world), str(port), command, given],
            cwd=WORKER.parents[2],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=240)[1] for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(errors)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def seen(output: Path, world: int) -> list[Any]:
    """Every sample of every step in the order of the global batch."""
    parts = [part for rank in range(world) for part in json.loads((output / f"seen-{rank}.json").read_text())]
    samples = []
    for step, first, epochs, items, digests in parts:
        places = range(first, first + len(items))
        samples += list(zip([step] * len(items), places, epochs, items, digests, strict=True))
    return sorted(samples)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """The folder and the rows of a command run in one process."""

    @cache
    def one(command: str) -> tuple[Path, list[dict[str, float]]]:
        folder = tmp_path_factory.mktemp(command)
        return folder, run(folder, 1, command)

    return one


def assert_equal(first: list[dict[str, float]], second: list[dict[str, float]], *endings: str) -> None:
    assert [row["step"] for row in first] == [row["step"] for row in second]
    for one, other in zip(first, second, strict=True):
        for key in [key for key in one if key.endswith(endings)]:
            assert abs(one[key] - other[key]) <= 1e-5 * max(1.0, abs(one[key])), (key, one[key], other[key])


@pytest.mark.parametrize("command", ["pretrain", "zeroshot", pytest.param("finetune", marks=pytest.mark.slow)])
def test_two_processes_see_the_samples_and_have_the_losses_of_one(alone: Alone, tmp_path: Path, command: str) -> None:
    folder, rows = alone(command)
    assert_equal(rows, run(tmp_path, 2, command), "loss", "baseline", "grad_norm")
    assert seen(tmp_path, 2) == seen(folder, 1) and len(seen(folder, 1)) == 3 * 8
    assert_same_weights(folder, tmp_path)


@pytest.mark.slow
def test_sharded_and_accumulated_losses_are_those_of_one_process(alone: Alone, tmp_path: Path) -> None:
    folder, rows = alone("pretrain")
    sharded = run(tmp_path / "fsdp2", 2, "pretrain", sharding="fsdp2", accumulate=2)
    assert_equal(rows, sharded, "loss", "grad_norm")  # not baselines, which fold in micro-batch by micro-batch
    assert_same_weights(folder, tmp_path / "fsdp2", "encoder")
    assert_equal(alone("zeroshot")[1], run(tmp_path / "tuned", 2, "zeroshot", sharding="fsdp2"), "loss", "grad_norm")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(alone: Alone, tmp_path: Path) -> None:
    folder, rows = alone("pretrain")
    changes = {"sharding": "fsdp2", "checkpointing": True}
    assert len(run(tmp_path, 2, "pretrain", interrupt=2, **changes)) == 2
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert state["done"] == 2 and set(state["module"]) >= {"encoder.cls_token", "gen.query"}
    changes["sharding"] = "ddp"
    assert_equal(rows, run(tmp_path, 1, "pretrain", **changes), "loss", "baseline", "grad_norm")
    assert_same_weights(folder, tmp_path)


def assert_same_weights(first: Path, second: Path, *groups: str) -> None:
    one, two = read_checkpoint(first / "ckpt.pt").weights, read_checkpoint(second / "ckpt.pt").weights
    for group in groups or one:
        for name, value in one[group].items():
            assert torch.allclose(value, two[group][name], atol=2e-4), (group, name)


def test_a_batch_that_does_not_divide_is_refused_with_ones_that_do() -> None:
    with pytest.raises(ConfigError, match="use 6 or 9"):
        Share(0, 3).micro_batch(8)
    assert Share(1, 2, 2).rows(8) == [slice(4, 6), slice(6, 8)]
