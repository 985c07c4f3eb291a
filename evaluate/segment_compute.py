"""Fills a store of a segmentation: decode the next images meanwhile, segment, count the pixels of each class, keep.

clock = fill_masks(store, suite, model.pixels, inference)
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from digpt.segment_inference import PixelModel, SegmentInference, predict
from digpt.segment_metrics import class_parts, confusion
from evaluate.compute import Clock
from evaluate.progress import Progress, no_progress
from evaluate.segment_measure import PARTS
from evaluate.store import Store
from evaluate.suite import Cell, Suite
from evaluate.suite_masks import MaskImages

AHEAD = 8  # images being decoded while one is segmented

Sample = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def fill_masks(
    store: Store,
    suite: Suite,
    model: PixelModel,
    inference: SegmentInference,
    *,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Clock:
    """Compute every shard that is missing; a killed run loses one at most.

    Raises:
        DataError: an image or a mask that cannot be used; it is named.
    """
    cells = {cell.id: cell for cell in suite.cells}
    todo = [(cells[name], shard, store.rows_of(name, shard)) for name, shard in store.missing()]
    clock, total = Clock(), sum(rows.stop - rows.start for _, _, rows in todo)
    progress("images", 0, total)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        samples = _samples(pool, [(cell, row) for cell, _, rows in todo for row in range(rows.start, rows.stop)])
        for cell, shard, rows in todo:
            kept = []
            for _ in range(rows.start, rows.stop):
                started = time.perf_counter()
                image, labels = next(samples).result()
                waited = time.perf_counter()
                kept.append(image_parts(predict(model, image, inference, labels.shape), labels, len(suite.class_names)))
                clock.loader, clock.model = clock.loader + waited - started, clock.model + time.perf_counter() - waited
                clock.images += 1
                progress("images", clock.images, total)
            stored = time.perf_counter()
            store.put(cell.id, shard, {PARTS: np.stack(kept)})
            clock.store += time.perf_counter() - stored
    return clock


def image_parts(prediction: NDArray[np.uint8], labels: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Pixels of each class of one image: right, predicted and labelled, int64 ``[K,3]``."""
    return class_parts(confusion(prediction, labels, classes))


def masks_of(cell: Cell) -> MaskImages:
    """A cell's images with their masks."""
    assert isinstance(cell.source, MaskImages)  # as mask_suite makes them
    return cell.source


def _samples(pool: ThreadPoolExecutor, items: Sequence[tuple[Cell, int]]) -> Iterator[Future[Sample]]:
    """The image and labels of each row of each cell, in order, a few of them under way."""
    pending: deque[Future[Sample]] = deque()
    for cell, row in items:
        pending.append(pool.submit(masks_of(cell).masks.pixels, int(cell.rows[row])))
        if len(pending) > AHEAD:
            yield pending.popleft()
    yield from pending
