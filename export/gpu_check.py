"""Tries every way of computing a model on this machine's GPU, and says of each whether its answers are right.

    python -m export.gpu_check bundled

One table: how far each is from torch float32 on the CPU, the precision it really computes in, images per second, and
the GPU memory that it was planned to take and took. Each way runs in a process of its own, so that one that fails, or
ends its process, leaves the others alone.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro
from rich.console import Console
from rich.table import Table

from digpt.cli import Command
from digpt.errors import DigptError, MissingDependencyError
from digpt.sources import load_model
from export.gpu_paths import BATCHES, PATHS, Figures, examine

COMMAND = Command(
    "export.gpu_check",
    __doc__,
    exits={0: "every way that is installed passed, or there is no GPU", 1: "a way failed"},
)
NO_GPU = "There is no GPU here; nothing was checked and nothing is claimed."
TABLE_WIDTH = 200  # where the output is no terminal

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """Check every GPU path of a model against torch float32 on the CPU."""

    spec: Annotated[str, tyro.conf.Positional] = "bundled"
    """Model: bundled, ckpt.pt, timm:NAME[@FILE], open_clip:NAME/TAG_OR_FILE, an authors' .pth."""
    parity_images: int = 256
    """How many of the bundled images to compare on."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the figures as JSON on standard output, and nothing else there."""


@dataclass(frozen=True)
class Verdict:
    """What became of one path. ``reason`` is one sentence, empty where it passed."""

    path: str
    status: Literal["passed", "failed", "not installed"]
    reason: str = ""
    figures: Figures | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Check all paths and print the table; return the exit code."""
    return COMMAND.run(Options, argv, _gpu_check)


def _gpu_check(options: Options) -> int:
    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr if options.json else sys.stdout)
        if options.json:
            print(json.dumps(document(None, ()), indent=2))
        return 0
    with redirect_stdout(sys.stderr):
        load_model(options.spec)  # a wrong spec is one error, not one of every path
    verdicts = check(
        tuple(PATHS),
        lambda path: apart(_examine, options.spec, path, options.parity_images),
        progress=lambda line: print(line, file=sys.stderr),
    )
    gpu = torch.cuda.get_device_name()
    if options.json:
        print(json.dumps(document(gpu, verdicts), indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else TABLE_WIDTH, highlight=False).print(table(gpu, verdicts))
    return 1 if any(verdict.status == "failed" for verdict in verdicts) else 0


def check(
    paths: Sequence[str], examine: Callable[[str], Figures], progress: Callable[[str], None] = lambda line: None
) -> tuple[Verdict, ...]:
    """What ``examine`` finds about each of ``paths``, in their order, whatever it raises."""
    return tuple(_verdict(path, examine, progress) for path in paths)


def _verdict(path: str, examine: Callable[[str], Figures], progress: Callable[[str], None]) -> Verdict:
    progress(f"checking {path}")
    try:
        figures = examine(path)
    except MissingDependencyError as error:
        return Verdict(path, "not installed", " ".join(str(error).split()))
    except Exception as error:  # the libraries' exceptions share no base class, and the other paths must be checked
        name = "" if isinstance(error, DigptError) else f"{type(error).__name__}: "
        return Verdict(path, "failed", name + " ".join(str(error).split()))
    faults = "; ".join(figures.faults)
    return Verdict(path, "failed" if faults else "passed", faults, figures)


def apart(function: Callable[..., T], *arguments: object) -> T:
    """The result of ``function(*arguments)`` in a process of its own; what it raises is raised here.

    Raises:
        BrokenProcessPool: the process ended without an answer.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise BrokenProcessPool("its process ended without an answer") from None


def _examine(spec: str, path: str, parity_images: int) -> Figures:
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(sys.stderr):  # libraries print what they like
        return examine(spec, PATHS[path], Path(scratch), parity_images=parity_images)


def document(gpu: str | None, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The figures as JSON values; ``gpu`` is None where there is none, and then nothing was checked."""
    return {"gpu": gpu, "paths": [asdict(verdict) for verdict in verdicts]}


def table(gpu: str, verdicts: Sequence[Verdict]) -> Table:
    """One row per path; of those without figures the reason alone."""
    result = Table(title=f"GPU paths on {gpu} against torch fp32 on the CPU")
    for column in ("path", "computes"):
        result.add_column(column, no_wrap=column == "path")
    columns = ("cosine median", "cosine min", "agreement", *(f"images/s, batch {size}" for size in BATCHES))
    for column in (*columns, "MB planned", "MB peak"):
        result.add_column(column, justify="right")
    result.add_column("result")
    for verdict in verdicts:
        cells = ["-"] * (len(columns) + 3) if verdict.figures is None else _cells(verdict.figures)
        result.add_row(verdict.path, *cells, ": ".join(filter(None, (verdict.status, verdict.reason))))
    return result


def _cells(figures: Figures) -> list[str]:
    return [
        ", ".join(figures.providers),
        f"1 - {1 - figures.cosine_median:.1e}",
        f"1 - {1 - figures.cosine_min:.1e}",
        "-" if figures.agreement is None else f"{figures.agreement:.2%}",
        *(f"{figures.images_per_second[str(size)]:,.1f}" for size in BATCHES),
        f"{figures.planned_mb:,.0f}",
        f"{figures.peak_mb:,.0f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
