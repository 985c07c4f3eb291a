"""What every ``python -m evaluate.X`` shares: options, engine, progress on stderr, results on stdout, exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from digpt.engine import Engine
from digpt.errors import ConfigError, DigptError
from digpt.results import RESULTS_NAME, ResultsDocument, render, to_json, write_results
from evaluate import features

Options = TypeVar("Options")
TABLE_WIDTH = 100  # where the output is no terminal


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of every evaluation."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")] = "bundled"
    """Model: bundled, ckpt.pt, an artifact directory, timm:NAME[@FILE], open_clip:NAME/TAG_OR_FILE."""
    output: Path | None = None
    """Directory for results.json; nothing is written without it."""
    data_root: Path | None = None
    """Directory of the data (default: the bundled set)."""
    limit: int | None = None
    """Images per split, a seeded subset (default: all)."""
    backend: str | None = None
    """Runtime, such as torch or onnx (default: what the model asks for)."""
    threads: int | None = None
    """CPU threads (default: the backend's choice)."""
    batch_size: int = 64
    """Images per forward pass."""
    seed: int = 0
    """Of the subset and the bootstrap."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the results document on standard output, and nothing else there."""


def parse(options: type[Options], argv: Sequence[str] | None, prog: str, description: str) -> Options:
    """Return the options in ``argv`` (default: the process's own); bad ones end the process with exit code 2."""
    return tyro.cli(options, args=argv, prog=f"python -m {prog}", description=description)


def execute(options: EvaluateOptions, evaluate: Callable[[Engine, features.Progress], ResultsDocument]) -> int:
    """Load the engine, evaluate, publish; return the exit code: 0, or 2 after one line about what went wrong.

    Whatever libraries print meanwhile goes to stderr, so that ``--json`` leaves stdout to the document.
    """
    try:
        _check(options)
        with redirect_stdout(sys.stderr), _progress() as progress:
            progress("model", 0, 0)
            with closing(Engine.load(options.spec, options.backend, threads=options.threads)) as engine:
                document = evaluate(engine, progress)
        _publish(document, options)
    except DigptError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def _check(options: EvaluateOptions) -> None:
    """Refuse what would fail only after minutes of computing."""
    for name in ("batch_size", "threads", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least 1.")
    if options.output is not None:
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output {options.output} cannot be a directory: {error.strerror}.") from error


def _publish(document: ResultsDocument, options: EvaluateOptions) -> None:
    if options.output is not None:
        write_results(document, options.output / RESULTS_NAME)
    if options.json:
        print(json.dumps(to_json(document), indent=2, ensure_ascii=False))
        return
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    console.print(render(document))
    where = f"written to {options.output / RESULTS_NAME}" if options.output else "not written; --output DIR keeps them"
    console.print(f"results {where}", highlight=False, soft_wrap=True)


class _Speed(ProgressColumn):
    """Images per second of the current task."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f}/s" if task.speed else "")


@contextmanager
def _progress() -> Iterator[features.Progress]:
    """A progress bar on stderr, one line per thing being done; a total of 0 means that it cannot be counted."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def finish() -> None:
            for task in tasks.values():
                if bar.tasks[task].total is None:
                    bar.update(task, total=1, completed=1)

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                finish()
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done)

        try:
            yield report
        except BaseException:
            bar.live.transient = True  # take the bars away, so that the error stands alone
            bar.live.stop()
            bar.disable = True  # or Progress.stop would print an empty line
            raise
        finish()
