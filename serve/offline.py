"""Embed images in bulk into one Parquet file, without HTTP; a killed run continues when the command is given again.

python -m serve.offline photos/ photos.parquet --model bundled
python -m serve.offline 'shards/{00000..00999}.tar' out.parquet --model runs/onnx --batch-size 128
python -m serve.offline parquet:images/ out.parquet --ray 8
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

import tyro

from digpt.cli import Command
from digpt.embeddings_file import About
from digpt.engine import Engine
from digpt.errors import BackendError, ConfigError
from digpt.runtime import absolute_spec
from serve.offline_embed import PartWriter
from serve.offline_inputs import Inputs, ParquetInputs, absolute_input, open_inputs
from serve.offline_parts import Job, Parts
from serve.offline_progress import Progress, no_progress, progressing

COMMAND = Command(
    "serve.offline",
    __doc__,
    {
        "Input and output": ("input", "output", "overwrite", "json", "column"),
        "Model": ("model", "backend", "image_size"),
        "Compute": ("device", "threads", "batch_size", "decode_workers", "ray", "part_rows"),
    },
    {
        0: "the output is complete; rows of unreadable inputs say why in their error",
        1: "it is complete, but not one input could be embedded",
        2: "refused, or something failed that the same command continues from",
    },
    after="give the same command again: it goes on from the parts beside the output",
)
Write: TypeAlias = Callable[[Sequence[int]], Iterator[tuple[int, float]]]
"""Writes those parts; of each, once it is safe, its number and the seconds that the model took."""


@dataclass(frozen=True)
class OfflineConfig:
    """Embed images in bulk into one Parquet file. The same command continues what was killed."""

    input: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """A folder of images, webdataset shards (a folder, or SHARDS/{000..099}.tar), Parquet files with a column of bytes;
    folder:, wds: or parquet: before it says which where a path does not."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """The Parquet file to write; OUTPUT.parts/ lies beside it until it is complete."""
    model: str = "bundled"
    """bundled, a ckpt.pt, an artifact directory, timm:NAME, open_clip:NAME/TAG."""
    backend: str | None = None
    """torch, torch-bf16, onnx, ...; by default what fits the model."""
    device: str = "auto"
    """auto (a GPU where there is one) or cpu."""
    image_size: int | None = None
    """Side of the crops in pixels, another than the model's own: the position table is interpolated."""
    threads: int | None = None
    """Threads of the model's computation; by default as many as the backend likes."""
    batch_size: int = 64
    """Images per forward pass."""
    decode_workers: int | None = None
    """Threads that decode images while the model computes; by default one per core."""
    part_rows: int = 4096
    """Images that are computed before they are kept: what a kill may cost."""
    column: str | None = None
    """The Parquet column of images, where several could be it."""
    ray: int | None = None
    """Spread the parts over that many processes of a Ray cluster, which all see INPUT and OUTPUT."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Begin again, whatever lies there."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the summary as JSON on standard output, and nothing else there."""

    def __post_init__(self) -> None:
        for name in ("threads", "batch_size", "decode_workers", "part_rows", "ray"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least 1.")

    @property
    def workers(self) -> int:
        """Threads that decode."""
        return self.decode_workers or os.cpu_count() or 1

    def load(self) -> Engine:
        """Load the model; errors as ``Engine.load``."""
        return Engine.load(
            self.model, self.backend, threads=self.threads, device=self.device, image_size=self.image_size
        )


@dataclass(frozen=True)
class Summary:
    """What a run did: rows of the output, how many of them are errors and how many an earlier run had computed.

    ``images_per_second`` is of the rows computed now; ``ratio`` is the share of the seconds in which the model computed
    (of all its processes, with Ray): 1 would be the speed of the bare model.
    """

    output: str
    rows: int
    errors: int
    kept: int
    seconds: float
    images_per_second: float
    ratio: float
    fingerprint: str


def main(argv: Sequence[str] | None = None) -> int:
    """Embed and print the summary; return the exit code."""
    return COMMAND.run(OfflineConfig, argv, _offline)


def _offline(config: OfflineConfig) -> int:
    try:
        with progressing() as progress:
            summary = embed(config, progress)
    except OSError as error:  # a full disk, a folder that may not be read
        raise BackendError(str(error)) from error
    print(json.dumps(asdict(summary), ensure_ascii=False) if config.json else sentence(summary))
    return 1 if summary.errors == summary.rows else 0


def embed(config: OfflineConfig, progress: Progress = no_progress, load: Callable[[], Engine] | None = None) -> Summary:
    """Embed the input of ``config`` into its output, or what remains to be done of it.

    Args:
        load: gives the engine instead of ``config.load``.

    Raises:
        ConfigError: the job that lies there is another one, or is being worked on.
        BackendError: the backend does not reproduce the artifact's golden answers.
        DigptError: as ``open_inputs`` and ``Engine.load``.
    """
    inputs = open_inputs(config.input, config.column)
    if config.ray is not None:
        config = for_any_folder(config)
    check_output(config, inputs)
    engine = (load or config.load)()
    try:
        info = engine.info
        if info.remote:
            raise ConfigError(
                f"{info.spec} is a running server; give the model that it serves: bulk work needs no HTTP."
            )
        engine.verify_golden().raise_for_failure()
        job = Job.of(info, inputs.fingerprint, len(inputs), config.part_rows, config.batch_size)
        parts = Parts(config.output, job, About.of(info, job.digest))
        with parts.open(config.overwrite):
            if config.ray is None:
                return run(config, parts, PartWriter(engine, inputs, parts, config.workers).write, progress)
            from serve.offline_ray import write_with_ray

            engine.close()  # the cluster's processes load their own, perhaps onto the same GPU
            return run(config, parts, partial(write_with_ray, config, parts), progress)
    finally:
        engine.close()


def for_any_folder(config: OfflineConfig) -> OfflineConfig:
    """The same job for a cluster's processes, which start in folders of their own."""
    return replace(
        config,
        input=absolute_input(config.input),
        output=config.output.absolute(),
        model=absolute_spec(config.model),
    )


def run(config: OfflineConfig, parts: Parts, write: Write, progress: Progress) -> Summary:
    """Write the missing parts, then the output."""
    started, job = time.perf_counter(), parts.job
    missing = [] if parts.done else parts.missing()
    todo = sum(stop - start for start, stop in map(job.span, missing))
    busy, done = 0.0, job.rows - todo
    progress(done, job.rows)
    for part, seconds in write(missing):
        start, stop = job.span(part)
        busy, done = busy + seconds, done + stop - start
        progress(done, job.rows)
    errors = parts.errors() if parts.done else parts.merge()
    parts.clean()
    seconds = time.perf_counter() - started
    return Summary(
        output=str(config.output),
        rows=job.rows,
        errors=errors,
        kept=job.rows - todo,
        seconds=round(seconds, 3),
        images_per_second=round(todo / seconds, 1),
        ratio=round(busy / seconds / (config.ray or 1), 4),
        fingerprint=job.fingerprint,
    )


def check_output(config: OfflineConfig, inputs: Inputs) -> None:
    """Raise ConfigError where the output would be a folder, or part of the next run's input."""
    output = config.output.resolve()
    if output.is_dir():
        raise ConfigError(f"{config.output} is a folder; name the Parquet file to write.")
    within = Path(inputs.name).resolve()
    if isinstance(inputs, ParquetInputs) and (output == within or within in output.parents):
        raise ConfigError(f"{config.output} would lie in its own input {inputs.name}; write it elsewhere.")


def sentence(summary: Summary) -> str:
    """The summary in words."""
    failed = f"; {summary.errors:,} inputs could not be embedded, their rows say why" if summary.errors else ""
    if summary.kept == summary.rows:
        return f"{summary.output}: all {summary.rows:,} rows from an earlier run{failed}; --overwrite begins again"
    kept = f", {summary.kept:,} of them kept from an earlier run" if summary.kept else ""
    speed = f"{summary.images_per_second:,.0f} images/s, the model computed {summary.ratio:.0%} of the time"
    return f"{summary.output}: {summary.rows:,} rows{kept}{failed}; {summary.seconds:.1f} s, {speed}"


if __name__ == "__main__":
    sys.exit(main())
