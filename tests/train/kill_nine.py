"""Train to the end in one go, and again through ``kill -9`` at random moments: two run folders to compare.

    python tests/train/kill_nine.py FOLDER KILLS

A process of its own, because torch's autograd, once used, cannot be used again in a forked child: here only children
train, and each starts from the same initial weights, as the same command would.
"""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

from rich.console import Console

from train.loop import train
from train.teacher import TeacherConfig, TeacherTask

TINY = TeacherConfig(
    trunk="", width=32, layers=1, head_width=16, embed_dim=16, text_width=32, text_layers=1, text_heads=2,
    vocab_size=400, batch_size=8, steps=12, warmup=2, log_every=1, eval_every=1000, save_every=1, threads=1,
)  # fmt: skip


def main(folder: Path, kills: int) -> None:
    straight = dataclasses.replace(TINY, output=folder / "straight", steps=12 * kills)
    killed = dataclasses.replace(straight, output=folder / "killed")
    task = TeacherTask(straight)
    task.evaluate = lambda evaluation: {}  # type: ignore[method-assign]  # thousands of images: not what is tested here
    fork = multiprocessing.get_context("fork")

    def start(config: TeacherConfig) -> ForkProcess:
        task.config = config
        child = fork.Process(target=train, args=(task, Console(file=io.StringIO())))
        child.start()
        return child

    def finish(config: TeacherConfig) -> None:
        child = start(config)
        child.join()
        assert child.exitcode == 0, child.exitcode

    finish(straight)
    rng, reached = random.Random(kills), 0
    for _ in range(kills):
        child = start(killed)
        goal = reached + rng.randint(1, 8)
        while child.is_alive() and steps_logged(killed.output) < goal:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))  # anywhere within a step, a save or a log
        assert child.pid is not None and child.is_alive(), "the run ended before all kills were done"
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        reached = steps_logged(killed.output)
        print(f"killed at step {reached}", flush=True)
    finish(killed)


def steps_logged(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
