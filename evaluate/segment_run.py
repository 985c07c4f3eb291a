"""Runs a segmentation: what the store lacks is segmented, then every number is taken from it.

segmented = run(model, *mask_suite(model, MaskData()), output=Path("runs/scenes"))
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from digpt.results import RESULTS_NAME, ResultsDocument
from digpt.segment_inference import SegmentInference
from evaluate.compute import Clock
from evaluate.mask_data import MaskData
from evaluate.progress import Progress, no_progress
from evaluate.run import PER_CLASS_NAME, publish
from evaluate.segment_compute import fill_masks
from evaluate.segment_model import SegmentModel, load_pixel_model
from evaluate.segment_overlays import OVERLAYS_NAME, draw_overlays
from evaluate.store import STORE_NAME, Store
from evaluate.suite import Suite
from evaluate.suite_masks import Views, mask_suite

if TYPE_CHECKING:
    from evaluate.segmentation import SegmentationOptions


@dataclass(frozen=True)
class Segmented:
    """A finished evaluation; ``kept`` shards were there already."""

    store: Store
    document: ResultsDocument
    clock: Clock
    kept: int
    notes: tuple[str, ...]


def segment(options: SegmentationOptions, data: MaskData, progress: Progress = no_progress) -> Segmented:
    """Load the model, run it, and draw the overlays that were asked for; errors as `run` and `mask_suite`."""
    progress("model", 0, 0)
    with closing(load_pixel_model(options.common())) as model:
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
            folder = options.output / OVERLAYS_NAME
            count, seed = options.overlays, options.seed
            draw_overlays(suite, model.pixels, inference, count=count, seed=seed, folder=folder, progress=progress)
    return found


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
    return Segmented(store, publish(store, output, progress), clock, kept, suite.notes)
