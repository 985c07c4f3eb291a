"""From a model to an artifact directory: build each engine, measure it, keep what passes, rename into place."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from digpt.engine import Engine
from digpt.errors import ConfigError, near_misses
from digpt.manifest import MANIFEST_NAME
from digpt.runtime import load_runtime
from digpt.runtime.artifact import seal_manifest
from digpt.runtime.golden import GoldenReport
from export import build_onnx
from export.job import Job, load_job
from export.parity import GOLDEN_TOLERANCE, ParityReport, measure


@dataclass(frozen=True)
class EngineOutcome:
    """What became of one target. ``golden`` is the comparison that a server makes at every start."""

    target: str
    parity: ParityReport
    golden: GoldenReport
    timings: dict[str, float]

    @property
    def passed(self) -> bool:
        return self.parity.passed and self.golden.passed


@dataclass(frozen=True)
class Outcome:
    """What an export did; ``directory`` is None when no engine passed and so nothing was written."""

    directory: Path | None
    manifest: dict[str, Any]
    engines: tuple[EngineOutcome, ...]

    @property
    def passed(self) -> bool:
        return all(engine.passed for engine in self.engines)


def _build_onnx(job: Job, directory: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"precision": "fp32", "image": "image.onnx", "text": None, "outputs": list(job.outputs)}
    segmenter, size = job.model.module.segmenter, job.model.preprocess.size
    build_onnx.build_image(
        job.model.module, directory / entry["image"], size=size, outputs=job.outputs, identity=job.identity
    )
    if job.manifest["text"] is not None and job.model.text is not None:
        entry["text"] = "text.onnx"
        build_onnx.build_text(job.model.text, directory / entry["text"], identity=job.identity)
    if segmenter is not None:
        entry["segment"] = "segment.onnx"
        build_onnx.build_segmenter(segmenter, directory / entry["segment"], identity=job.identity)
    return entry


# target -> writes the engine's files and returns its manifest entry: precision, image, text, outputs (and segment)
BUILDERS: dict[str, Callable[[Job, Path], dict[str, Any]]] = {"onnx": _build_onnx}


def check_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """Return ``targets`` without repeats.

    Raises:
        ConfigError: none, or one that is not available; the message lists those that are.
    """
    for target in targets:
        if target not in BUILDERS:
            close = near_misses(target, BUILDERS)
            raise ConfigError(f"--to {target}: no such target; available: {', '.join(BUILDERS)}.{close}")
    if not targets:
        raise ConfigError(f"--to names no target; available: {', '.join(BUILDERS)}.")
    return tuple(dict.fromkeys(targets))


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
    """
    targets = check_targets(targets)
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
        outcomes = tuple(_export_one(job, target, partial, progress) for target in targets)
        kept = [outcome.target for outcome in outcomes if outcome.passed]
        if not kept:
            return Outcome(None, job.manifest, outcomes)
        chosen = {"backend": kept[0], "precision": job.manifest["engines"][kept[0]]["precision"]}
        manifest = seal_manifest(partial, {**job.manifest, **chosen})
        rename_into_place(partial, output)
    return Outcome(output, manifest, outcomes)


def _export_one(job: Job, target: str, directory: Path, progress: Callable[[str], None]) -> EngineOutcome:
    """Build and measure one engine; its files and manifest entry stay only if it passes."""
    progress(f"building {target}")
    before = set(directory.iterdir())
    started = time.perf_counter()
    entry = BUILDERS[target](job, directory)
    tolerance = GOLDEN_TOLERANCE[entry["precision"]]
    job.manifest["engines"][target] = {**entry, "tolerance": tolerance}
    built = time.perf_counter()
    seal_manifest(directory, {**job.manifest, "backend": target, "precision": entry["precision"]})
    candidate = load_runtime(str(directory), target, threads=job.threads)
    loaded = time.perf_counter()
    progress(f"measuring {target} on {len(job.crops)} images")
    try:
        parity = measure(job.reference, candidate, job.crops, job.labels, entry["precision"])
        golden = Engine(candidate).verify_golden()
        timings = {"build_s": round(built - started, 3), "load_s": round(loaded - built, 3)}
        timings |= {f"batch_{size}_ms": _batch_ms(candidate.embed, job.crops, size) for size in (1, 16)}
        if candidate.info.head == "upernet":
            timings["segment_batch_1_ms"] = _batch_ms(candidate.pixel_logits, job.crops, 1)
        versions = dict(candidate.info.versions)
    finally:
        candidate.close()
    outcome = EngineOutcome(target, parity, golden, timings)
    if outcome.passed:
        figures = {"parity": parity.to_dict(), "timings": timings, "versions": versions}
        job.manifest["engines"][target] |= {**figures, "providers": list(candidate.info.providers)}
    else:
        del job.manifest["engines"][target]
        for path in set(directory.iterdir()) - before:
            path.unlink()
    return outcome


def _batch_ms(compute: Callable[[np.ndarray], np.ndarray], crops: np.ndarray, size: int) -> float:
    """Median milliseconds of one batch, over at most 20 runs and half a second; the first run warms up."""
    batch = crops[np.arange(size) % len(crops)]
    compute(batch)
    times: list[float] = []
    while len(times) < 20 and sum(times) < 0.5:
        started = time.perf_counter()
        compute(batch)
        times.append(time.perf_counter() - started)
    return round(1000 * float(np.median(times)), 3)


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
