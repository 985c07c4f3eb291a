"""What an evaluation costs beside the bare model, on images that are decoded already, and the loader's share otherwise.

    python -m benchmarks.evaluation_cost
    python -m benchmarks.evaluation_cost --spec timm:vit_base_patch16_224@vit.safetensors --images 64

Prints the ratio of the evaluation's time (batching, scores, the store on disk, every number) to that of the forward
passes alone, round by round in one process: both orders, so that a machine that slows down favours neither. A spec that
is a bare timm architecture is given random weights: they cost the same.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from digpt.engine import Engine
from evaluate.classify import classifier_of
from evaluate.compute import BatchSize, fill
from evaluate.measure import document_of
from evaluate.store import Store
from evaluate.suite import Cell, Suite, View


@dataclass(frozen=True)
class Options:
    """What is measured."""

    spec: str = "bundled"
    images: int = 1024
    batch_size: int = 64
    classes: int = 1000
    rounds: int = 5
    threads: int = 2


@dataclass(frozen=True)
class Decoded:
    """Crops in memory as a cell's source."""

    crops: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.crops)

    def read(self, index: int) -> tuple[NDArray[np.uint8], int]:
        return self.crops[index], 0


def suite_of(crops: NDArray[np.uint8], names: tuple[str, ...]) -> Suite:
    """One cell of these crops, asked for the classes ``names``."""
    rows = np.arange(len(crops), dtype=np.int64)
    keys = tuple(f"{row}.png" for row in rows)
    cell = Cell("made/val", Decoded(crops), rows, keys, "sha256:0")
    view = View("made", "val", cell.id, rows, rows % len(names))
    return Suite("made", names, (cell,), (view,), {"name": "made", "seed": 0})


def bare(engine: Engine, crops: NDArray[np.uint8], batch_size: int) -> float:
    """Seconds of the forward passes alone."""
    answer = engine.runtime.logits if engine.info.head == "linear" else engine.runtime.embed
    started = time.perf_counter()
    for start in range(0, len(crops), batch_size):
        answer(crops[start : start + batch_size])
    return time.perf_counter() - started


def evaluated(engine: Engine, suite: Suite, batch_size: int) -> tuple[float, float]:
    """Seconds of the evaluation into a store on disk with all its numbers, and the loader's share of it."""
    classifier = classifier_of(engine, suite)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        store = Store.create(Path(folder) / "store", suite, classifier.model())
        if classifier.matrix is not None:
            store.put_matrix(classifier.matrix)
        clock = fill(store, suite, classifier, batch=BatchSize(batch_size))
        document_of(store)
        seconds = time.perf_counter() - started
    return seconds, clock.loader / seconds


def main(options: Options) -> None:
    """Print a row per round, then the median ratio."""
    engine = Engine.load(options.spec, threads=options.threads)
    side = engine.info.preprocess.size
    crops = np.random.default_rng(0).integers(0, 256, (options.images, side, side, 3), dtype=np.uint8)
    made_up = tuple(f"thing number {index}" for index in range(options.classes))
    suite = suite_of(crops, (engine.info.labels if engine.info.head == "linear" else None) or made_up)
    for _ in range(2):  # warm up; the names are embedded here
        bare(engine, crops[: 4 * options.batch_size], options.batch_size)
        evaluated(engine, suite, options.batch_size)
    ratios = []
    print("| round | bare forward, s | evaluation, s | ratio | loader |\n|--:|--:|--:|--:|--:|")
    for round_ in range(options.rounds):
        if round_ % 2:
            seconds, loader = evaluated(engine, suite, options.batch_size)
            alone = bare(engine, crops, options.batch_size)
        else:
            alone = bare(engine, crops, options.batch_size)
            seconds, loader = evaluated(engine, suite, options.batch_size)
        ratios.append(seconds / alone)
        print(f"| {round_ + 1} | {alone:.2f} | {seconds:.2f} | {ratios[-1]:.3f} | {loader:.1%} |")
    print(
        f"\n{engine.info.name}, {options.images} images of {side} px in batches of {options.batch_size}: "
        f"the evaluation takes {statistics.median(ratios):.3f} x the bare forward time (median of {options.rounds})"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
