"""A linear classifier on frozen features, DINOv2's grid: 13 learning rates, last 1 or 4 blocks, class token or + mean.

    python -m evaluate.linear_probe runs/pretrain/ckpt.pt --output runs/probe
    python -m evaluate.linear_probe timm:vit_base_patch14_dinov2.lvd142m --data-root data --output runs/probe

Features are extracted once, every head of the grid is trained on them at the same time, and the one to report is chosen
on a part of the training images held out for that. ``digpt.probe`` names the source and the deviations. The output
holds the chosen head (``probe.npz``) and the whole grid (``grid.json``); a killed run continues.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from digpt.engine import Engine
from digpt.files import atomic_json
from digpt.metrics import target_ranks
from digpt.probe import LEARNING_RATES, ProbeConfig, TrainedProbe, choose, train_probes
from digpt.results import RESULTS_NAME, ModelRef, Result, ResultsDocument, with_fingerprint, write_results
from evaluate.classify import Classifier, without_classes
from evaluate.cli import EvaluateOptions, check, guarded, load_engine, parse, publish, single_process
from evaluate.compute import BatchSize, fill
from evaluate.measure import Bootstraps
from evaluate.progress import Progress, bars
from evaluate.select import Asked, select_suite
from evaluate.store import STORE_NAME, Store
from evaluate.suite import Cell, KnnView, Suite
from evaluate.suite_emoji import Neighbours
from evaluate.suite_imagenet import KNN_SETS

GRID_NAME, PROBE_NAME, STATE_NAME = "grid.json", "probe.npz", "probe_state.npz"
# Iterations and batch: DINOv2's for ImageNet (ten epochs); smaller sets have fewer images to go through.
IMAGENET_BUDGET, OTHER_BUDGET = (12_500, 1024), (1000, 256)


@dataclass(frozen=True)
class ProbeOptions(EvaluateOptions):
    """Options of the linear probe."""

    learning_rates: tuple[float, ...] = LEARNING_RATES
    """Of a batch of 256; scaled to the batch size."""
    iterations: int | None = None
    """Steps (default: 12,500 on ImageNet, 1,000 elsewhere)."""
    probe_batch: int | None = None
    """Feature rows per step (default: 1,024 on ImageNet, 256 elsewhere)."""
    held_out: float = 0.1
    """Share of the training images that chooses the head."""
    reference: tuple[str, ...] = ("noto", "twemoji")
    """Training styles of the bundled set."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the stored features: ImageNet's training images take 20 GB for a ViT-B in float32, half in float16."""

    def config(self, suite: str) -> ProbeConfig:
        """The protocol on a suite."""
        iterations, batch = IMAGENET_BUDGET if suite == "imagenet" else OTHER_BUDGET
        return ProbeConfig(
            learning_rates=self.learning_rates,
            iterations=self.iterations or iterations,
            batch_size=self.probe_batch or batch,
            held_out=self.held_out,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Features(Classifier):
    """Stands where a classifier would, and keeps the encoder's features instead of answers.

    ``rows`` gives ``[B, W]`` and which columns are which feature set, as `digpt.probe_features.block_rows` does.
    """

    rows: Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], dict[str, slice]]] | None = None
    dtype: str = "float32"

    def answer(self, crops: NDArray[np.uint8], cell: Cell) -> dict[str, NDArray[Any]]:
        assert self.rows is not None
        return {"features": self.rows(crops)[0].astype(self.dtype)}


def features_of(engine: Engine, dtype: str) -> Features:
    """The feature sets of a model: of its blocks where torch runs it, else its pooled embedding alone."""
    model = getattr(engine.runtime, "model", None)
    if model is None:

        def rows(crops: NDArray[np.uint8]) -> tuple[NDArray[np.float32], dict[str, slice]]:
            embeddings = engine.embed_images(crops, normalize=False, batch_size=len(crops))
            return embeddings, {"embedding": slice(0, engine.info.dim)}
    else:
        from digpt.probe_features import block_rows

        def rows(crops: NDArray[np.uint8]) -> tuple[NDArray[np.float32], dict[str, slice]]:
            return block_rows(model, crops)

    return Features(engine, "", 0, rows=rows, dtype=dtype)


def run(
    features: Features,
    suite: Suite,
    config: ProbeConfig,
    output: Path,
    *,
    overwrite: bool = False,
    batch_size: int | None = None,
    progress: Progress,
) -> tuple[ResultsDocument, list[TrainedProbe]]:
    """Extract, train the grid, choose, and measure; everything is kept in ``output`` and continued from there.

    The suite is that of neighbours: the same images, labels and training set are asked.

    Raises:
        ConfigError: ``output`` holds another probe, or ``config`` cannot work.
        DataError: images that cannot be read, or features that are not finite.
    """
    protocol = {name: value for name, value in suite.protocol.items() if name != "knn"}
    protocol["probe"] = {**_described(config), "reference": suite.protocol["knn"]["reference"], "dtype": features.dtype}
    suite = replace(without_classes(suite), protocol=protocol)
    store = Store.create(output / STORE_NAME, suite, features.model(), overwrite=overwrite)
    if overwrite:
        for name in (STATE_NAME, GRID_NAME, PROBE_NAME, RESULTS_NAME):
            (output / name).unlink(missing_ok=True)
    fill(store, suite, features, batch=BatchSize(batch_size), progress=progress)
    views = [view for view in suite.views if isinstance(view, KnnView)]
    train = views[0]
    stored = assembled(store, train.reference, output)
    sets = _columns(features)
    probes = train_probes(
        {name: stored[:, columns] for name, columns in sets.items()},
        train.reference_labels,
        train.n_classes,
        config,
        progress,
        state=output / STATE_NAME,
        threads=features.engine.info.threads,
        device=str(getattr(features.engine.runtime, "device", "cpu")),
    )
    chosen = choose(probes)
    bootstraps = Bootstraps(config.seed)
    results = [row for view in views for row in measured(chosen, store, view, sets[chosen.name], bootstraps)]
    ref = ModelRef.of(features.engine.info, "linear probe")
    document = ResultsDocument(model=ref, protocol=with_fingerprint(protocol), results=tuple(results))
    chosen.save(output / PROBE_NAME)
    atomic_json(output / GRID_NAME, grid_of(probes, chosen))
    return document, probes


def assembled(store: Store, cell: str, output: Path) -> NDArray[Any]:
    """All features of a cell as one memory-mapped array ``[N, W]``, beside the store."""
    path = output / "features.npy"
    shards = [store.load(cell, shard, "features") for shard in store.shards(cell)[:1]]
    shape = (store.cells[cell]["images"], shards[0].shape[1])
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="w+", dtype=shards[0].dtype, shape=shape)
    for shard in store.shards(cell):
        array[store.rows_of(cell, shard)] = store.load(cell, shard, "features")
    array.flush()
    return array


def measured(
    probe: TrainedProbe, store: Store, view: KnnView, columns: slice, bootstraps: Bootstraps
) -> Iterator[Result]:
    """Top-1 and top-5 of the chosen head on a view's images."""
    logits = probe.logits(store.array(view.cell, "features")[view.rows][:, columns])
    ranks = target_ranks(logits, view.labels)
    resamples = bootstraps.of(len(ranks), view.groups)
    for top in (1, 5):
        hits = (ranks < top).astype(float)
        interval = resamples.interval(resamples.means(hits))
        yield Result(view.dataset, view.split, f"probe_top{top}", float(hits.mean()), interval, len(hits))


def grid_of(probes: Sequence[TrainedProbe], chosen: TrainedProbe) -> dict[str, Any]:
    """The grid as JSON values: held-out accuracy by feature set and learning rate."""
    rows = [
        {"features": p.name, "learning_rate": p.learning_rate, "held_out_top1": p.held_out_accuracy} for p in probes
    ]
    return {"chosen": {"features": chosen.name, "learning_rate": chosen.learning_rate}, "grid": rows}


def _columns(features: Features) -> dict[str, slice]:
    """Which columns are which feature set: the same for every image, so that a black one tells."""
    size = features.engine.info.preprocess.size
    assert features.rows is not None
    return features.rows(np.zeros((1, size, size, 3), np.uint8))[1]


def _described(config: ProbeConfig) -> dict[str, Any]:
    return {
        "learning_rates": list(config.learning_rates),
        "iterations": config.iterations,
        "batch_size": config.batch_size,
        "momentum": config.momentum,
        "held_out": config.held_out,
        "augmentation": None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Probe and print; return the exit code."""
    options = parse(ProbeOptions, argv, "evaluate.linear_probe", "A linear classifier on frozen features.")
    return guarded(lambda: _probe(options))


def _probe(options: ProbeOptions) -> int:
    check(options)
    single_process(options, "A linear probe")
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(sys.stderr), bars() as progress:
        progress("model", 0, 0)
        output = options.output or Path(scratch)
        with closing(load_engine(options)) as engine:
            knn = Neighbours(k=(1,), reference=options.reference)
            suite = select_suite(options, engine, Asked(sets=KNN_SETS, splits=(), knn=knn))
            document, probes = run(
                features_of(engine, options.dtype),
                suite,
                options.config(suite.name),
                output,
                overwrite=options.overwrite,
                batch_size=options.batch_size,
                progress=progress,
            )
        if options.output is not None:
            write_results(document, output / RESULTS_NAME)
    best = choose(probes)
    print(
        f"chosen of {len(probes)} heads: {best.name} at learning rate {best.learning_rate:g}, "
        f"{best.held_out_accuracy:.1%} on the held-out training images",
        file=sys.stderr,
    )
    publish(document, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
