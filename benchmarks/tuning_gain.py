"""What pretraining is worth: equal tuning steps from the D-iGPT encoder and from random initialisation, several seeds.

    python -m benchmarks.tuning_gain --encoder runs/pretrain/ckpt.pt --teacher runs/teacher/ckpt.pt --steps 300

Prints Markdown: zero-shot top-1 per split as mean and 95 % t-interval over the seeds, the teacher itself beside it. A
killed run continues where it stopped: each cell is a resumable ``train.zeroshot`` run under ``--output``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import tyro

from digpt.data.emoji import EmojiSet
from digpt.engine import Engine
from evaluate.run import run_suite
from evaluate.suite_emoji import emoji_suite
from train.ablate import interval
from train.config import load_recipe
from train.zeroshot import run as tune

SPLITS = ("val", "flat", "contrast")


@dataclass(frozen=True)
class Options:
    """What is compared."""

    encoder: str = "runs/pretrain/ckpt.pt"
    teacher: str = "bundled-teacher"
    steps: int = 300
    batch_size: int = 128
    seeds: int = 3
    threads: int = 2
    output: Path = Path("runs/tuning_gain")


def main(options: Options) -> None:
    """Run every cell and print the table."""
    data = EmojiSet.load()
    rows = {"teacher": [top1(options.teacher, data, options.threads)]}
    for label, encoder in (("D-iGPT encoder", options.encoder), ("random initialisation", "random")):
        rows[label] = [
            top1(cell(options, label, encoder, seed), data, options.threads) for seed in range(options.seeds)
        ]
    print(f"\nZero-shot top-1 after {options.steps} tuning steps of {options.batch_size} images, {options.seeds} seeds")
    print("\n| start | " + " | ".join(SPLITS) + " |\n|---|" + "--:|" * len(SPLITS))
    for label, runs in rows.items():
        print(f"| {label} | " + " | ".join(interval([run[split] for run in runs]) for split in SPLITS) + " |")


def cell(options: Options, label: str, encoder: str, seed: int) -> str:
    """Train one cell, or finish it; return its checkpoint."""
    folder = options.output / f"{label.split()[0].lower()}-{seed}"
    config = dataclasses.replace(
        load_recipe("emoji", "zeroshot"),
        encoder=encoder,
        teacher=options.teacher,
        steps=options.steps,
        batch_size=options.batch_size,
        seed=seed,
        threads=options.threads,
        output=folder,
        eval_every=options.steps,
    )
    return str(tune(config))  # a finished cell is left as it is, one of another configuration is refused


def top1(spec: str, data: EmojiSet, threads: int) -> dict[str, float]:
    """Zero-shot top-1 by split."""
    engine = Engine.load(spec, threads=threads)
    document = run_suite(engine, emoji_suite(data, splits=SPLITS)).document
    assert document is not None
    return {result.split: result.value for result in document.results if result.metric == "top1"}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
