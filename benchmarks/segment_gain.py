"""What pretraining is worth for segmentation: UperNet on scenes from D-iGPT, from FD and from random initialisation.

    python -m benchmarks.segment_gain

Both paradigms are pretrained for equal steps with ``--encoders`` seeds, and every seed trains three segmenters.
A killed run continues where it stopped. Prints Markdown and writes the curves to ``OUTPUT/curves.html``.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from digpt.charts import Series, line_chart
from digpt.report import cards, document, header, section, write_page
from train.ablate import interval
from train.config import load_recipe
from train.loop import train
from train.pretrain import PretrainTask
from train.segment import SegmentTask

STARTS = {"digpt": "D-iGPT", "fd": "FD", "random": "random"}
SPLITS = ("val", "flat")
LAST = 0.2  # of the training: its gain tells whether the curve has flattened
# Layer decay protects what pretraining learned; random weights have nothing to protect.
DECAY = {"digpt": 0.65, "fd": 0.65, "random": 1.0}


@dataclass(frozen=True)
class Options:
    """What is compared."""

    steps: int = 1600
    pretrain_steps: int = 1200
    seeds: int = 3
    encoders: int = 3  # pretrained per paradigm; with fewer than seeds, seeds take them in turn
    threads: int = 2
    workers: int = 1
    precision: Literal["fp32", "bf16"] = "bf16"
    output: Path = Path("runs/segment_gain")


def pretrained(options: Options, start: str, seed: int) -> str:
    """The encoder of one start: pretrained now, or finished before."""
    if start == "random":
        return "random"
    seed %= options.encoders
    config = dataclasses.replace(
        load_recipe("bundled", "pretrain"),
        teacher="bundled-early-teacher",
        paradigm=start,
        steps=options.pretrain_steps,
        eval_every=400,
        seed=seed,
        precision=options.precision,
        threads=options.threads,
        output=options.output / f"pretrain-{start}-{seed}",
    )
    return str(train(PretrainTask(config), Console(stderr=True, highlight=False)))


def segmented(options: Options, start: str, seed: int) -> list[dict[str, float]]:
    """The figures along one training, by step."""
    config = dataclasses.replace(
        load_recipe("emoji", "segment"),
        encoder=pretrained(options, start, seed),
        steps=options.steps,
        warmup=options.steps // 20,
        eval_every=options.steps // 20,
        layer_decay=DECAY[start],
        seed=seed,
        precision=options.precision,
        threads=options.threads,
        workers=options.workers,
        keep_last=0,
        output=options.output / f"segment-{start}-{seed}",
    )
    train(SegmentTask(config), Console(stderr=True, highlight=False))
    rows = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "val_miou" in row]


def main(options: Options) -> None:
    """Run every cell, print the table, draw the curves."""
    runs: dict[str, list[list[dict[str, float]]]] = {start: [] for start in STARTS}
    for seed in range(options.seeds):  # whole seeds first, so that a run cut short compares all starts
        for start, found in runs.items():
            found.append(segmented(options, start, seed))
    print(f"\nmIoU on scenes after {options.steps} steps, %: mean of {options.seeds} seeds and 95 % t-interval")
    print(f"(encoders pretrained for {options.pretrain_steps} steps, with {options.encoders} seeds)\n")
    gain = f"gain of val over the last {LAST:.0%}"
    print(f"| start | {' | '.join(SPLITS)} | {gain} | val minus random | flat minus random |\n|---|" + "--:|" * 5)
    for start, found in runs.items():
        finals = {split: [rows[-1][f"{split}_miou"] for rows in found] for split in SPLITS}
        before = [_at(rows, options.steps * (1 - LAST)) for rows in found]
        gained = [last - first for last, first in zip(finals["val"], before, strict=True)]
        apart = [
            interval([a - b[-1][f"{split}_miou"] for a, b in zip(finals[split], runs["random"], strict=True)])
            for split in SPLITS
        ]
        cells = [*(interval(finals[split]) for split in SPLITS), interval(gained)]
        print(f"| {STARTS[start]} | {' | '.join([*cells, *(apart if start != 'random' else ['', ''])])} |")
    print(f"\ncurves: {draw(options, runs)}")


def _at(rows: Sequence[dict[str, float]], step: float) -> float:
    """mIoU on ``val`` at the evaluation nearest to a step."""
    return min(rows, key=lambda row: abs(row["step"] - step))["val_miou"]


def draw(options: Options, runs: dict[str, list[list[dict[str, float]]]]) -> Path:
    """Write the curves, each the mean of its seeds, as one page."""
    charts = []
    for split in SPLITS:
        series = []
        for start, found in runs.items():
            x = [row["step"] for row in found[0]]
            y = [statistics.mean(rows[n][f"{split}_miou"] for rows in found) for n in range(len(x))]
            series.append(Series(STARTS[start], x, y))
        charts.append(line_chart(f"mIoU on {split}", series, kind="percent"))
    title = "Segmentation by initialisation"
    lines = [f"UperNet on scenes of the bundled emoji, mean of {options.seeds} seeds"]
    page = document(title, header(title, lines=lines), section("Curves", cards(*charts)))
    return write_page(options.output / "curves.html", page)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
