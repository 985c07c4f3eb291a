"""All CPU engines of a model in one table: how near torch float32 each is, how fast, and which one `auto` takes.

    python -m benchmarks.engines --threads 2
    python -m benchmarks.engines bundled --engines torch onnx openvino-bf16 --json

Without a spec: the bundled model, and ViT-B/16 at 224 pixels with seeded weights. `seeded:NAME` is any model of timm
with such weights: its answers mean nothing, its costs are those of the real one. An artifact's engines are built and
judged as by ``python -m export``, torch's variants by the same figures; then all take turns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from digpt.cli import Command
from digpt.errors import BackendError, ConfigError, near_misses
from digpt.runtime import AUTO, MODEL_BACKENDS, load_runtime
from digpt.runtime.base import Runtime
from digpt.runtime.timing import speed, time_engines
from export.builders import BUILDERS, check_machine, default_targets
from export.job import Job, load_job
from export.parity import ParityReport, measure
from export.pipeline import Candidate, build_candidate, open_engine, peak_memory_mb
from export.tables import BASELINE, near_one

TORCH = tuple(name for name in MODEL_BACKENDS if name != AUTO)
ENGINES = (*TORCH, *BUILDERS)
SEEDED = "seeded:"
WIDTH = 140  # where the output is no terminal


COMMAND = Command("benchmarks.engines", __doc__)


@dataclass(frozen=True)
class Options:
    """Compare the CPU engines of models."""

    specs: Annotated[tuple[str, ...], tyro.conf.Positional] = ("bundled", f"{SEEDED}vit_base_patch16_224")
    """Models as everywhere, or seeded:NAME for a model of timm with random weights."""
    engines: tuple[str, ...] = ENGINES
    """Which engines to compare."""
    threads: int | None = None
    """CPU threads (default: the backends' choice)."""
    parity_images: int = 256
    """How many images to compare the answers on."""
    rounds: int = 5
    """Rounds of timing at least, of which the median counts."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the figures as JSON on standard output, and nothing else there."""


@dataclass(frozen=True)
class Row:
    """One engine. ``auto`` says for what `auto` takes it: "artifact", "checkpoint", or nothing ("")."""

    engine: str
    parity: ParityReport
    passed: bool
    timings: dict[str, float]
    auto: str = ""


@dataclass(frozen=True)
class Comparison:
    """One model: its rows, why engines are missing, and the memory that the process has needed so far."""

    name: str
    rows: tuple[Row, ...]
    missing: dict[str, str]
    peak_memory_mb: float | None


def compare(spec: str, options: Options, progress: Callable[[str], None] = lambda line: None) -> Comparison:
    """Build, judge and time every engine of ``spec``.

    Raises:
        ConfigError: an engine that is not known, or a model that timm does not have.
        SpecError, CheckpointError: the model cannot be read.
    """
    for engine in options.engines:
        if engine not in ENGINES:
            raise ConfigError(f"--engines {engine}: valid: {', '.join(ENGINES)}.{near_misses(engine, ENGINES)}")
    with TemporaryDirectory() as scratch, ExitStack() as loaded:
        directory = Path(scratch) / "artifact"
        directory.mkdir()
        spec = seeded_spec(spec.removeprefix(SEEDED), Path(scratch)) if spec.startswith(SEEDED) else spec
        progress(f"loading {spec}")
        job = load_job(
            spec,
            directory,
            threads=options.threads,
            images=None,
            parity_images=options.parity_images,
            text=True,
            patch_tokens=False,
        )
        runtimes, judged, missing = _open_all(job, spec, options.engines, directory, progress)
        for runtime in runtimes.values():
            loaded.callback(runtime.close)
        progress(f"timing {', '.join(runtimes)}, in turns")
        computes = {engine: runtime.embed for engine, runtime in runtimes.items()}
        timings = time_engines(computes, job.crops, least=options.rounds)
        rows = [Row(engine, *judged[engine], timings[engine]) for engine in runtimes]
        return Comparison(job.model.name, mark_auto(rows), missing, peak_memory_mb())


def seeded_spec(name: str, directory: Path) -> str:
    """The spec of timm's model ``name`` with random weights of seed 0, which are written into ``directory``."""
    import timm
    import torch
    from safetensors.torch import save_file

    if not timm.is_model(name):
        raise ConfigError(f"{SEEDED}{name}: timm has no such model.{near_misses(name, timm.list_models())}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = timm.create_model(name).state_dict()
    file = directory / f"{name}.safetensors"
    save_file(weights, file)
    return f"timm:{name}@{file}"


Judged = tuple[ParityReport, bool]


def _open_all(
    job: Job, spec: str, engines: Sequence[str], directory: Path, progress: Callable[[str], None]
) -> tuple[dict[str, Runtime], dict[str, Judged], dict[str, str]]:
    """The runtimes that this machine has, their figures, and the reasons why others are missing; by engine."""
    runtimes: dict[str, Runtime] = {}
    judged: dict[str, Judged] = {}
    built: dict[str, Candidate] = {}
    missing: dict[str, str] = {}
    for engine in (name for name in ENGINES if name in engines):
        try:
            if engine in TORCH:
                progress(f"measuring {engine} on {len(job.crops)} images")
                runtime = load_runtime(spec, engine, threads=job.threads)
                parity = measure(job.reference, runtime, job.crops, job.labels, runtime.info.precision)
                runtimes[engine], judged[engine] = runtime, (parity, parity.passed)
            else:
                check_machine(engine)
                built[engine] = build_candidate(job, engine, directory, progress)
                judged[engine] = (built[engine].parity, built[engine].passed)
        except BackendError as error:
            missing[engine] = str(error)
    entries = {engine: candidate.entry for engine, candidate in built.items()}
    return runtimes | {engine: open_engine(job, entries, directory, engine) for engine in built}, judged, missing


def mark_auto(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with what `auto` takes: the fastest that passes, of what an export builds by itself and of torch's.

    For a checkpoint ``digpt.runtime.choose`` looks at the cosines alone, and so does the mark.
    """
    marks = {}
    for kind, names in (("artifact", default_targets()), ("checkpoint", TORCH)):
        passing = [
            row for row in rows if row.engine in names and (row.passed or (names is TORCH and _near(row.parity)))
        ]
        if passing:
            marks[max(passing, key=lambda row: speed(row.timings)).engine] = kind
    return tuple(Row(row.engine, row.parity, row.passed, row.timings, marks.get(row.engine, "")) for row in rows)


def _near(parity: ParityReport) -> bool:
    bounds = parity.thresholds
    return parity.cosine_median >= bounds.cosine_median and parity.cosine_min >= bounds.cosine_min


def table(comparison: Comparison) -> Table:
    """One row per engine; the ratio is that of images per second at batch 16 to onnxruntime's in float32."""
    result = Table(
        title=f"{comparison.name} against torch fp32, cosine and top-1 on {comparison.rows[0].parity.images} images"
    )
    result.add_column("engine", no_wrap=True)
    result.add_column("precision")
    for column in ("median", "min", "top-1", "ms, batch 1", "images/s, 16", f"/ {BASELINE}"):
        result.add_column(column, justify="right")
    result.add_column("passed")
    result.add_column("auto")
    for row in comparison.rows:
        agreement, gain = row.parity.agreement, ratio(row, comparison.rows)
        result.add_row(
            row.engine,
            row.parity.precision,
            near_one(row.parity.cosine_median),
            near_one(row.parity.cosine_min),
            "-" if agreement is None else f"{agreement:.2%}",
            f"{row.timings['batch_1_ms']:.2f}",
            f"{16_000 / row.timings['batch_16_ms']:.1f}",
            "-" if gain is None else f"{gain:.2f}",
            "yes" if row.passed else "[red]no[/red]",
            row.auto,
        )
    return result


def ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """How many times the images per second of onnxruntime float32 at batch 16; None where that was not measured."""
    baseline = [other.timings["batch_16_ms"] for other in rows if other.engine == BASELINE]
    return baseline[0] / row.timings["batch_16_ms"] if baseline else None


def document(comparison: Comparison) -> dict[str, Any]:
    """The figures as JSON values."""
    return {
        "name": comparison.name,
        "engines": {
            row.engine: {
                "passed": row.passed,
                "auto": row.auto,
                "parity": row.parity.to_dict(),
                "timings": row.timings,
                "ratio_batch_16": ratio(row, comparison.rows),
            }
            for row in comparison.rows
        },
        "missing": comparison.missing,
        "peak_memory_mb": comparison.peak_memory_mb,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table per model; return 0, or 2 where an option was refused."""
    return COMMAND.run(Options, argv, _engines)


def _engines(options: Options) -> int:
    log = Console(stderr=True, highlight=False)
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    documents = []
    for spec in options.specs:
        with redirect_stdout(sys.stderr):  # the exporter's libraries print what they like
            comparison = compare(spec, options, lambda line: log.print(f"[dim]{line}[/dim]"))
        documents.append(document(comparison))
        if not options.json:
            console.print(table(comparison))
            for engine, reason in comparison.missing.items():
                console.print(f"{engine} is missing: {reason}", soft_wrap=True)
            if comparison.peak_memory_mb:
                console.print(f"peak memory {comparison.peak_memory_mb:,.0f} MB")
    if options.json:
        print(json.dumps(documents, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
