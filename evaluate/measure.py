"""Every number of an evaluation, computed from the store of answers: no model and no data are needed.

    document = document_of(Store.open(Path("runs/robustness")))

Classification gives top-1, top-5 and calibration; the cells of a sweep give errors by corruption and severity.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digpt import calibration, robustness_metrics
from digpt.corruptions import CORRUPTIONS, SEVERITIES
from digpt.files import atomic_write
from digpt.metrics import multilabel_correct, target_ranks
from digpt.neighbors import knn_classify_many
from digpt.resampling import Resamples
from digpt.results import ModelRef, Result, ResultsDocument, with_fingerprint
from evaluate.progress import Progress, no_progress
from evaluate.segment_measure import class_ious, mask_results, mask_views
from evaluate.store import Store
from evaluate.suite import KnnView, MaskView, ProbeView, View

BINS = 15
ALEXNETS = "imagenet-c"  # the one set that AlexNet's constants were measured on
_KEPT = 3  # bootstraps held at a time; one of 50,000 images takes about 100 MB


@dataclass(frozen=True)
class Answered:
    """What a view's images came to, ``[n]`` each: the rank of the label, and with one label the calibration terms.

    ``rank`` is 0 for a hit; with several right labels it is 0 or 1.
    """

    rank: NDArray[np.int64]
    confidence: NDArray[np.float64]
    nll: NDArray[np.float64] | None
    brier: NDArray[np.float64] | None

    @property
    def correct(self) -> NDArray[np.bool_]:
        return self.rank == 0


class Bootstraps:
    """The resamples that views with equal images share, so that their numbers are resampled together."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._held: dict[object, Resamples] = {}

    def of(self, n: int, groups: NDArray[np.int64] | None) -> Resamples:
        key: object = n if groups is None else groups.tobytes()
        if key not in self._held:
            while len(self._held) >= _KEPT:
                del self._held[next(iter(self._held))]
            self._held[key] = Resamples(n if groups is None else groups, seed=self.seed)
        return self._held[key]


def document_of(store: Store, *, progress: Progress = no_progress) -> ResultsDocument:
    """All numbers of a finished store.

    Raises:
        DataError: shards are missing or damaged.
    """
    header = store.header
    results = tuple(results_of(store, progress))
    model = {**header["model"], "templates": tuple(header["model"]["templates"])}
    return ResultsDocument(model=ModelRef(**model), protocol=with_fingerprint(header["protocol"]), results=results)


def results_of(store: Store, progress: Progress = no_progress) -> Iterator[Result]:
    """Yield the numbers of every view, and of each sweep after its last cell."""
    bootstraps = Bootstraps(int(store.header["protocol"].get("seed") or 0))
    sweeps: dict[str, list[tuple[View, NDArray[np.bool_]]]] = {}
    clean: dict[str, dict[str, bool]] = {}
    for number, view in enumerate(store.views):
        progress("numbers", number, len(store.views))
        if isinstance(view, KnnView):
            yield from _neighbours(store, view, bootstraps)
            continue
        if isinstance(view, MaskView):
            yield from mask_results(store, view, bootstraps.of(store.cells[view.cell]["images"], None))
            continue
        answered = answers_of(store, view)
        if view.corruption is None:
            yield from _classification(view, answered, bootstraps)
            keys = store.keys(view.cell)
            if any(isinstance(v, View) and v.clean == view.id for v in store.views):
                clean[view.id] = {keys[row]: bool(hit) for row, hit in zip(view.rows, answered.correct, strict=True)}
        else:
            yield from _cell(view, answered, bootstraps)
            sweeps.setdefault(view.dataset, []).append((view, answered.correct))
    for dataset, cells in sweeps.items():
        yield from _sweep(store, dataset, cells, clean.get(cells[0][0].clean, {}), bootstraps)
    progress("numbers", len(store.views), len(store.views))


def answers_of(store: Store, view: View) -> Answered:
    """Score a view's images: ranks, confidence of the first choice, and the calibration terms."""
    scores = store.scores(view)
    if view.answers is not None:
        return Answered(_ranks(scores, view), calibration.top1_confidence(scores)[1], None, None)
    terms = calibration.terms(scores, _labels(view))
    return Answered(_ranks(scores, view), terms.confidence, terms.nll, terms.brier)


def _ranks(scores: NDArray[np.float32], view: View) -> NDArray[np.int64]:
    """How many classes stand before the right one ``[n]``; with several right ones whether none is first."""
    if view.answers is not None:
        return (~multilabel_correct(scores, view.answers)).astype(np.int64)
    return target_ranks(scores, _labels(view))


def _labels(view: View) -> NDArray[np.int64]:
    """The labels as columns of the view's scores."""
    return view.labels if view.classes is None else np.searchsorted(view.classes, view.labels).astype(np.int64)


def _classification(view: View, answered: Answered, bootstraps: Bootstraps) -> Iterator[Result]:
    resamples = bootstraps.of(len(view.rows), view.groups)
    if isinstance(view, ProbeView):
        tops = {f"probe_top{top}": (answered.rank < top).astype(float) for top in (1, 5)}
        yield from _means(view, tops, resamples)
        return
    columns = {"top1": answered.correct.astype(float)}
    if view.answers is None:
        columns["top5"] = (answered.rank < 5).astype(float)
    yield from _means(view, columns, resamples)
    yield from _calibration(view, answered, resamples)


def _cell(view: View, answered: Answered, bootstraps: Bootstraps) -> Iterator[Result]:
    resamples = bootstraps.of(len(view.rows), view.groups)
    yield from _means(view, {"error": (~answered.correct).astype(float)}, resamples)
    yield from _calibration(view, answered, resamples)


def _calibration(view: View, answered: Answered, resamples: Resamples) -> Iterator[Result]:
    correct = answered.correct
    value = calibration.ece(answered.confidence, correct, bins=BINS)
    interval = resamples.interval(calibration.ece_resampled(answered.confidence, correct, resamples, bins=BINS))
    yield Result(view.dataset, view.split, "ece", float(value), interval, len(view.rows))
    if answered.nll is not None and answered.brier is not None:
        yield from _means(view, {"nll": answered.nll, "brier": answered.brier}, resamples)


def _means(view: View, columns: dict[str, NDArray[np.float64]], resamples: Resamples) -> Iterator[Result]:
    samples = resamples.means(np.stack(list(columns.values()), axis=1))
    for (metric, values), drawn in zip(columns.items(), samples.T, strict=True):
        yield Result(view.dataset, view.split, metric, float(values.mean()), resamples.interval(drawn), len(values))


def neighbours_of(store: Store, view: KnnView) -> dict[int, NDArray[np.int64]]:
    """The neighbours' answers to a view, ``[n]`` labels for every k."""
    return knn_classify_many(
        store.array(view.reference, "embeddings")[view.reference_rows],
        view.reference_labels,
        store.array(view.cell, "embeddings")[view.rows],
        ks=view.ks,
        temperature=view.temperature,
        n_classes=view.n_classes,
    )


def _neighbours(store: Store, view: KnnView, bootstraps: Bootstraps) -> Iterator[Result]:
    predictions = neighbours_of(store, view)
    resamples = bootstraps.of(len(view.rows), view.groups)
    for k in view.ks:
        correct = (predictions[k] == view.labels).astype(float)
        interval = resamples.interval(resamples.means(correct))
        yield Result(view.dataset, view.split, f"knn_top1_k{k}", float(correct.mean()), interval, len(correct))


def _sweep(
    store: Store,
    dataset: str,
    cells: Sequence[tuple[View, NDArray[np.bool_]]],
    clean: dict[str, bool],
    bootstraps: Bootstraps,
) -> Iterator[Result]:
    """Mean error by corruption and over all; for ImageNet-C also CE, mCE and relative mCE.

    A corruption without some severity has no CE, and there is no mCE of fewer than 15 corruptions at 5 severities.
    The images are the same in every cell, so that one bootstrap over images serves the whole sweep. Where they are not
    (an incomplete copy), the values are means of the cells' own and have no interval.
    """
    keys = [store.keys(view.cell) for view, _ in cells]
    same = all(key == keys[0] for key in keys)
    first, n = cells[0][0], sum(len(view.rows) for view, _ in cells)
    resamples = bootstraps.of(len(first.rows), first.groups) if same else None
    errors: dict[robustness_metrics.Cell, NDArray[np.float64]] = {}
    for view, correct in cells:
        assert view.corruption is not None
        wrong = (~correct).astype(float)
        errors[view.corruption] = wrong if same else np.array([wrong.mean()])

    def row(split: str, metric: str, terms: NDArray[np.float64], images: int = n) -> Result:
        interval = None if resamples is None else resamples.interval(resamples.means(terms))
        return Result(dataset, split, metric, float(terms.mean()), interval, images)

    names = list(dict.fromkeys(name for name, _ in errors))
    means = {name: np.mean([e for (of, _), e in errors.items() if of == name], axis=0) for name in names}
    for name, terms in means.items():
        images = sum(len(view.rows) for view, _ in cells if view.corruption and view.corruption[0] == name)
        yield row(name, "error", terms, images)
        if dataset == ALEXNETS and all((name, severity) in errors for severity in SEVERITIES):
            yield row(name, "ce", terms / robustness_metrics.ALEXNET_ERROR[name], images)
    yield row("mean", "error", np.mean(list(means.values()), axis=0))
    if dataset == ALEXNETS and set(errors) == set(product(CORRUPTIONS, SEVERITIES)):
        yield row("mean", "mce", robustness_metrics.mce(errors))
        if same and clean and all(key in clean for key in keys[0]):
            missed = np.array([not clean[keys[0][position]] for position in first.rows])
            yield row("mean", "relative_mce", robustness_metrics.relative_mce(errors, missed))


def write_per_class(store: Store, path: Path) -> None:
    """Write ``dataset, split, class, name, images, top1`` of every view and class that has images, as CSV.

    Of a segmentation the table of `class_ious`.
    """
    if mask_views(store):
        atomic_write(path, class_ious(store).encode())
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["dataset", "split", "class", "name", "images", "top1"])
    names = store.header["class_names"]
    for view in store.views:
        if not isinstance(view, View) or view.answers is not None:
            continue
        correct = _ranks(store.scores(view), view) == 0
        images = np.bincount(view.labels, minlength=len(names))
        hits = np.bincount(view.labels, correct, minlength=len(names))
        for label in np.flatnonzero(images):
            accuracy = f"{hits[label] / images[label]:.6f}"
            writer.writerow([view.dataset, view.split, label, names[label], images[label], accuracy])
    atomic_write(path, buffer.getvalue().encode(), shared=True)
