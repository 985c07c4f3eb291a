"""The numbers of a segmentation, from the store alone: mIoU, mAcc, aAcc with intervals, and the IoU of each class.

    results = list(mask_results(store, view, Resamples(2_000)))

The store keeps of every image the pixels of each class that were right, predicted and labelled (`class_parts`).
Shapes: N images, K classes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from digpt.errors import DataError
from digpt.resampling import Resamples
from digpt.results import Result
from digpt.segment_metrics import Scores, scores_resampled
from evaluate.store import Store
from evaluate.suite import MaskView

PARTS = "parts"  # the store's array
METRICS = ("miou", "macc", "aacc")


def parts_of(store: Store, view: MaskView) -> NDArray[np.int64]:
    """`class_parts` of every image of a view, int64 ``[N,K,3]``; errors as `Store.array`."""
    return np.asarray(store.array(view.cell, PARTS), np.int64)


def scores_of(store: Store, view: MaskView) -> Scores:
    """The figures of a view's whole set.

    Raises:
        DataError: no pixel of it is labelled, or as `Store.array`.
    """
    scores = Scores.of_parts(parts_of(store, view).sum(axis=0))
    if math.isnan(scores.miou):
        raise DataError(f"No pixel of {view.id} has a class, so there is nothing to measure; give images with labels.")
    return scores


def mask_results(store: Store, view: MaskView, resamples: Resamples) -> Iterator[Result]:
    """mIoU, mAcc and aAcc of a view; errors as `scores_of`."""
    scores, parts = scores_of(store, view), parts_of(store, view)
    for metric, samples in scores_resampled(parts, resamples).items():
        # A resample of unlabelled images alone has no figure.
        interval = resamples.interval(samples[~np.isnan(samples)])
        yield Result(view.dataset, view.split, metric, getattr(scores, metric), interval, len(parts))


def class_ious(store: Store) -> str:
    """CSV of ``dataset, split, class, name, iou, accuracy, labelled``: every class of every view; pixels labelled.

    ``iou`` is empty for a class that is neither labelled nor predicted, ``accuracy`` for one that is not labelled.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["dataset", "split", "class", "name", "iou", "accuracy", "labelled"])
    for view in mask_views(store):
        scores, labelled = scores_of(store, view), parts_of(store, view)[:, :, 2].sum(axis=0)
        for label, name in enumerate(store.header["class_names"]):
            shares = ["" if math.isnan(x) else f"{x:.6f}" for x in (scores.iou[label], scores.accuracy[label])]
            writer.writerow([view.dataset, view.split, label, name, *shares, labelled[label]])
    return buffer.getvalue()


def extremes(store: Store, view: MaskView, count: int = 5) -> str:
    """``ade20k val: best sky 94.2, ...; worst clock 0.0, ...``: the classes by IoU in %, those that have one."""
    iou = scores_of(store, view).iou
    order = np.argsort(-iou, kind="stable")[: np.count_nonzero(~np.isnan(iou))]
    count = min(count, -(-len(order) // 2))

    def shown(labels: NDArray[np.intp]) -> str:
        return ", ".join(f"{store.header['class_names'][label]} {100 * iou[label]:.1f}" for label in labels)

    worst = shown(order[count:][-count:][::-1])
    return f"{view.dataset} {view.split}: best {shown(order[:count])}" + (f"; worst {worst}" if worst else "")


def mask_views(store: Store) -> list[MaskView]:
    """The views of a store that ask for masks."""
    return [view for view in store.views if isinstance(view, MaskView)]
