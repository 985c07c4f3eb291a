"""A linear classifier on frozen features, DINOv2's grid: 13 learning rates, last 1 or 4 blocks, class token or + mean.

    python -m evaluate.linear_probe runs/pretrain/ckpt.pt --output runs/probe
    python -m evaluate.linear_probe timm:vit_base_patch14_dinov2.lvd142m --data-root data --output runs/probe

Features are extracted once, every head of the grid is trained on them at the same time, and the one to report is chosen
on a part of the training images held out for that. ``digpt.probe`` names the source and the deviations. The output
holds the chosen head (``probe.npz``), the whole grid (``grid.json``) and the store of the head's answers, which
``evaluate.recompute`` and ``evaluate.compare`` read; a killed run continues.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from digpt.data.imagenet import wnids
from digpt.files import atomic_json
from digpt.probe import LEARNING_RATES, ProbeConfig, TrainedProbe, choose, train_probes
from digpt.results import RESULTS_NAME, ModelRef, ResultsDocument
from evaluate.classify import without_classes
from evaluate.cli import EvaluateOptions, check, command, load_engine, publish, single_process
from evaluate.compute import BatchSize, fill
from evaluate.features import Features, FeatureStore, features_of
from evaluate.progress import Progress, bars
from evaluate.run import PER_CLASS_NAME
from evaluate.run import publish as write_numbers
from evaluate.select import Asked, select_suite
from evaluate.store import STORE_NAME, Store
from evaluate.suite import KnnView, ProbeView, Suite
from evaluate.suite_emoji import Neighbours
from evaluate.suite_imagenet import KNN_SETS

GRID_NAME, PROBE_NAME, STATE_NAME, FEATURES_NAME = "grid.json", "probe.npz", "probe_state.npz", "features"
# Iterations and batch: DINOv2's for ImageNet (ten epochs); smaller sets have fewer images to go through.
IMAGENET_BUDGET, OTHER_BUDGET = (12_500, 1024), (1000, 256)


COMMAND = command("linear_probe", __doc__)


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
    """Of features.npy: ImageNet's training images take 20 GB for a ViT-B in float32, half in float16."""

    def config(self, *, imagenet: bool) -> ProbeConfig:
        """The protocol on ImageNet's thousand classes, or on other data."""
        iterations, batch = IMAGENET_BUDGET if imagenet else OTHER_BUDGET
        return ProbeConfig(
            learning_rates=self.learning_rates,
            iterations=self.iterations or iterations,
            batch_size=self.probe_batch or batch,
            held_out=self.held_out,
            seed=self.seed,
        )


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
    asked = replace(without_classes(suite), protocol=protocol)
    model = {"ref": asdict(ModelRef.of(features.engine.info, "linear probe")), "zero_shot": None}
    answered = Store.create(output / STORE_NAME, answers(suite, protocol), model, overwrite=overwrite)
    store = FeatureStore.create(output / FEATURES_NAME, asked, features.model(), overwrite=overwrite)
    if overwrite:
        for name in (STATE_NAME, GRID_NAME, PROBE_NAME, RESULTS_NAME, PER_CLASS_NAME, f"{FEATURES_NAME}.npy"):
            (output / name).unlink(missing_ok=True)
    fill(store, asked, features, batch=BatchSize(batch_size), progress=progress)
    train = next(view for view in asked.views if isinstance(view, KnnView))
    sets, stored = features.sets(), store.array(train.reference, "features")
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
    chosen.save(output / PROBE_NAME)
    atomic_json(output / GRID_NAME, grid_of(probes, chosen))
    for cell in answered.cells:
        logits = chosen.logits(store.array(cell, "features")[:, sets[chosen.name]])
        for shard in answered.shards(cell):
            answered.put(cell, shard, {"logits": logits[answered.rows_of(cell, shard)]})
    return write_numbers(answered, output, progress), probes


def answers(suite: Suite, protocol: Mapping[str, Any]) -> Suite:
    """What is asked of the trained head: to find the labels of the images whose neighbours ``suite`` asks for."""
    views = tuple(
        ProbeView(view.dataset, view.split, view.cell, view.rows, view.labels, groups=view.groups)
        for view in suite.views
        if isinstance(view, KnnView)
    )
    asked = {view.cell for view in views}
    cells = tuple(replace(cell, logits=True, embeddings=False) for cell in suite.cells if cell.id in asked)
    names = suite.neighbour_names or suite.class_names
    return replace(suite, cells=cells, views=views, class_names=names, protocol=protocol)


def grid_of(probes: Sequence[TrainedProbe], chosen: TrainedProbe) -> dict[str, Any]:
    """The grid as JSON values: held-out accuracy by feature set and learning rate."""
    rows = [
        {"features": p.name, "learning_rate": p.learning_rate, "held_out_top1": p.held_out_accuracy} for p in probes
    ]
    return {"chosen": {"features": chosen.name, "learning_rate": chosen.learning_rate}, "grid": rows}


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
    return COMMAND.run(ProbeOptions, argv, _probe)


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
                options.config(imagenet=suite.class_ids == wnids()),
                output,
                overwrite=options.overwrite,
                batch_size=options.batch_size,
                progress=progress,
            )
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
