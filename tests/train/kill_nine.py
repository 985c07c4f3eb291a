"""Pretrain to the end in one go, and again through ``kill -9``: two run folders to compare.

    python tests/train/kill_nine.py FOLDER KILLS

Most kills are aimed at a file while it is being written, the others at any moment; after each, every checkpoint must
still be readable. A process of its own, because torch's autograd, once used, cannot be used again in a forked child:
here only children train, and each starts from the same initial weights, as the same command would.
"""

from __future__ import annotations

import dataclasses
import io
import math
import multiprocessing
import os
import random
import signal
import sys
import time
import zipfile
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import train.loop
from digpt.artifact import read_checkpoint
from train.objective import DigptConfig
from train.pretrain import PretrainConfig, PretrainTask

TINY = PretrainConfig(
    paradigm="igpt", teacher="pixels", depth=4, batch_size=2, warmup=2, log_every=1, eval_every=3, save_every=2,
    keep_last=2, threads=1,
    objective=DigptConfig(decoder_width=32, decoder_heads=2, decoder_depth=1, taps=(1, 2, 3, 4)),
)  # fmt: skip
AIMS = ("resume.pt", "step_", "best.pt", "")  # what is being written when the kill lands; "": whatever


class Measured(PretrainTask):
    """A pretraining whose evaluation costs nothing: two in three are the best so far, the last one is not."""

    def evaluate(self, evaluation: Any) -> dict[str, float]:
        weights = sum(float(p.double().abs().sum()) for p in self.module.parameters())
        return {"score": float(evaluation.done if evaluation.done % 9 else 0), "weights": weights}

    def best(self) -> str:
        return "score"

    def flops_per_image(self) -> float:
        return 0.0  # or every child would measure this machine


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)  # a thread pool does not survive a fork
    vars(train.loop)["write_report"] = lambda path: None  # seconds per evaluation once the run is long
    straight = dataclasses.replace(TINY, output=folder / "straight", steps=9 * math.ceil(2 * kills / 3))
    killed = dataclasses.replace(straight, output=folder / "killed")
    task = Measured(straight)
    fork = multiprocessing.get_context("fork")

    def start(config: PretrainConfig) -> ForkProcess:
        task.config = config
        child = fork.Process(target=train.loop.train, args=(task, Console(file=io.StringIO())))
        child.start()
        return child

    def finish(config: PretrainConfig) -> None:
        child = start(config)
        child.join()
        assert child.exitcode == 0, child.exitcode

    finish(straight)
    rng, reached = random.Random(kills), 0
    aims = [AIMS[number % len(AIMS)] for number in range(kills - 1)]
    rng.shuffle(aims)
    for aim in [*aims, "ckpt.pt"]:
        before, existed = temporaries(killed.output), checkpoints(killed.output) - snapshots(killed.output)
        child, goal = start(killed), reached + rng.randint(1, 3)
        while child.is_alive() and (
            steps_logged(killed.output) < goal or (aim and aim not in writing(killed.output, before))
        ):
            assert existed <= checkpoints(killed.output), "a checkpoint was away for a moment"
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02 if aim else 0.3))  # anywhere within the save; within a step, a save or a log
        assert child.pid is not None and child.is_alive(), "the run ended before all kills were done"
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        reached = steps_logged(killed.output)
        print(f"killed at step {reached}, writing {writing(killed.output, before) or 'no checkpoint'}", flush=True)
        assert existed <= checkpoints(killed.output), "a checkpoint is gone"
        check(killed.output)
    finish(killed)
    check(killed.output)
    assert not list(killed.output.rglob("*.tmp")), "a temporary file was left behind"


def checkpoints(folder: Path) -> set[Path]:
    return set(folder.rglob("*.pt"))


def snapshots(folder: Path) -> set[Path]:
    """Those that are removed when newer ones are there."""
    return set(folder.glob("checkpoints/*.pt"))


def temporaries(folder: Path) -> dict[str, int]:
    """When each unfinished checkpoint was last written to; a kill leaves it until the same file is written again."""
    found = {}
    for file in folder.rglob(".*.pt.tmp"):
        try:
            found[file.name] = file.stat().st_mtime_ns
        except FileNotFoundError:
            continue  # it has just become the checkpoint
    return found


def writing(folder: Path, before: dict[str, int]) -> str:
    """The checkpoints that are being written now, or were when the process was killed."""
    return " ".join(sorted(name for name, _ in temporaries(folder).items() - before.items()))


def check(folder: Path) -> None:
    """Every checkpoint is whole, and none says that it is what it is not."""
    for file in checkpoints(folder):
        if file.name == "resume.pt":
            with zipfile.ZipFile(file) as archive:
                assert archive.testzip() is None
            assert torch.load(file, weights_only=True)["metrics_bytes"] <= (folder / "metrics.jsonl").stat().st_size
            continue
        step = read_checkpoint(file).provenance.get("step", 0)  # 0: ckpt.pt
        assert file.name != "best.pt" or step % 9, step
        assert file.parent == folder or file.name == f"step_{step:08d}.pt", (file, step)
    assert len(snapshots(folder)) <= TINY.keep_last + 1  # one more while the oldest has not been removed yet


def steps_logged(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b'"loss"') if file.exists() else 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
