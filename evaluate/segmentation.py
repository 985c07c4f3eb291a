"""mIoU, mAcc and aAcc of a segmentation on ADE20K, on your own images and masks, or on the miniature's scenes.

    python -m evaluate.segmentation runs/segment/ckpt.pt --data-root data --output runs/ade20k
    python -m evaluate.segmentation runs/segment/ckpt.pt --data masks:my-pictures --overlays 8 --output runs/mine
    python -m evaluate.segmentation runs/segment/ckpt.pt

ADE20K's protocol: images are fitted into (2048, 512) pixels, windows of 512 slide over them every 341, and logits are
resized to the label's size before the best class is taken; labels are never resized. A model trained on other crops
gets the same in proportion. What has been segmented is kept in --output, where the same command continues.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from digpt.errors import ConfigError
from digpt.results import RESULTS_NAME, ResultsDocument
from digpt.segment_inference import SegmentInference
from evaluate.cli import EvaluateOptions, check, guarded, parse, publish, single_process
from evaluate.compute import Clock
from evaluate.progress import Progress, bars, no_progress
from evaluate.run import PER_CLASS_NAME
from evaluate.run import publish as compute
from evaluate.segment_compute import fill_masks
from evaluate.segment_measure import extremes, mask_views
from evaluate.segment_model import SegmentModel, load_pixel_model
from evaluate.segment_overlays import OVERLAYS_NAME, draw_overlays
from evaluate.store import STORE_NAME, Store
from evaluate.suite import Subset, Suite
from evaluate.suite_masks import MaskData, Views, data_spec, mask_suite


@dataclass(frozen=True)
class SegmentationOptions:
    """Options of the evaluation of segmentation."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]
    """Checkpoint with a segmentation head, such as runs/segment/ckpt.pt."""
    output: Path | None = None
    """Directory for results.json, per_class.csv and the store, where the same command continues (default: keep
    nothing)."""
    data_root: Path | None = None
    """Directory that ADE20K lies in, as ADEChallengeData2016 or ade20k (default: the miniature's scenes)."""
    data: str | None = None
    """ade20k:DIR, or your own images and masks, masks:DIR."""
    split: str | None = None
    """Of the data (default: val; of the scenes val, flat and contrast)."""
    inference: Literal["slide", "whole"] | None = None
    """Windows of the crop's size, or the image at once (default: slide; the scenes have the crop's size and are taken
    whole)."""
    multi_scale: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Average probabilities over images scaled by 0.5, 0.75, 1, 1.25, 1.5 and 1.75."""
    flip: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Average probabilities over images and their mirror images."""
    limit: int | None = None
    """Images per split, a seeded subset (default: all)."""
    overlays: int = 0
    """Pictures of each split to draw into OUTPUT/overlays: the image, its label, the prediction."""
    backend: str | None = None
    """Runtime (default: torch)."""
    device: str = "auto"
    """Of the torch backend: auto (a GPU where there is one), cpu, cuda, cuda:1."""
    threads: int | None = None
    """CPU threads (default: the backend's choice)."""
    seed: int = 0
    """Of the subset, the overlays and the bootstrap."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Begin again where --output holds another evaluation."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the results document on standard output, and nothing else there."""

    def common(self) -> EvaluateOptions:
        """What is checked and published as in every evaluation."""
        names = ("spec", "output", "limit", "backend", "device", "threads", "seed", "overwrite", "json")
        return EvaluateOptions(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Segmented:
    """A finished evaluation; ``kept`` shards were there already."""

    store: Store
    document: ResultsDocument
    clock: Clock
    kept: int


def run(
    model: SegmentModel,
    suite: Suite,
    inference: SegmentInference,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Segmented:
    """Segment what the store lacks, then take every number from it; with ``output`` all of it is kept there.

    Raises:
        ConfigError: ``output`` holds another evaluation.
        DataError: an image or mask that cannot be used, nothing labelled, or a damaged store.
    """
    if output is not None and overwrite:  # the numbers of what is thrown away must not stand beside the new store
        for name in (RESULTS_NAME, PER_CLASS_NAME):
            (output / name).unlink(missing_ok=True)
    asked = {"ref": asdict(model.ref), "zero_shot": None}
    store = Store.create(None if output is None else output / STORE_NAME, suite, asked, overwrite=overwrite)
    kept = sum(len(store.shards(cell)) for cell in store.cells) - len(store.missing())
    clock = fill_masks(store, suite, model.pixels, inference, threads=threads, progress=progress)
    return Segmented(store, compute(store, output, progress), clock, kept)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and print; return the exit code."""
    options = parse(SegmentationOptions, argv, "evaluate.segmentation", "mIoU of a segmentation.")
    return guarded(lambda: _segmentation(options))


def _segmentation(options: SegmentationOptions) -> int:
    common = options.common()
    _check(options)
    check(common)
    single_process(common, "A segmentation")
    data = MaskData(data_spec(options.data, options.data_root), options.split, Subset(options.limit, seed=options.seed))
    with redirect_stdout(sys.stderr), bars() as progress:
        progress("model", 0, 0)
        with closing(load_pixel_model(common)) as model:
            views = Views(options.inference, options.multi_scale, options.flip)
            suite, inference = mask_suite(model, data, views)
            found = run(
                model,
                suite,
                inference,
                output=options.output,
                overwrite=options.overwrite,
                threads=options.threads,
                progress=progress,
            )
            if options.output is not None and options.overlays:
                draw_overlays(
                    suite,
                    model.pixels,
                    inference,
                    count=options.overlays,
                    seed=options.seed,
                    folder=options.output / OVERLAYS_NAME,
                    progress=progress,
                )
    for line in (*suite.notes, f"{found.kept} shards were there already" * bool(found.kept), found.clock.line()):
        if line:
            print(line, file=sys.stderr)
    publish(found.document, common)
    if not options.json:
        for view in mask_views(found.store):
            print(extremes(found.store, view))
    return 0


def _check(options: SegmentationOptions) -> None:
    if options.data is not None and options.data_root is not None:
        raise ConfigError("--data and --data-root exclude each other: name the data, or where ADE20K lies.")
    if options.overlays < 0:
        raise ConfigError(f"--overlays {options.overlays} must be at least 0.")
    if options.overlays and options.output is None:
        raise ConfigError("--overlays are written to a directory: give --output DIR.")


if __name__ == "__main__":
    sys.exit(main())
