"""What every ``python -m evaluate.X`` shares: options, engine, progress on stderr, results on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from digpt.classsets import ClassMatrixCache, default_cache_dir
from digpt.cli import CONTINUES, Command
from digpt.engine import Engine
from digpt.errors import ConfigError, near_misses
from digpt.results import RESULTS_NAME, ResultsDocument, to_json
from digpt.results_table import render
from evaluate.progress import bars
from evaluate.run import PATIENCE, Outcome, Part, run_suite
from evaluate.suite import Subset, Suite
from evaluate.suite_imagenet import ROBUSTNESS

TABLE_WIDTH = 120  # where the output is no terminal
GROUPS = {
    "What is compared": ("a", "b", "more"),
    "Gates": ("fail_if_worse", "margin", "alpha", "same"),
    "Model": ("spec", "backend", "image_size", "list"),
    "Data": ("data", "data_root", "sets", "split", "reduce_zero", "limit", "preview", "seed", "deep"),
    "Output": ("output", "overwrite", "json", "part", "overlays", "classes"),
    "What is measured": (
        *("corruptions", "jpeg", "templates", "k", "temperature", "reference", "inference", "multi_scale", "flip"),
        *("learning_rates", "iterations", "probe_batch", "held_out"),
        *("resize", "crop_pct", "interpolation"),
    ),
    "Compute": ("device", "threads", "batch_size", "dtype"),
}  # of the help, the most used first


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of every evaluation."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")] = "bundled"
    """Model: bundled, ckpt.pt, an artifact directory, timm:NAME[@FILE], open_clip:NAME/TAG_OR_FILE, http://HOST:PORT."""
    output: Path | None = None
    """Directory for results.json and the store of answers, where the same command continues (default: keep nothing)."""
    data_root: Path | None = None
    """Directory of the ImageNet family, each set in any of its usual layouts (default: the bundled emoji set)."""
    data: str | None = None
    """Your own labelled pictures instead: folder:DIR, tar:DIR, wds:SHARDS or hfds:NAME, as in training."""
    limit: int | None = None
    """Images per split, a seeded subset (default: all)."""
    preview: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """A stratified tenth of the images."""
    backend: str | None = None
    """Runtime, such as torch or onnx (default: what the model asks for)."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1; of the onnx backends also tensorrt."""
    threads: int | None = None
    """CPU threads (default: the backend's choice)."""
    image_size: int | None = None
    """Side of the crops in pixels, another than the model's own: the position table is interpolated."""
    batch_size: int | None = None
    """Images per forward pass (default: found by doubling while that is faster and fits)."""
    seed: int = 0
    """Of the subset, the corruptions and the bootstrap."""
    part: str | None = None
    """I/N: compute the I-th of N shares into --output; without, all that is missing, then the numbers."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Begin again where --output holds another evaluation."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the results document on standard output, and nothing else there."""

    def subset(self) -> Subset:
        """Which images are asked."""
        return Subset(self.limit, self.preview, self.seed)


@dataclass(frozen=True)
class ClassifyOptions(EvaluateOptions):
    """Options of the evaluations that classify."""

    templates: str | None = None
    """Prompts of a text tower: openai (80), simple (7), photo, plain, own (default: openai for ImageNet, else own)."""
    resize: Literal["shortest", "squash", "longest"] | None = None
    """Resize protocol instead of the model's own; squash is that of the D-iGPT authors."""
    crop_pct: float | None = None
    """Share of the shorter side that the crop keeps, instead of the model's own."""
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] | None = None
    """Instead of the model's own."""


def command(name: str, about: str | None, exits: Mapping[int, str] | None = None) -> Command:
    """The command ``python -m evaluate.NAME`` of a module with this docstring."""
    return Command(f"evaluate.{name}", about, GROUPS, exits or {}, CONTINUES)


def execute(
    options: EvaluateOptions,
    make_suite: Callable[[Engine], Suite],
    *,
    prefer_text: bool = False,
    served: Sequence[str] = (),
) -> int:
    """Load the engine, evaluate the suite, publish; return the exit code.

    ``served`` are the sets that the command's ``--sets`` may name. Whatever libraries print meanwhile goes to stderr,
    so that ``--json`` leaves stdout to the document.

    Raises:
        DigptError: as the engine, the suite or the options have it.
    """
    check(options)
    check_sets(options, served)
    part = part_of(options)
    with redirect_stdout(sys.stderr), bars() as progress:
        progress("model", 0, 0)
        with closing(load_engine(options)) as engine:
            suite = make_suite(engine)
            outcome = run_suite(
                engine,
                suite,
                output=options.output,
                overwrite=options.overwrite,
                batch_size=options.batch_size,
                part=part,
                cache=ClassMatrixCache(default_cache_dir()),
                prefer_text=prefer_text,
                progress=progress,
            )
    for line in (*suite.notes, *_lines(outcome, part), outcome.clock.line()):
        if line:
            print(line, file=sys.stderr)
    if outcome.document is not None:
        publish(outcome.document, options)
    return 0


def load_engine(options: EvaluateOptions) -> Engine:
    """The model, with its preprocessing changed where the options say so."""
    engine = Engine.load(
        options.spec,
        options.backend,
        threads=options.threads,
        device=options.device,
        image_size=options.image_size,
    )
    changes = {name: getattr(options, name, None) for name in ("resize", "crop_pct", "interpolation")}
    given = {name: value for name, value in changes.items() if value is not None}
    if given:
        preprocess = replace(engine.info.preprocess, **given)
        engine.runtime.info = replace(engine.info, preprocess=preprocess)
    return engine


def part_of(options: EvaluateOptions) -> Part:
    """This process's share: ``--part``, or what torchrun and ``accelerate launch`` say in RANK and WORLD_SIZE."""
    rank, world = (0, 1) if options.part is not None else launched()
    if options.part is None and world == 1:
        return Part()
    if options.output is None:
        raise ConfigError("Several processes meet in the store: give --output DIR.")
    if options.overwrite:
        raise ConfigError("--overwrite cannot be given to several processes: delete the directory first.")
    if options.part is None:
        return Part(rank, world, launched=True)
    index, slash, count = options.part.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise ConfigError(f"--part {options.part} must be I/N with I from 1 to N, such as 2/4.")
    return Part(int(index) - 1, int(count))


def launched() -> tuple[int, int]:
    """Number of this process and number of processes, as launchers give them; ``(0, 1)`` without a launcher.

    Raises:
        ConfigError: one of the two is missing, or they are no such numbers.
    """
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    told = " ".join(f"{name}={value}" for name, value in given.items() if value is not None)
    if not told or told == "WORLD_SIZE=1":
        return 0, 1
    rank, world = (int(value) if value and value.isdecimal() else -1 for value in given.values())
    if not 0 <= rank < world:
        raise ConfigError(
            f"The environment has {told}: a launcher sets both, with RANK from 0 to WORLD_SIZE - 1. Start by "
            "accelerate launch or torchrun, give --part I/N, or unset them for one process."
        )
    return rank, world


def single_process(options: EvaluateOptions, what: str) -> None:
    """Refuse shares and launchers for work that cannot be shared out."""
    if options.part is not None or launched()[1] > 1:
        raise ConfigError(f"{what} is done by one process: start it without --part and without a launcher.")


def check(options: EvaluateOptions) -> None:
    """Refuse what would fail only after minutes of computing."""
    for name in ("batch_size", "threads", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least 1.")
    if options.seed < 0:
        raise ConfigError(f"--seed {options.seed} must be at least 0.")
    crop_pct = getattr(options, "crop_pct", None)
    if crop_pct is not None and not 0 < crop_pct <= 1:
        hint = f" Did you mean {crop_pct / 100:g}?" if 1 < crop_pct <= 100 else ""
        raise ConfigError(f"--crop-pct {crop_pct:g} must be a share above 0 and at most 1.{hint}")
    if options.data is not None and options.data_root is not None:
        raise ConfigError("--data and --data-root exclude each other: your own pictures, or the ImageNet family.")
    options.subset()
    if options.output is not None:
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output {options.output} cannot be a directory: {error.strerror}.") from error


def check_sets(options: EvaluateOptions, served: Sequence[str]) -> None:
    """Refuse ``--sets`` that nothing would come of, or that another command asks."""
    sets: Sequence[str] = getattr(options, "sets", ())
    if sets and options.data_root is None:
        raise ConfigError("--sets chooses among the sets of the ImageNet family: give --data-root DIR, or no --sets.")
    for name in sets:
        if name not in served:
            known = name in ROBUSTNESS
            hint = f" Ask {name} with evaluate.robustness." if known else near_misses(name, served)
            raise ConfigError(f"--sets {name} is none of this command's sets: {', '.join(served)}.{hint}")


def publish(document: ResultsDocument, options: EvaluateOptions) -> None:
    """Print the results: the document with ``--json``, else its tables."""
    if options.json:
        print(json.dumps(to_json(document), indent=2, ensure_ascii=False))
        return
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    console.print(render(document))
    where = f"written to {options.output / RESULTS_NAME}" if options.output else "not written; --output DIR keeps them"
    console.print(f"results {where}", highlight=False, soft_wrap=True)


def _lines(outcome: Outcome, part: Part) -> Iterator[str]:
    """What is said of the work itself."""
    if outcome.kept:
        yield f"{outcome.kept} shards were there already"
    if outcome.taken:
        yield (
            f"{outcome.taken} shards of other processes were computed here, since nothing new came from them for "
            f"{PATIENCE / 60:.0f} minutes: did one die?"
        )
    if outcome.document is None and part.launched:
        yield f"process {part.index} of {part.count} is done; process 0 prints the numbers"
    elif outcome.document is None:
        yield (
            f"part {part.index + 1}/{part.count} is done; {outcome.missing} shards of others are missing. "
            "The part that finishes last prints the numbers, and so does the command without --part."
        )
