"""What bulk embedding costs beside the bare model: images/s of both in turns, and the ratio.

    python -m benchmarks.offline
    python -m benchmarks.offline --model runs/onnx --images 8192 --rounds 5 --json

`cropped` reads a shard of images that are the model's crops already, as BMP, so that decoding them is a copy: what is
left is the job itself (reading, batching, writing, joining). `photographs` reads JPEGs of 500 x 375 pixels; decoding
takes the cores that the model wants too, so it is compared with 1/(1/r + 1/d), r the model's rate and d the decoder's.
In each round both run one after the other, in alternating order; a ratio is the median of the rounds' own ratios.
Ratios are given by the clock and by the CPU time of the process, which other processes on the machine spoil less.
Loading the model and a first run of both are in neither.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image

from digpt.cli import Command
from digpt.engine import Engine
from digpt.runtime.base import Runtime
from serve.offline import OfflineConfig, embed

COMMAND = Command("benchmarks.offline", __doc__)


@dataclass(frozen=True)
class Config:
    """Bulk embedding benchmark."""

    model: str = "bundled"
    """What serve.offline takes."""
    backend: str | None = None
    """By default what fits the model."""
    images: int = 4096
    """Crops to embed per round; an eighth as many photographs."""
    batch_size: int = 64
    """Images per forward pass."""
    threads: int | None = None
    """Threads of the model; by default as many as the backend likes."""
    decode_workers: int | None = None
    """Threads that decode; by default one per core."""
    rounds: int = 5
    """Of both, in turns."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the figures as JSON on standard output, and nothing else there."""


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    """Smooth noise with fine grain, so that it compresses as photographs do."""
    random = np.random.RandomState(number)
    coarse = Image.fromarray(random.randint(0, 256, (24, 32, 3), dtype=np.uint8)).resize(size, 3)
    grain = random.normal(0, 6, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


def write_shard(path: Path, count: int, size: tuple[int, int], kind: str) -> list[bytes]:
    """``count`` pictures in one shard; the files are returned too."""
    distinct = [_file(picture(number, size), kind) for number in range(min(count, 512))]
    files = [distinct[number % len(distinct)] for number in range(count)]
    with tarfile.open(path, "w") as archive:
        for number, data in enumerate(files):
            info = tarfile.TarInfo(f"{number:08d}.{kind.lower()}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return files


def _file(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=90)
    return buffer.getvalue()


@dataclass(frozen=True)
class Rate:
    """Images per second by the clock, and per second of CPU time."""

    clock: float
    cpu: float


def rate(count: int, work: Callable[[], object]) -> Rate:
    """How fast ``work`` is over ``count`` images."""
    started, cpu = time.perf_counter(), time.process_time()
    work()
    return Rate(count / (time.perf_counter() - started), count / (time.process_time() - cpu))


def bare(runtime: Runtime, crops: np.ndarray, batch_size: int) -> Rate:
    """Rate of the model alone, over crops uint8 ``[N,H,W,3]`` in memory."""
    starts = range(0, len(crops), batch_size)
    return rate(len(crops), lambda: [runtime.embed(crops[start : start + batch_size]) for start in starts])


def decoding(engine: Engine, files: Sequence[bytes], workers: int) -> Rate:
    """Rate of the decoder alone on as many threads as the job has."""
    with ThreadPoolExecutor(workers) as pool:
        return rate(len(files), lambda: list(pool.map(engine.decode, files, chunksize=8)))


class KeptOpen(Engine):
    """An engine that jobs do not close, so that rounds share one."""

    def close(self) -> None:
        """Nothing: the benchmark's process ends."""


def measure(config: Config, folder: Path) -> dict[str, dict[str, list[Rate]]]:
    """Rates of every round, by input and by what was measured."""
    loaded = Engine.load(config.model, config.backend, threads=config.threads)
    engine, side = KeptOpen(loaded.runtime), loaded.info.preprocess.size
    shapes = {"cropped": (config.images, (side, side), "BMP"), "photographs": (config.images // 8, (500, 375), "JPEG")}
    found: dict[str, dict[str, list[Rate]]] = {}
    for name, (count, size, kind) in shapes.items():
        shard = folder / f"{name}.tar"
        files = write_shard(shard, count, size, kind)
        crops = np.stack([engine.decode(data) for data in files[:512]])[np.arange(count) % min(count, 512)]
        job = OfflineConfig(
            f"wds:{shard}",
            folder / f"{name}.parquet",
            batch_size=config.batch_size,
            decode_workers=config.decode_workers,
            overwrite=True,
        )

        def offline(job: OfflineConfig = job, count: int = count) -> Rate:
            return rate(count, lambda: embed(job, load=lambda: engine))

        bare(engine.runtime, crops[: 2 * config.batch_size], config.batch_size)
        offline()
        rates: dict[str, list[Rate]] = {"bare": [], "offline": [], "decode": []}
        for turn in range(config.rounds):
            steps: list[tuple[str, Callable[[], Rate]]] = [
                ("bare", lambda crops=crops: bare(engine.runtime, crops, config.batch_size)),  # type: ignore[misc]
                ("offline", offline),
            ]
            for what, step in steps if turn % 2 else reversed(steps):
                rates[what].append(step())
            rates["decode"].append(decoding(engine, files, job.workers))
        found[name] = rates
    return found


def ratios(name: str, rates: dict[str, list[Rate]], by: str) -> list[float]:
    """Of each round: the job's rate over what could be expected (see the module), by ``clock`` or ``cpu``."""
    model, decoder, offline = ([getattr(rate, by) for rate in rates[what]] for what in ("bare", "decode", "offline"))
    expected = model if name == "cropped" else [1 / (1 / r + 1 / d) for r, d in zip(model, decoder, strict=True)]
    return [rate / best for rate, best in zip(offline, expected, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    return COMMAND.run(Config, argv, _offline)


def _offline(config: Config) -> int:
    with tempfile.TemporaryDirectory() as folder:
        found = measure(config, Path(folder))
    result: dict[str, dict[str, Any]] = {}
    for name, rates in found.items():
        result[name] = {
            what: round(statistics.median(rate.clock for rate in values), 1) for what, values in rates.items()
        }
        result[name] |= {
            f"ratio_{by}": [round(ratio, 4) for ratio in ratios(name, rates, by)] for by in ("clock", "cpu")
        }
    if config.json:
        print(json.dumps(result, indent=2))
        return 0
    for name, values in result.items():
        against = "the bare model" if name == "cropped" else "1/(1/model + 1/decoder)"
        print(f"{name}: images/s bare {values['bare']}, offline {values['offline']}, decoder {values['decode']}")
        for by in ("clock", "cpu"):
            of_rounds = values[f"ratio_{by}"]
            spread = f"rounds {min(of_rounds):.1%} to {max(of_rounds):.1%}"
            print(f"  {statistics.median(of_rounds):.1%} of {against} by {by} ({spread})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
