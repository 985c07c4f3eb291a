"""The figures of a paired comparison: what two models' answers to the same images come to, view by view.

    rows = list(view_rows(view, answers_of(a, view), answers_of(b, view), Bootstraps(seed=0)))

Every difference is B's figure minus A's. Both models share every resample of the bootstrap, so that an image counts
equally often for both. Which test answers which row is said by `Row.test`; ``docs/evaluation.md`` says why.

Shapes: N images of a view, M images of a sweep, C its cells, K figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt import calibration
from digpt.calibration import Reliability
from digpt.errors import ConfigError
from digpt.robustness_metrics import ALEXNET_CLEAN, ALEXNET_ERROR, CORRUPTIONS, SEVERITIES
from digpt.segment_metrics import scores_resampled
from digpt.significance import difference, holm, mcnemar, paired_permutation
from evaluate.measure import ALEXNETS, BINS, Answered, Bootstraps, neighbours_of
from evaluate.segment_measure import parts_of, scores_of
from evaluate.store import Store
from evaluate.suite import KnnView, MaskView, ProbeView, View

PRIMARY = ("top1", "error", "miou", "probe_top1")  # what the family of tests consists of unless other metrics are named
MCNEMAR, BOOTSTRAP = "McNemar, exact binomial", "paired bootstrap"
LOWER_IS_BETTER = ("error", "ce", "mce", "relative_mce", "ece", "nll", "brier")

Floats = NDArray[np.float64]
Groups = NDArray[np.int64] | None


@dataclass(frozen=True)
class Row:
    """One figure of both models.

    ``a``, ``b``, ``difference`` and ``ci95`` are fractions but for NLL (nats) and Brier (0..2); ``ci95`` is the
    difference's 95 % paired bootstrap interval. ``p`` is two-sided, from ``test``; ``p_holm`` is adjusted for the
    family, which the ``primary`` rows are. ``only_a`` and ``only_b`` count the images that one model alone gets right.
    """

    dataset: str
    split: str
    metric: str
    n: int
    a: float
    b: float
    difference: float
    ci95: tuple[float, float]
    p: float | None = None
    p_holm: float | None = None
    test: str | None = None
    only_a: int | None = None
    only_b: int | None = None
    primary: bool = False

    @property
    def id(self) -> str:
        return f"{self.dataset}/{self.split}"

    @property
    def whole(self) -> bool:
        """Whether this is the test of a whole set: ``unseen/flat`` is a part of one, ``fog/3`` a cell."""
        return self.p is not None and "/" not in self.split

    @property
    def gain(self) -> float:
        """What B is better by, as a fraction: an error that falls is a gain."""
        return -self.difference if self.lower_is_better else self.difference

    @property
    def lowest_gain(self) -> float:
        """The end of the interval that is worst for B."""
        return -self.ci95[1] if self.lower_is_better else self.ci95[0]

    @property
    def lower_is_better(self) -> bool:
        return self.metric in LOWER_IS_BETTER


@dataclass(frozen=True)
class ClassRow:
    """One class of one set: ``a`` and ``b`` images of ``images`` are right, ``only_a`` and ``only_b`` by one model.

    ``p_holm`` is McNemar's exact p adjusted for all classes of the set; None where images of a class belong together,
    so that nothing is claimed about single classes.
    """

    dataset: str
    split: str
    label: int
    name: str
    images: int
    a: int
    b: int
    only_a: int
    only_b: int
    p_holm: float | None

    @property
    def difference(self) -> float:
        return (self.b - self.a) / self.images


@dataclass(frozen=True)
class Comparison:
    """Two models on one protocol. ``a`` and ``b`` are the models as the results document has them.

    ``classes`` are those of every plain set with one label per image, ``reliability`` the diagrams of both models by
    set, ``metrics`` what the family was made of.
    """

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    protocol: Mapping[str, Any]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    classes: tuple[ClassRow, ...]
    reliability: Mapping[str, tuple[Reliability, Reliability]]
    notices: tuple[str, ...]

    @property
    def family(self) -> tuple[Row, ...]:
        """The primary tests, over which p-values are adjusted."""
        return tuple(row for row in self.rows if row.primary)


def view_rows(view: View, a: Answered, b: Answered, bootstraps: Bootstraps) -> Iterator[Row]:
    """Top-1 (of a sweep's cell: the error) with its test, and by intervals alone top-5, NLL, Brier score and ECE.

    Of a linear probe top-1 and top-5 alone.
    """
    columns: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    probe = isinstance(view, ProbeView)
    if view.corruption is None:
        prefix = "probe_" if probe else ""
        columns[f"{prefix}top1"] = a.correct, b.correct
        if view.answers is None:
            columns[f"{prefix}top5"] = a.rank < 5, b.rank < 5
    else:
        columns["error"] = ~a.correct, ~b.correct
    if not probe and a.nll is not None and b.nll is not None and a.brier is not None and b.brier is not None:
        columns |= {"nll": (a.nll, b.nll), "brier": (a.brier, b.brier)}
    tested = _right_or_wrong(a.correct, b.correct, view.groups, bootstraps.seed)
    for metric, row in _means(view, columns, bootstraps):
        yield replace(row, **tested) if metric in PRIMARY else row
    if not probe:
        yield _ece(view, a, b, bootstraps)


def _ece(view: View, a: Answered, b: Answered, bootstraps: Bootstraps) -> Row:
    resamples = bootstraps.of(len(view.rows), view.groups)
    ece = [calibration.ece(one.confidence, one.correct, BINS) for one in (a, b)]
    drawn = [calibration.ece_resampled(one.confidence, one.correct, resamples, BINS) for one in (a, b)]
    found = difference(ece[1] - ece[0], drawn[1] - drawn[0])
    return Row(view.dataset, view.split, "ece", len(view.rows), ece[0], ece[1], found.value, found.ci95)


def _means(
    view: View | KnnView, columns: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], bootstraps: Bootstraps
) -> Iterator[tuple[str, Row]]:
    """Rows of figures that are means over images, all by one pass over the resamples."""
    pairs = {metric: (a.astype(np.float64), b.astype(np.float64)) for metric, (a, b) in columns.items()}
    resamples = bootstraps.of(len(view.rows), view.groups)
    samples = resamples.means(np.stack([b - a for a, b in pairs.values()], axis=1))
    for (metric, (a, b)), drawn in zip(pairs.items(), samples.T, strict=True):
        found = difference(float((b - a).mean()), drawn)
        values = float(a.mean()), float(b.mean()), found.value
        yield metric, Row(view.dataset, view.split, metric, len(a), *values, found.ci95)


def knn_rows(a: Store, b: Store, view: KnnView, bootstraps: Bootstraps) -> Iterator[Row]:
    """kNN accuracy for every k, with its test."""
    right = [{k: found == view.labels for k, found in neighbours_of(store, view).items()} for store in (a, b)]
    columns = {f"knn_top1_k{k}": (right[0][k], right[1][k]) for k in view.ks}
    for metric, row in _means(view, columns, bootstraps):
        yield replace(row, **_right_or_wrong(*columns[metric], view.groups, bootstraps.seed))


def mask_rows(a: Store, b: Store, view: MaskView, bootstraps: Bootstraps) -> Iterator[Row]:
    """mIoU with a p-value of the paired bootstrap, and by intervals alone mAcc and aAcc.

    Raises:
        ConfigError: the labels are not the same in both.
    """
    parts = parts_of(a, view), parts_of(b, view)
    if not np.array_equal(parts[0][:, :, 2], parts[1][:, :, 2]):
        raise ConfigError(f"{view.id} has other labels in A than in B: evaluate both again.")
    scores = scores_of(a, view), scores_of(b, view)
    resamples = bootstraps.of(len(parts[0]), None)
    drawn = [scores_resampled(each, resamples) for each in parts]
    for metric in drawn[0]:
        samples = drawn[1][metric] - drawn[0][metric]
        one, two = (float(getattr(score, metric)) for score in scores)
        found = difference(two - one, samples[~np.isnan(samples)])
        row = Row(view.dataset, view.split, metric, len(parts[0]), one, two, found.value, found.ci95)
        yield replace(row, p=found.p_value, test=BOOTSTRAP) if metric in PRIMARY else row


def _clustered(groups: Groups) -> bool:
    """Whether any two images belong together; groups of one image each are independent images."""
    return groups is not None and len(np.unique(groups)) < len(groups)


def _right_or_wrong(a: NDArray[np.bool_], b: NDArray[np.bool_], groups: Groups, seed: int) -> dict[str, Any]:
    """The test of two models' answers: exact McNemar, or for images that belong together a permutation of groups."""
    table = mcnemar(a, b)
    counts = {"only_a": table.b, "only_b": table.c}
    if not _clustered(groups):
        return {"p": table.p_value, "test": MCNEMAR, **counts}
    return {**_permutation(b.astype(np.float64) - a, groups, seed), **counts}


def _permutation(diff: Floats, groups: Groups, seed: int) -> dict[str, Any]:
    clustered = _clustered(groups)
    found = paired_permutation(diff, groups if clustered else None, seed=seed)
    return {"p": found.p_value, "test": f"permutation over {'groups' if clustered else 'images'}, {found.method}"}


# ------------------------------------------------------------------------------------------------- sweeps and classes


@dataclass(frozen=True)
class Errors:
    """Which images ``[N]`` of a view each model gets wrong, and what the images are called."""

    view: View
    keys: tuple[str, ...]
    a: NDArray[np.bool_]
    b: NDArray[np.bool_]


def sweep_rows(dataset: str, cells: Sequence[Errors], clean: Errors | None, bootstraps: Bootstraps) -> Iterator[Row]:
    """Mean errors by corruption and over all; for ImageNet-C also CE, mCE and relative mCE.

    Each figure is a weighted sum of the cells' errors, hence a mean over images of what an image contributes to it,
    wherever it occurs. One bootstrap over images therefore resamples all cells together, also in an incomplete copy
    whose cells hold different images.
    """
    position = {key: at for at, key in enumerate(dict.fromkeys(key for cell in cells for key in cell.keys))}
    columns = list(cells)
    if clean is not None and position.keys() <= set(clean.keys):
        kept = np.array([key in position for key in clean.keys])
        named = tuple(key for key in clean.keys if key in position)
        columns.append(Errors(clean.view, named, clean.a[kept], clean.b[kept]))
    share_a, share_b = np.zeros((2, len(position), len(columns)))
    groups = None if cells[0].view.groups is None else np.zeros(len(position), np.int64)
    for column, cell in enumerate(columns):
        at = np.array([position[key] for key in cell.keys])
        scale = len(position) / len(at)  # so that the mean over all images is the cell's own
        for share, wrong in ((share_a, cell.a), (share_b, cell.b)):
            share[:, column] = scale * np.bincount(at, wrong, minlength=len(position))
        if groups is not None and cell.view.groups is not None and column < len(cells):
            groups[at] = cell.view.groups
    figures = _figures(dataset, [cell.view.corruption or ("", 0) for cell in cells], len(columns) > len(cells))
    weights = np.stack(list(figures.values()), axis=1)
    diff = (share_b - share_a) @ weights
    samples = bootstraps.of(len(position), groups).means(diff)
    value_a, value_b, value = (
        (share.mean(axis=0) @ weights).tolist() for share in (share_a, share_b, share_b - share_a)
    )
    for number, (split, metric) in enumerate(figures):
        used = weights[: len(cells), number] != 0
        n = sum(len(cell.keys) for cell, counts in zip(cells, used, strict=True) if counts)
        found = difference(value[number], samples[:, number])
        row = Row(dataset, split, metric, n, value_a[number], value_b[number], found.value, found.ci95)
        tested = (split, metric) == ("mean", "error")
        yield replace(row, **_permutation(diff[:, number], groups, bootstraps.seed)) if tested else row


def _figures(dataset: str, cells: Sequence[tuple[str, int]], clean: bool) -> dict[tuple[str, str], Floats]:
    """The weights ``[C]`` of the cells in each figure, by split and metric; with ``clean``, a last one of that set."""
    names = list(dict.fromkeys(name for name, _ in cells))
    means: dict[str, Floats] = {}
    for name in names:
        own = np.array([float(of == name) for of, _ in cells] + [0.0] * clean)
        means[name] = own / own.sum()
    figures = {(name, "error"): weights for name, weights in means.items()}
    figures["mean", "error"] = np.mean(list(means.values()), axis=0)
    if dataset == ALEXNETS and set(cells) == set(product(CORRUPTIONS, SEVERITIES)):
        figures |= {(name, "ce"): means[name] / ALEXNET_ERROR[name] for name in names}
        figures["mean", "mce"] = np.mean([means[name] / ALEXNET_ERROR[name] for name in names], axis=0)
        if clean:
            of_clean = np.array([0.0] * len(cells) + [1.0])
            losses = [(means[name] - of_clean) / (ALEXNET_ERROR[name] - ALEXNET_CLEAN) for name in names]
            figures["mean", "relative_mce"] = np.mean(losses, axis=0)
    return figures


def diagram(answered: Answered) -> Reliability:
    """What a reliability diagram of one model on one view shows."""
    return calibration.reliability(answered.confidence, answered.correct, BINS)


def class_rows(view: View, a: NDArray[np.bool_], b: NDArray[np.bool_], names: Sequence[str]) -> Iterator[ClassRow]:
    """The classes that have images, in order; ``a`` and ``b`` say which images ``[N]`` each model gets right."""
    images, right_a, right_b, only_a, only_b = (
        np.bincount(view.labels[chosen], minlength=len(names))
        for chosen in (np.ones(len(a), np.bool_), a, b, a & ~b, b & ~a)
    )
    present = np.flatnonzero(images)
    adjusted: Sequence[float | None] = [None] * len(present)
    if not _clustered(view.groups):
        counts = [(int(only_a[label]), int(only_b[label])) for label in present]
        known = {(x, y): mcnemar([1] * x + [0] * (y + 1), [0] * x + [1] * y + [0]).p_value for x, y in set(counts)}
        adjusted = [float(p) for p in holm([known[pair] for pair in counts])]
    for label, p in zip(present.tolist(), adjusted, strict=True):
        n, right, lone = int(images[label]), (int(right_a[label]), int(right_b[label])), (only_a[label], only_b[label])
        yield ClassRow(view.dataset, view.split, label, names[label], n, *right, int(lone[0]), int(lone[1]), p)
