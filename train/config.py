"""Configuration shared by the training commands, and the command line around it: ``python -m train.X [RECIPE] ...``."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from digpt.errors import ConfigError, DigptError, near_misses

RECIPES = ("emoji", "bundled", "bundled_early")


@dataclass(frozen=True)
class TrainConfig:
    """Fields every training command has. Learning rates are absolute, not per 256 images."""

    output: Path = Path("runs/train")  # folder for ckpt.pt, metrics.jsonl, config.json and the resume state
    steps: int = 1000
    batch_size: int = 256
    seed: int = 0
    threads: int = 2  # CPU threads; a second busy process on the same cores slows training several-fold
    overwrite: bool = False  # start again in a folder that holds another run
    data_root: Path | None = None  # the emoji shards; None: the bundled ones
    lr: float = 1e-3
    min_lr: float = 1e-5
    warmup: int = 100  # steps of linear warm-up before the cosine
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0  # largest gradient norm; 0 switches clipping off
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16 pays on AMX and GPUs; without them it is slower
    store: Literal["float32", "float16"] = "float32"  # precision of the weights in ckpt.pt
    log_every: int = 20
    eval_every: int = 500
    save_every: int = 100  # steps between resume states

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "threads", "log_every", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")
        if not 0 <= self.warmup <= self.steps:
            object.__setattr__(self, "warmup", max(0, min(self.warmup, self.steps)))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-able values, without what may differ between a run and its resumption."""
        values = dataclasses.asdict(self)
        for name in ("output", "overwrite"):
            values.pop(name)
        return {key: plain(value) for key, value in values.items()}


def plain(value: Any) -> Any:
    """Nested values with paths as strings and tuples as lists, as JSON would give them back."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


Config = TypeVar("Config", bound=TrainConfig)


def load_recipe(name: str, command: str) -> Any:
    """Return the configuration that recipe ``name`` (``train/recipes/NAME.py``) defines for ``command``."""
    if name not in RECIPES:
        raise ConfigError(f"Unknown recipe {name!r}; valid: {', '.join(RECIPES)}.{near_misses(name, RECIPES)}")
    found = getattr(importlib.import_module(f"train.recipes.{name}"), command, None)
    if found is None:
        raise ConfigError(f"Recipe {name} has no settings for train.{command}.")
    return found


def parse(command: str, argv: list[str] | None = None) -> Any:
    """Read ``[RECIPE] --field value ...`` into the recipe's configuration; unknown fields name the near misses."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    recipe = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "emoji"
    default = load_recipe(recipe, command)
    prog = f"python -m train.{command} [RECIPE: {' | '.join(RECIPES)}]"
    return tyro.cli(type(default), default=default, args=arguments, prog=prog, config=(tyro.conf.AvoidSubcommands,))


def main(command: str, run: Any, argv: list[str] | None = None) -> int:
    """Parse, run, and turn a user's error into one line and exit code 2."""
    try:
        run(parse(command, argv))
    except DigptError as error:
        print(f"train.{command}: {error}", file=sys.stderr)
        return 2
    return 0
