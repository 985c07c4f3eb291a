"""Run a table of the paper's ablations shrunken: every row, several seeds, Markdown with intervals beside the paper.

    python -m train.ablate 9 --seeds 3 --output runs/ablate

Tables: 5 to 9, ``central`` and ``orders`` (train/tables.py). Each encoder is pretrained for equally many steps, and
again for equal time (step times are measured beforehand, rows taking turns), then finetuned, tuned to text, and probed.
A killed command continues where it stopped: every cell is a resumable run of its own.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console

from digpt.artifact import atomic_json, read_checkpoint
from digpt.cli import Command
from digpt.data.emoji import EmojiSet
from digpt.errors import ConfigError, near_misses
from digpt.metrics import t_half_width
from digpt.sources import load_model
from train.clock import Clock
from train.config import GROUPS, load_recipe
from train.data import EmojiTraining
from train.finetune import FinetuneTask
from train.loop import train
from train.optim import build_optimizer
from train.pretrain import PretrainConfig, PretrainTask
from train.probe import KnnProbe, emoji_probe
from train.share import Share
from train.tables import STAND_INS, TABLES, Row, Table
from train.teacher import TeacherTask
from train.tokenizer import TokenizerTask
from train.zeroshot import ZeroshotTask

COMMAND = Command("train.ablate", __doc__, GROUPS, after="the same command goes on from the cells in --output")
MEASURES = {
    "finetune_flat": "finetuned, flat",
    "finetune_val": "finetuned, val",
    "tuned_flat": "text-tuned, flat (subgroup of the nearest name)",
    "linear_flat": "linear probe, flat",
    "knn_flat": "kNN, flat",
}


@dataclass(frozen=True)
class AblateConfig:
    """Which table, and how small."""

    table: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]  # 5, 6, 7, 8, 9, central, orders
    seeds: int = 3  # runs of each row
    steps: int = 120  # of pretraining, for rows compared at equal steps
    finetune_steps: int = 100  # of finetuning
    tune_steps: int = 80  # of text tuning
    batch_size: int = 64  # images per step
    threads: int = 2  # CPU threads
    equal: tuple[str, ...] = ("steps", "time")  # what the rows have in common
    timed_steps: int = 6  # steps per row from which the time of a step is taken
    scratch: bool = True  # also tune a random encoder, the row that pretraining is worth
    keep: bool = False  # keep every cell's weights; else its figures alone
    output: Path = Path("runs/ablate")  # folder; TABLE/TABLE.md in it is the result

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise ConfigError(
                f"Unknown table {self.table!r}; valid: {', '.join(TABLES)}.{near_misses(self.table, TABLES)}"
            )
        if self.seeds < 1 or not set(self.equal) <= {"steps", "time"} or not self.equal:
            raise ConfigError("seeds must be at least 1, and equal names steps, time or both.")


class Ablation:
    """One table on its way, in one folder."""

    def __init__(self, config: AblateConfig, console: Console) -> None:
        self.config, self.console = config, console
        self.table: Table = TABLES[config.table]
        self.root = config.output / config.table
        self.rows = [row for row in self.table.rows if row.changes is not None]

    @cached_property
    def _probe(self) -> KnnProbe:
        recipe: PretrainConfig = load_recipe("emoji", "pretrain")
        return emoji_probe(EmojiTraining(0, 1, recipe.augment), neighbours=20)

    def run(self) -> str:
        """Every cell, then the Markdown, which is also written to ``TABLE.md``."""
        self.root.mkdir(parents=True, exist_ok=True)
        seconds = self._step_seconds() if "time" in self.config.equal else {}
        results: dict[str, dict[str, list[dict[str, float]]]] = {}
        for seed in range(self.config.seeds):  # seed by seed, so that a partial table is a whole one of fewer seeds
            for equal in self.config.equal:
                for row in self.rows:
                    steps = self._steps(row, equal, seconds)
                    found = self._cell(row, seed, steps)
                    results.setdefault(equal, {}).setdefault(_name(row), []).append(found)
                    self._say(f"seed {seed}  equal {equal}  {' '.join(row.cells)}  {steps} steps", found)
            if self.config.scratch:
                results.setdefault("scratch", {}).setdefault("random", []).append(self._tuned("random", seed, "random"))
            text = self.markdown(results, seconds, seed + 1)
            (self.root / "TABLE.md").write_text(text)
        return text

    def _say(self, label: str, found: dict[str, float]) -> None:
        self.console.print(
            f"{label}: {'  '.join(f'{key} {value:.3f}' for key, value in found.items())}", soft_wrap=True
        )

    # --------------------------------------------------------------------------------------------------- pretraining

    def _pretrain_config(self, row: Row, seed: int, steps: int, output: Path) -> PretrainConfig:
        base: PretrainConfig = load_recipe("emoji", "pretrain")
        sizes = {name: value for name, value in row.objective.items()}
        return dataclasses.replace(
            base,
            **(row.changes or {}),
            objective=dataclasses.replace(base.objective, **sizes),
            teacher=self._teacher(row.needs),
            seed=seed,
            **self._common(steps),
            knn=0,  # measured once, after the last step
            output=output,
        )

    def _common(self, steps: int) -> dict[str, Any]:
        config = self.config
        every = {"log_every": max(1, steps // 4), "eval_every": steps, "save_every": 100, "keep_last": 0}
        sizes = {"steps": steps, "warmup": max(1, steps // 10), "batch_size": config.batch_size}
        return {**every, **sizes, "threads": config.threads}

    def _steps(self, row: Row, equal: str, seconds: dict[str, float]) -> int:
        """Steps of a row: those asked for, or as many as fit into the reference row's time."""
        if equal == "steps":
            return self.config.steps
        reference = self.table.rows[self.table.reference]
        return max(1, round(self.config.steps * seconds[_name(reference)] / seconds[_name(row)]))

    def _step_seconds(self) -> dict[str, float]:
        """Median seconds of a training step by row, measured in turns so that a busy machine slows all alike."""
        file = self.root / "step_seconds.json"
        settings = {"threads": self.config.threads, "batch_size": self.config.batch_size}
        known = self._known(file, settings)
        if known is not None:
            return known
        torch.set_num_threads(self.config.threads)
        turns = [_timed_steps(self._pretrain_config(row, 0, 10, self.root / "timing")) for row in self.rows]
        times: list[list[float]] = [[] for _ in turns]
        for _ in range(self.config.timed_steps + 1):
            for turn, found in zip(turns, times, strict=True):
                found.append(next(turn))
        names = [_name(row) for row in self.rows]
        seconds = {name: statistics.median(found[1:]) for name, found in zip(names, times, strict=True)}
        atomic_json(file, {"figures": seconds, "config": settings})
        return seconds

    def _teacher(self, needs: str) -> str:
        """The model spec of a stand-in, trained first where there is none."""
        known = {"clip": "bundled-early-teacher", "openclip": "bundled-teacher", "pixels": "pixels"}
        if needs in known:
            return known[needs]
        folder, steps = self.config.output / "stand-ins" / needs, self.config.steps
        common = {**self._common(steps), "output": folder}
        if not (folder / "ckpt.pt").exists():
            self.console.print(f"training a stand-in: {STAND_INS[needs]}", soft_wrap=True)
        if needs == "vqvae":
            path = train(TokenizerTask(dataclasses.replace(load_recipe("emoji", "tokenizer"), **common)), _quiet())
            return f"codes:{path}"
        if needs == "clip-small":
            common |= {"steps": max(1, steps // 3), "warmup": max(1, steps // 30), "eval_every": max(1, steps // 3)}
            return str(train(TeacherTask(dataclasses.replace(load_recipe("emoji", "teacher"), **common)), _quiet()))
        base = dataclasses.replace(load_recipe("emoji", "pretrain"), paradigm="mae", teacher="pixels", **common)
        return str(train(PretrainTask(base), _quiet()))

    # -------------------------------------------------------------------------------------------------- after it

    def _cell(self, row: Row, seed: int, steps: int) -> dict[str, float]:
        """Pretrain one row with one seed, then measure it; a finished cell is read back."""
        name = f"{_name(row)}-{steps}-{seed}"
        folder = self.root / "cells" / name
        config = self._pretrain_config(row, seed, steps, folder / "pretrain")
        record = {**config.to_dict(), **self._tuning()}
        known = self._known(folder / "figures.json", record)
        if known is not None:
            return known
        path = train(PretrainTask(config), _quiet())
        figures = self._tuned(str(path), seed, name)
        figures |= linear_and_knn(str(path), self._probe, self.config.threads)
        atomic_json(folder / "figures.json", {"figures": figures, "config": record})
        if not self.config.keep:
            shutil.rmtree(folder / "pretrain")
        return figures

    def _tuning(self) -> dict[str, int]:
        return {"finetune_steps": self.config.finetune_steps, "tune_steps": self.config.tune_steps}

    def _known(self, file: Path, config: dict[str, Any]) -> dict[str, float] | None:
        """The figures that ``file`` holds, if it exists; refused when they were measured with other settings."""
        if not file.exists():
            return None
        stored, now = json.loads(file.read_text()), json.loads(json.dumps(config))
        before: dict[str, Any] = stored.get("config", {})
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            raise ConfigError(
                f"{file} was measured with other settings ({', '.join(changed)}): choose another --output."
            )
        return dict(stored["figures"])

    def _tuned(self, encoder: str, seed: int, name: str) -> dict[str, float]:
        """Accuracy after finetuning on the subgroups, and after tuning to the teacher's texts."""
        folder = self.root / "cells" / (f"random-{seed}" if encoder == "random" else name)
        file = folder / "tuned.json"
        record = {**self._tuning(), "batch_size": self.config.batch_size}
        known = self._known(file, record)
        if known is not None:
            return known
        common = {"encoder": encoder, "seed": seed}
        finetune = dataclasses.replace(
            load_recipe("emoji", "finetune"),
            **common,
            **self._common(self.config.finetune_steps),
            output=folder / "finetune",
        )
        tune = dataclasses.replace(
            load_recipe("emoji", "zeroshot"),
            **common,
            **self._common(self.config.tune_steps),
            splits=(),
            output=folder / "zeroshot",
        )
        finetuned = read_checkpoint(train(FinetuneTask(finetune), _quiet())).provenance["figures"]
        figures = {"finetune_flat": finetuned["flat_top1"], "finetune_val": finetuned["val_top1"]}
        figures["tuned_flat"] = named_subgroup(str(train(ZeroshotTask(tune), _quiet())), self._probe)
        atomic_json(file, {"figures": figures, "config": record})
        if not self.config.keep:
            shutil.rmtree(folder / "finetune")
            shutil.rmtree(folder / "zeroshot")
        return figures

    # ------------------------------------------------------------------------------------------------- the table

    def markdown(self, results: dict[str, Any], seconds: dict[str, float], seeds: int) -> str:
        """Mean and 95 % t-interval over the seeds so far; differences are paired by seed."""
        parts = [f"# {self.table.title}\n"]
        for equal in self.config.equal:
            parts += [self._section(equal, results, seconds), *self._pairs(results[equal])]
        if seconds:
            each = (f"{' '.join(row.cells)} {1000 * seconds[_name(row)]:.0f}" for row in self.rows)
            parts.append(f"Milliseconds per step, {self.config.threads} threads: {'; '.join(each)}.\n")
        parts.append(_reading(self.config, self.rows, seeds))
        return "\n".join(parts)

    def _pairs(self, found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
        """Differences between two rows, neither of which is the reference."""
        for one, other in self.table.pairs:
            first, second = self.table.rows[one], self.table.rows[other]
            runs = list(zip(found[_name(first)], found[_name(second)], strict=True))
            apart = (
                f"{title} {interval([a[key] - b[key] for a, b in runs], sign=True)}" for key, title in MEASURES.items()
            )
            yield f"{first.cells[0]} minus {second.cells[0]}: {'; '.join(apart)}.\n"

    def _section(self, equal: str, results: dict[str, Any], seconds: dict[str, float]) -> str:
        table, reference = self.table, _name(self.table.rows[self.table.reference])
        found = results[equal]
        head = [
            *table.columns,
            "steps",
            *MEASURES.values(),
            "difference, finetuned flat",
            "paper: top-1",
            "paper: mIoU",
        ]
        lines = [f"## At equal {equal}\n", "| " + " | ".join(head) + " |"]
        lines.append("|" + "---|" * len(table.columns) + "--:|" * (len(head) - len(table.columns)))
        for row in table.rows:
            paper = ["" if value is None else f"{value:.1f}" for value in row.paper]
            if row.changes is None:
                lines.append("| " + " | ".join([*row.cells, *[""] * (len(MEASURES) + 2), *paper]) + " |")
                continue
            runs, of = found[_name(row)], found[reference]
            values = [interval([run[key] for run in runs]) for key in MEASURES]
            apart = [run["finetune_flat"] - other["finetune_flat"] for run, other in zip(runs, of, strict=True)]
            difference = "" if _name(row) == reference else interval(apart, sign=True)
            steps = str(self._steps(row, equal, seconds))
            lines.append("| " + " | ".join([*row.cells, steps, *values, difference, *paper]) + " |")
        if "scratch" in results:
            runs = results["scratch"]["random"]
            values = [interval([run[key] for run in runs]) if key in runs[0] else "" for key in MEASURES]
            blank = [""] * (len(table.columns) - 1)
            lines.append("| " + " | ".join(["no pretraining", *blank, "0", *values, "", "", ""]) + " |")
        return "\n".join(lines) + "\n"


def _name(row: Row) -> str:
    """A folder name for a row."""
    changes = "-".join(str(value) for value in {**(row.changes or {}), **row.objective}.values())
    return f"{changes}-{row.needs}"


def _quiet() -> Console:
    return Console(quiet=True)


def _timed_steps(config: PretrainConfig) -> Iterator[float]:
    """Train a throw-away model step by step, yielding the seconds of each."""
    task = PretrainTask(config)
    optimizer = build_optimizer(task.parameter_groups(), config)
    task.module.train()
    for batches in task.batches(0, Share()):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        clock = Clock(active=False)
        task.loss(task.module, batches[0], clock)["loss"].backward()
        optimizer.step()
        yield time.perf_counter() - start


@torch.no_grad()
def named_subgroup(spec: str, probe: KnnProbe) -> float:
    """Zero-shot on ``flat``: how often the nearest of all 1,562 names belongs to the picture's own subgroup.

    Names themselves are hit too rarely after a short tuning to tell rows apart.
    """
    model = load_model(spec)
    assert model.text is not None
    emoji = EmojiSet.load()
    subgroups = sorted({concept.subgroup for concept in emoji.concepts})
    groups = torch.tensor([subgroups.index(emoji.concepts[index].subgroup) for index in emoji.five_style_indices()])
    names = model.text.module(torch.from_numpy(model.text.tokenize(emoji.five_style_names())))
    embedded = [model.module.embed(model.module.normalise_float(part)) for part in probe.queries.split(256)]
    nearest = (torch.cat(embedded) @ torch.nn.functional.normalize(names, dim=-1).T).argmax(1)
    return float((groups[nearest].numpy() == probe.labels).mean())


def linear_and_knn(spec: str, probe: KnnProbe, threads: int) -> dict[str, float]:
    """A linear and a kNN probe of a checkpoint's frozen features: subgroups of ``flat`` by Noto and Twemoji."""
    torch.set_num_threads(threads)
    model = load_model(spec)

    @torch.no_grad()
    def features(images: torch.Tensor) -> torch.Tensor:
        return model.module.embed(model.module.normalise_float(images))

    rows = probe.rows(features)
    return {"linear_flat": probe.linear_top1(*rows), "knn_flat": probe.knn_top1(*rows)}


def interval(values: Sequence[float], sign: bool = False) -> str:
    """Mean and half-width of the 95 % t-interval in percent; a single value stands alone."""
    numbers = [100 * value for value in values]
    mean = statistics.mean(numbers)
    shown = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    if len(numbers) < 2:
        return shown
    return f"{shown} ± {t_half_width(numbers):.1f}"


def _reading(config: AblateConfig, rows: Sequence[Row], seeds: int) -> str:
    """What such a table can say, and what it cannot."""
    used = sorted({row.needs for row in rows} & set(STAND_INS))
    stand_ins = "; ".join(f"{name}: {STAND_INS[name]}" for name in used)
    return (
        f"{seeds} seeds; mean ± half of the 95 % t-interval, in percent; differences paired by seed. "
        f"Pretraining {config.steps} steps of {config.batch_size} images, finetuning {config.finetune_steps}, text "
        f"tuning {config.tune_steps}. Finetuning is over the emoji's subgroups on three styles, on two that no "
        f"training saw. Stand-ins for teachers: {stand_ins or 'none'}.\n\n"
        "What this can say: whether each row trains at all through the same code, what it costs, and which way a "
        "large effect points at this size. What it cannot: an encoder of 6 blocks on 64 px drawings, trained for "
        "minutes from a teacher that saw the same drawings, is not a ViT-B after 300 epochs of ImageNet from CLIP. "
        "Short training favours what pulls the encoder straight onto the teacher, and the paper's differences of "
        "one to two points are smaller than the intervals above; an order that differs from the paper's is no "
        "evidence against it.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a table and print it; return the exit code."""
    return COMMAND.run(AblateConfig, argv, _ablate)


def _ablate(config: AblateConfig) -> int:
    print(Ablation(config, Console(stderr=True, highlight=False)).run())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
