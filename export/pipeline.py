"""From a model to an artifact directory: build the engines, measure them, keep what passes, rename into place."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digpt.engine import Engine
from digpt.errors import ConfigError, near_misses
from digpt.manifest import MANIFEST_NAME
from digpt.runtime import load_runtime
from digpt.runtime.artifact import seal_manifest
from digpt.runtime.base import Runtime, RuntimeInfo
from digpt.runtime.golden import GoldenReport
from digpt.runtime.precision import GOLDEN_TOLERANCE
from digpt.runtime.timing import speed, take_turns, time_engines
from export.abstain import Calibration
from export.builders import BUILDERS, check_machine, default_targets, engine_files, explain
from export.job import Job, load_job
from export.parity import ParityReport, measure

AUTO = "auto"
EXACTNESS = ("int8", "bf16", "fp16", "fp32")  # ascending
AS_FAST = 0.9  # of the best speed: closer than this, timings on a busy machine say nothing


@dataclass(frozen=True)
class EngineOutcome:
    """What became of one target. ``golden`` is the comparison that a server makes at every start.

    ``notes`` are sentences that help to see why it was refused.
    """

    target: str
    parity: ParityReport
    golden: GoldenReport
    timings: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.parity.passed and self.golden.passed


@dataclass(frozen=True)
class Outcome:
    """What an export did; ``directory`` is None when no engine passed and so nothing was written.

    ``asked`` are the targets that were named; of those that ``auto`` tried, one that passes is enough.
    """

    directory: Path | None
    manifest: dict[str, Any]
    engines: tuple[EngineOutcome, ...]
    asked: tuple[str, ...]
    calibration: Calibration

    @property
    def passed(self) -> bool:
        return self.directory is not None and all(e.passed for e in self.engines if e.target in self.asked)


@dataclass(frozen=True)
class Candidate:
    """An engine that is built and measured, and not yet kept or dropped."""

    target: str
    entry: dict[str, Any]
    info: RuntimeInfo
    parity: ParityReport
    golden: GoldenReport
    seconds: dict[str, float]

    @property
    def passed(self) -> bool:
        return self.parity.passed and self.golden.passed


def check_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """Return ``targets`` without repeats, ``auto`` replaced by what this machine can run.

    Raises:
        ConfigError: none, or one that is not available; the message lists those that are.
        BackendError: one that this machine cannot build or run.
    """
    known = (AUTO, *BUILDERS)
    for target in targets:
        if target not in known:
            close = near_misses(target, known)
            raise ConfigError(f"--to {target}: no such target; available: {', '.join(known)}.{close}")
    if not targets:
        raise ConfigError(f"--to names no target; available: {', '.join(known)}.")
    expanded = [name for target in targets for name in (default_targets() if target == AUTO else (target,))]
    for target in dict.fromkeys(expanded):
        check_machine(target)
    return tuple(dict.fromkeys(expanded))


def run(
    spec: str,
    targets: Sequence[str],
    output: Path,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    images: Path | None = None,
    parity_images: int = 256,
    text: bool = True,
    patch_tokens: bool = False,
    image_size: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Export ``spec`` to every target; see ``export.__main__`` for the arguments.

    Raises:
        ConfigError: unknown target, or an output that exists and may not be overwritten.
        SpecError, CheckpointError, DataError: the model or the images cannot be read.
        BackendError: an engine cannot be built or run on this machine.
    """
    asked, targets = tuple(targets), check_targets(targets)
    check_output(output, overwrite)
    with directory_beside(output) as partial:
        progress(f"loading {spec}")
        job = load_job(
            spec,
            partial,
            threads=threads,
            images=images,
            parity_images=parity_images,
            text=text,
            patch_tokens=patch_tokens,
            image_size=image_size,
        )
        shared = set(partial.iterdir())
        candidates = [build_candidate(job, target, partial, progress) for target in targets]
        outcomes = _decide(job, candidates, partial, progress)
        kept = [outcome for outcome in outcomes if outcome.passed]
        job.manifest["peak_memory_mb"] = peak_memory_mb()
        if not kept:
            return Outcome(None, job.manifest, outcomes, asked, job.calibration)
        shared |= {path for entry in job.manifest["engines"].values() for path in engine_files(partial, entry)}
        for path in set(partial.iterdir()) - shared:
            path.unlink()  # of refused engines, and what others were made from
        preferred = prefer(kept)
        chosen = {"backend": preferred.target, "precision": preferred.parity.precision}
        manifest = seal_manifest(partial, {**job.manifest, **chosen})
        rename_into_place(partial, output)
    return Outcome(output, manifest, outcomes, asked, job.calibration)


def prefer(kept: Sequence[EngineOutcome]) -> EngineOutcome:
    """The fastest, or one of more exact numbers that is as good as equally fast."""
    best = max(speed(outcome.timings) for outcome in kept)
    near = [outcome for outcome in kept if speed(outcome.timings) >= AS_FAST * best]
    return max(near, key=lambda outcome: (EXACTNESS.index(outcome.parity.precision), speed(outcome.timings)))


def build_candidate(job: Job, target: str, directory: Path, progress: Callable[[str], None]) -> Candidate:
    """Build, load and measure one engine."""
    progress(f"building {target}")
    started = time.perf_counter()
    entry = BUILDERS[target](job, directory)
    entry = {**entry, "tolerance": GOLDEN_TOLERANCE[entry["precision"]]}
    built = time.perf_counter()
    runtime = open_engine(job, {target: entry}, directory, target)
    seconds = {"build_s": round(built - started, 3), "load_s": round(time.perf_counter() - built, 3)}
    progress(f"measuring {target} on {len(job.crops)} images")
    try:
        parity = measure(job.reference, runtime, job.crops, job.labels, entry["precision"])
        return Candidate(target, entry, runtime.info, parity, Engine(runtime).verify_golden(), seconds)
    finally:
        runtime.close()  # with what its largest batch took; it is opened anew to be timed


def open_engine(job: Job, entries: dict[str, dict[str, Any]], directory: Path, target: str) -> Runtime:
    """Load ``target`` from a manifest as it would be if ``entries`` were the engines."""
    chosen = {"engines": entries, "backend": target, "precision": entries[target]["precision"]}
    seal_manifest(directory, {**job.manifest, **chosen})
    return load_runtime(str(directory), target, threads=job.threads)


def _decide(
    job: Job, candidates: Sequence[Candidate], directory: Path, progress: Callable[[str], None]
) -> tuple[EngineOutcome, ...]:
    """Time all engines in turns; enter those that pass into the manifest, and the figures of the others as refused."""
    progress(f"timing {', '.join(candidate.target for candidate in candidates)}, in turns")
    timings = _timings(job, {candidate.target: candidate.entry for candidate in candidates}, directory)
    outcomes = []
    for candidate in candidates:
        target, passed = candidate.target, candidate.passed
        notes = () if passed else explain(job, target, directory)
        times = {**candidate.seconds, **timings[target]}
        outcomes.append(EngineOutcome(target, candidate.parity, candidate.golden, times, notes))
        figures = _figures(outcomes[-1], candidate.info)
        if passed:
            job.manifest["engines"][target] = {**candidate.entry, **figures}
        else:
            golden = {"passed": candidate.golden.passed, "message": candidate.golden.message}
            entry = {"precision": candidate.entry["precision"], **figures, "golden": golden, "notes": list(notes)}
            job.manifest["refused"][target] = entry
    return tuple(outcomes)


def _timings(job: Job, entries: dict[str, dict[str, Any]], directory: Path) -> dict[str, dict[str, float]]:
    with ExitStack() as loaded:
        runtimes = {}
        for target in entries:
            runtimes[target] = open_engine(job, entries, directory, target)
            loaded.callback(runtimes[target].close)
        found = time_engines({target: runtime.embed for target, runtime in runtimes.items()}, job.crops)
        if job.reference.info.head == "upernet":
            pixels = {target: runtime.pixel_logits for target, runtime in runtimes.items()}
            for target, value in take_turns(pixels, job.crops[:1]).items():
                found[target]["segment_batch_1_ms"] = value
    return found


def _figures(outcome: EngineOutcome, info: RuntimeInfo) -> dict[str, Any]:
    """What the manifest records about an engine, whether or not it passed."""
    return {
        "parity": outcome.parity.to_dict(),
        "timings": outcome.timings,
        "versions": dict(info.versions),
        "providers": list(info.providers),
    }


def peak_memory_mb() -> float | None:
    """The most memory this process has had at once, in MB (10^6 bytes); None on systems that do not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def check_output(output: Path, overwrite: bool) -> None:
    """Raise ConfigError when ``output`` is in the way: only an artifact is ever overwritten, and only when told to."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MANIFEST_NAME).is_file():
        raise ConfigError(f"{output} exists and is no artifact directory; give another --output.")
    if not overwrite:
        raise ConfigError(f"{output} holds an artifact already; add --overwrite to replace it.")


@contextmanager
def directory_beside(output: Path) -> Iterator[Path]:
    """An empty directory on the same file system, gone afterwards unless it was renamed."""
    partial = output.parent / f".{output.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}.") from error
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def rename_into_place(partial: Path, output: Path) -> None:
    """At every moment ``output`` is the old artifact, nothing, or the new one; never a mixture."""
    replaced = partial.with_name(partial.name + ".old")
    if output.exists():
        output.rename(replaced)
    partial.rename(output)
    shutil.rmtree(replaced, ignore_errors=True)
