"""Configuration shared by the training commands, and the command line around it: ``python -m train.X [RECIPE] ...``."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from digpt.cli import INTERRUPTED, Command
from digpt.errors import ConfigError, DigptError, near_misses

RECIPES = (
    "emoji",
    "bundled",
    "bundled_early",
    "b16_in1k",
    "l16_in1k",
    "l14_in1k",
    "b16_in21k",
    "l16_in21k",
    "l14_in21k",
    "b16_merged",
    "l16_merged",
    "l14_merged",
    "l16_intermediate",
    "l14_intermediate",
    "l16_in21k_in1k",
    "l14_in21k_in1k",
    "l16_laion128m",
    "l14_laion1b",
)
FIRST = {
    "RECIPE": f"One of {', '.join(RECIPES)} (default: emoji).",
    "--miniature": "Shrink the recipe to the bundled data, for minutes on a CPU.",
    "--print-config": "Print every setting as JSON, and do nothing else.",
    "--json": "Print what was trained as JSON on standard output, and nothing else there.",
}  # options that are no settings of the run
GROUPS = {
    "Run": (
        *("RECIPE", "table", "output", "steps", "epochs", "overwrite", "seed", *list(FIRST)[1:]),
        *("seeds", "equal", "scratch", "finetune_steps", "tune_steps", "timed_steps", "keep"),
    ),
    "Data": (
        *("data", "val_data", "data_root", "limit", "classes", "reduce_zero", "splits", "scenes", "scene_classes"),
        *("eval_scenes", "max_errors"),
    ),
    "Model": (
        *("encoder", "teacher", "variant", "image_size", "depth", "init", "drop_path", "head_std"),
        *("channels", "aux_channels", "blocks", "dropout", "trunk", "patch_size", "width", "layers", "head_width"),
        *("embed_dim", "text_width", "text_layers", "text_heads", "context_length", "vocab_size", "vq"),
    ),
    "Objective": ("paradigm", "orders", "distill", "freeze_text", "max_logit_scale", "objective", "mae", "eva"),
    "Optimiser": (
        *("batch_size", "lr", "base_lr", "min_lr", "warmup", "warmup_epochs", "power", "weight_decay", "layer_decay"),
        *("betas", "clip", "ema", "nonfinite", "nonfinite_limit"),
    ),
    "Augmentation": ("crop", "scale", "ratio", "photometric", "mean", "std", "augment", "photo"),
    "Evaluation": ("eval_every", "knn", "resize", "crop_pct", "inference"),
    "Compute": (
        *("threads", "device", "precision", "accumulate", "workers", "prefetch", "window", "checkpointing"),
        *("sharding", "compile"),
    ),
    "Logging and keeping": ("log_every", "trackers", "save_every", "keep_last", "store"),
}  # of the help, the most used first


@dataclass(frozen=True)
class TrainConfig:
    """Fields every training command has. ``batch_size`` is the whole batch, over all processes and micro-batches."""

    output: Path = Path("runs/train")  # folder for ckpt.pt, metrics.jsonl, config.json and the resume state
    steps: int = 1000  # updates of the weights
    epochs: float | None = None  # passes over the data; sets steps when given
    batch_size: int = 256  # images per step over all processes and micro-batches
    accumulate: int = 1  # micro-batches per step and process
    seed: int = 0  # decides weights, samples and augmentation
    threads: int = 2  # CPU threads; a second busy process on the same cores slows training several-fold
    overwrite: bool = False  # start again in a folder that holds another run
    data: str = "emoji"  # the bundled set; or folder:DIR, tar:DIR, wds:SHARDS, hfds:NAME (docs/data.md)
    data_root: Path | None = None  # the emoji shards; None: the bundled ones
    limit: int | None = None  # use a seeded choice of so many images only
    workers: int = 4  # loader processes per training process; the bundled set needs none
    prefetch: int = 2  # micro-batches that each of them keeps ready
    window: int = 16  # shards that are shuffled together
    max_errors: float = 0.1  # share of samples that cannot be read at which the run stops
    lr: float = 1e-3  # peak learning rate, of the whole batch
    base_lr: float | None = None  # per 256 images of the batch; sets lr when given
    min_lr: float = 1e-5  # learning rate at the end
    warmup: int = 100  # steps of linear warm-up before the decay, at most all of them
    warmup_epochs: float | None = None  # sets warmup when given
    weight_decay: float = 0.05  # AdamW's, of matrices; biases and norms have none
    betas: tuple[float, float] = (0.9, 0.98)  # AdamW's
    clip: float = 1.0  # largest gradient norm; 0 switches clipping off
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16 pays on AMX and GPUs; without them it is slower
    device: Literal["auto", "cpu"] = "auto"  # auto: a GPU where there is one
    sharding: Literal["ddp", "fsdp2"] = "ddp"  # over several processes: copies of the model, or shards of it
    compile: str = ""  # torch.compile backend for each block, such as inductor; empty: off
    checkpointing: bool = False  # recompute activations in the backward pass: slower, in less memory
    nonfinite: Literal["stop", "skip", "reload"] = "stop"  # what a gradient that is not finite does to the run
    nonfinite_limit: int = 10  # skipped steps after which the run stops all the same
    store: Literal["float32", "float16"] = "float32"  # precision of the weights in ckpt.pt
    log_every: int = 20  # steps between the lines of metrics.jsonl
    eval_every: int = 500  # steps between evaluations; the last step has one too
    save_every: int = 100  # steps between resume states
    keep_last: int = 2  # checkpoints of the latest evaluations to keep beside best.pt; 0: neither
    trackers: tuple[str, ...] = ()  # tensorboard, wandb, trackio, ... beside metrics.jsonl

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "accumulate", "threads", "log_every", "eval_every", "save_every")
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")
        numbers = ("lr", "base_lr", "min_lr", "warmup", "warmup_epochs", "weight_decay", "clip")
        for name in (*numbers, "workers", "keep_last", "nonfinite_limit"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative.")
        for name in ("epochs", "limit"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name}={value} must be above 0; leave it out for none.")
        if self.compile:
            _check_backend(self.compile)
        object.__setattr__(self, "warmup", min(self.warmup, self.steps))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-able values, without what may differ between a run and its resumption."""
        values = dataclasses.asdict(self)
        return {key: plain(value) for key, value in values.items() if key not in MAY_DIFFER}

    def decay(self, progress: float) -> float:
        """Share of the way from ``min_lr`` to ``lr`` that is left after warm-up, ``progress`` in 0..1: a cosine."""
        return 0.5 * (1 + math.cos(math.pi * progress))

    def check_given(self, given: frozenset[str]) -> None:
        """Refuse options (``objective.decoder_depth``) that the command line gave and this run would not use."""


# A resumed run may have more processes, another device or less memory: none of these changes the samples.
MAY_DIFFER = (
    "output", "overwrite", "workers", "prefetch", "max_errors", "accumulate", "device", "sharding", "threads",
    "compile", "checkpointing", "nonfinite", "nonfinite_limit", "val_data", "trackers", "keep_last", "save_every",
    "log_every",
)  # fmt: skip


def _check_backend(name: str) -> None:
    """torch itself would refuse an unknown backend after everything is loaded, with a traceback."""
    import torch._dynamo

    known = torch._dynamo.list_backends(exclude_tags=())
    if name not in known:
        raise ConfigError(f"Unknown --compile {name!r}; most use inductor.{near_misses(name, known)}")


Config = TypeVar("Config", bound=TrainConfig)


def resolved(config: Config, images: int) -> Config:
    """Fill in what follows from the size of the data: ``steps``, ``warmup`` and ``lr`` from epochs and ``base_lr``.

    A last batch that the epochs do not fill is left out, as with a loader that drops it.
    """
    changes: dict[str, Any] = {}
    for field, epochs in (("steps", config.epochs), ("warmup", config.warmup_epochs)):
        if epochs is not None:
            changes[field] = max(0 if field == "warmup" else 1, int(epochs * images / config.batch_size))
    if config.base_lr is not None:
        changes["lr"] = config.base_lr * config.batch_size / 256
    return dataclasses.replace(config, **changes)


def plain(value: Any) -> Any:
    """Nested values with paths as strings and tuples as lists, as JSON would give them back."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def load_recipe(name: str, command: str) -> Any:
    """Return the configuration that recipe ``name`` (``train/recipes/NAME.py``) defines for ``command``."""
    if name not in RECIPES:
        raise ConfigError(f"Unknown recipe {name!r}; valid: {', '.join(RECIPES)}.{near_misses(name, RECIPES)}")
    found = getattr(importlib.import_module(f"train.recipes.{name}"), command, None)
    if found is None:
        raise ConfigError(f"Recipe {name} has no settings for train.{command}.")
    return found


def parse(command: str, argv: list[str] | None = None, about: str | None = None) -> Any:
    """Read ``[RECIPE] [--miniature] [--print-config] --field value ...`` into the recipe's configuration.

    ``--miniature`` shrinks the recipe to the bundled data; ``--print-config`` prints the result as JSON and exits.
    Unknown fields name the near misses. ``--steps``, ``--warmup`` and ``--lr`` win over what a recipe gives in epochs
    or per 256 images.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    small, shown = "--miniature" in arguments, "--print-config" in arguments
    arguments = [argument for argument in arguments if argument not in ("--miniature", "--print-config")]
    recipe = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "emoji"
    default = load_recipe(recipe, command)
    if small:
        from train.miniature import miniature

        default = miniature(default)
    flags = (argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--"))
    given = frozenset(flag.replace("-", "_") for flag in flags)
    default = dataclasses.replace(default, **_overruled(given))
    config = command_line(command, about).parse(type(default), arguments, default)
    config.check_given(given)
    if shown:
        values = plain(dataclasses.asdict(config))
        values |= {name: f"from {other}" for name, other in _FOLLOWS.items() if values[other] is not None}
        print(json.dumps({"command": command, "recipe": recipe, **values}, indent=2))
        raise SystemExit(0)
    return config


_FOLLOWS = {"steps": "epochs", "warmup": "warmup_epochs", "lr": "base_lr"}  # see ``resolved``


def _overruled(given: frozenset[str]) -> dict[str, None]:
    """A recipe's epochs and base_lr, switched off where what follows from them is given itself."""
    for name, other in _FOLLOWS.items():
        if {name, other} <= given:
            raise ConfigError(f"--{name} and --{other.replace('_', '-')} say the same thing: give one of them.")
    return {other: None for name, other in _FOLLOWS.items() if name in given}


def command_line(command: str, about: str | None = None) -> Command:
    """How ``python -m train.COMMAND``, of a module with the docstring ``about``, reads its options and ends."""
    exits = {INTERRUPTED: "Ctrl-C: the state was saved", 128 + signal.SIGTERM: "SIGTERM: the same"}
    after = "give the same command again: it goes on from what was saved"
    return Command(f"train.{command}", about, GROUPS, exits, after, FIRST)


def say(text: str) -> None:
    """Print in the main process only."""
    if main_process():
        print(text)


def main_process() -> bool:
    """Whether this is the first of the processes; accelerate and torchrun both number them in RANK."""
    return os.environ.get("RANK", "0") == "0"


class Interrupted(DigptError):
    """The run was asked to stop, by this signal; its state is saved."""

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # what a shell reports for a process that the signal ended


def main(command: str, run: Callable[[Any], Path], argv: list[str] | None = None) -> int:
    """Parse, run, and return the exit code: as every command's, and 130 or 143 where a signal stopped the run."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    about = sys.modules[run.__module__].__doc__

    def work() -> int:
        config = parse(command, [argument for argument in arguments if argument != "--json"], about)
        try:
            with redirect_stdout(sys.stderr) if as_json else nullcontext():
                path = run(config)
        except Interrupted as stopped:
            print(f"interrupted: {stopped}", file=sys.stderr)
            return stopped.exit_code
        if as_json and main_process():
            print(json.dumps(trained(path), ensure_ascii=False))
        return 0

    return command_line(command).guard(work)


def trained(path: Path) -> dict[str, Any]:
    """What came of the run that wrote the checkpoint ``path``, as JSON values."""
    from train.record import read_run  # which reads with torch

    run = read_run(path.parent)
    known = {name: run.provenance.get(name) for name in ("command", "steps", "seconds", "figures")}
    return {"checkpoint": str(path), "fingerprint": run.fingerprint or None, **known}
