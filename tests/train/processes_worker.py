"""One process of a small run: what ``torchrun`` would start, for ``test_processes.py``.

python tests/train/processes_worker.py RANK WORLD PORT COMMAND JSON
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import open_clip
from rich.console import Console

rank, world, port, command, given = sys.argv[1:]
os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

from train.config import Interrupted  # noqa: E402
from train.data import EmojiTraining  # noqa: E402 - after the environment that says which process this is
from train.finetune import FinetuneConfig, FinetuneTask  # noqa: E402
from train.imagetext import PairsTask  # noqa: E402
from train.loader import PairTraining, PhotoBatch  # noqa: E402
from train.loop import train  # noqa: E402
from train.mask_loader import MaskTraining  # noqa: E402
from train.objective import DigptConfig  # noqa: E402
from train.pretrain import PretrainConfig, PretrainTask  # noqa: E402
from train.segment import SegmentTask, SegmentTrainConfig  # noqa: E402
from train.zeroshot import ZeroshotConfig, ZeroshotTask  # noqa: E402

SEEN: list[Any] = []
STEPS: dict[str, Any] = {
    "steps": 3,
    "batch_size": 8,
    "warmup": 1,
    "log_every": 1,
    "threads": 1,
    "eval_every": 100,
    "keep_last": 0,
}
CONFIGS: dict[str, Any] = {
    "pretrain": PretrainConfig(
        **STEPS,
        depth=4,
        knn=0,
        objective=DigptConfig(decoder_width=32, decoder_heads=2, decoder_depth=1, taps=(1, 2, 3, 4)),
    ),
    "zeroshot": ZeroshotConfig(**STEPS, encoder="random", depth=2),
    "pairs": ZeroshotConfig(**STEPS, encoder="random", depth=2, workers=0),
    "finetune": FinetuneConfig(**STEPS, encoder="random", depth=2, drop_path=0.4, splits=()),
    "segment": SegmentTrainConfig(
        **STEPS,
        encoder="random",
        depth=2,
        drop_path=0.4,
        dropout=0.4,
        crop=32,
        scale=(128, 32),
        channels=16,
        aux_channels=8,
        scenes=20,
        eval_scenes=5,
        workers=0,
    ),
}
TASKS: dict[str, Any] = {
    "pretrain": PretrainTask,
    "zeroshot": ZeroshotTask,
    "pairs": PairsTask,
    "finetune": FinetuneTask,
    "segment": SegmentTask,
}

batch, received, masked = EmojiTraining.batch, PairTraining._received, MaskTraining._received


def recorded(self: EmojiTraining, step: int, rows: slice | None = None) -> Any:
    found = batch(self, step, rows)
    note(found, [""] * len(found.images))
    return found


def received_and_recorded(self: PairTraining, found: PhotoBatch) -> PhotoBatch:
    note(received(self, found), found.texts or [])
    return found


def masked_and_recorded(self: MaskTraining, found: Any) -> PhotoBatch:
    note(masked(self, found), [str(labels.sum().item()) for labels in found.labels])
    return found


def note(found: Any, texts: list[str]) -> None:
    digests = [[float(image.double().sum()), text] for image, text in zip(found.images, texts, strict=True)]
    SEEN.append([found.step, found.first, found.epochs.tolist(), found.items.tolist(), digests])


EmojiTraining.batch = recorded  # type: ignore[method-assign]
PairTraining._received = received_and_recorded  # type: ignore[method-assign]
MaskTraining._received = masked_and_recorded  # type: ignore[method-assign]
changes = json.loads(given)
if "open_clip" in changes:  # a model that open_clip does not know
    open_clip.add_model_config(changes.pop("open_clip"))
interrupt = changes.pop("interrupt", 0)  # the step after which the first process gets a SIGTERM
interrupt_evaluation = changes.pop("interrupt_evaluation", False)
changes["output"] = Path(changes["output"])
config = dataclasses.replace(CONFIGS[command], **changes)
task = TASKS[command](config)
if command == "zeroshot":
    task.evaluate = lambda evaluation: {}
if interrupt_evaluation:

    def interrupted(evaluation: Any) -> dict[str, float]:
        raise Interrupted

    task.evaluate = interrupted
after_step, steps = task.after_step, []


def interrupting() -> None:
    after_step()
    steps.append(1)
    if len(steps) == interrupt - 1 and rank == "0":
        os.kill(os.getpid(), signal.SIGTERM)


task.after_step = interrupting
with contextlib.suppress(Interrupted):
    train(task, Console(file=io.StringIO()))
config.output.joinpath(f"seen-{rank}.json").write_text(json.dumps(SEEN))
