"""The figures of a paired comparison against what is counted by hand: tests, intervals, sweeps, classes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from digpt import calibration, robustness_metrics
from digpt.resampling import Resamples
from evaluate.compare import compare, main, open_pair
from evaluate.paired import Comparison, Row
from evaluate.suite import KnnView, Suite
from evaluate.testing import (
    CLASSES,
    WRONG_A,
    WRONG_B,
    N,
    Stores,
    all_answers,
    answers,
    cell,
    labels_of,
    logits_of,
    one_set,
    several_sets,
    suite_of,
    view,
)


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(tmp_path)


def rows_of(comparison: Comparison) -> dict[tuple[str, str], Row]:
    return {(row.id, row.metric): row for row in comparison.rows}


def compared(a: Path, b: Path, *metrics: str) -> Comparison:
    return compare(*open_pair(a, b), metrics=metrics)


def flips(sums: Sequence[float]) -> float:
    """The exact two-sided p of all assignments of signs."""
    sums = [value for value in sums if value]
    signs = itertools.product((1, -1), repeat=len(sums))
    extreme = [abs(np.dot(sign, sums)) >= abs(sum(sums)) - 1e-12 for sign in signs]
    return sum(extreme) / len(extreme)


# ------------------------------------------------------------------------------------------------------------ the rows


def test_mcnemar_counts_the_images_that_one_model_alone_gets_right(stores: Stores) -> None:
    row = rows_of(compared(*stores.pair()))["toy/val", "top1"]
    assert (row.only_a, row.only_b, row.n) == (9, 2, N)
    by_hand = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert row.p == pytest.approx(by_hand) == pytest.approx(binomtest(9, 11).pvalue)
    assert row.test == "McNemar, exact binomial" and row.primary and row.p_holm == row.p
    assert (row.a, row.b, row.difference) == pytest.approx((56 / 60, 49 / 60, -7 / 60))


def test_both_models_share_the_resamples(stores: Stores) -> None:
    """Both err on the same twenty images and B on one more: only that one moves the difference."""
    wrong_a, wrong_b = range(20), range(21)
    suite = one_set()
    a = stores.write("a", suite, {"toy/val": answers(wrong_a)})
    row = rows_of(compared(a, stores.write("b", suite, {"toy/val": answers(wrong_b)})))["toy/val", "top1"]
    resamples = Resamples(N, seed=3)
    diff = answers(wrong_b).astype(float) - answers(wrong_a)
    assert row.ci95 == pytest.approx(resamples.interval(resamples.means(diff)))
    apart = Resamples(N, seed=4).means(answers(wrong_b)) - resamples.means(answers(wrong_a))
    low, high = resamples.interval(apart)
    assert 0 < row.ci95[1] - row.ci95[0] < 0.25 * (high - low)


def test_calibration_differs_without_a_test(stores: Stores) -> None:
    rows = rows_of(compared(*stores.pair()))
    confidence = math.exp(3) / (math.exp(3) + 5)
    a, b = abs(56 / 60 - confidence), abs(49 / 60 - confidence)
    ece, nll = rows["toy/val", "ece"], rows["toy/val", "nll"]
    assert (ece.a, ece.b, ece.difference) == pytest.approx((a, b, b - a), abs=1e-7)
    right, resamples = (answers(WRONG_A), answers(WRONG_B)), Resamples(N, seed=3)
    drawn = [calibration.ece_resampled(np.full(N, confidence), one, resamples) for one in right]
    assert ece.ci95 == pytest.approx(resamples.interval(drawn[1] - drawn[0]), abs=1e-6)
    assert nll.difference == pytest.approx(7 / 60 * 3, rel=1e-6)  # a wrong answer costs the logit's 3 nats
    assert nll.gain < 0 and rows["toy/val", "brier"].difference > 0
    low, high = rows["toy/val", "brier"].ci95
    assert 0 < low < rows["toy/val", "brier"].difference < high
    assert {rows["toy/val", metric].p for metric in ("ece", "nll", "brier", "top5")} == {None}


def test_images_that_belong_together_change_sides_together(stores: Stores) -> None:
    groups = np.arange(N) // 3
    suite = one_set(groups=groups)
    a = stores.write("a", suite, {"toy/val": answers(WRONG_A)})
    b = stores.write("b", suite, {"toy/val": answers(WRONG_B)})
    row = rows_of(compared(a, b))["toy/val", "top1"]
    diff = answers(WRONG_B).astype(float) - answers(WRONG_A)
    sums = np.bincount(groups, diff).tolist()
    assert sums[:4] == [-3, -3, -3, 2]
    assert row.p == pytest.approx(flips(sums)) == pytest.approx(4 / 16)
    assert row.test == "permutation over groups, exact sign flips"
    assert (row.only_a, row.only_b) == (9, 2)
    resamples = Resamples(groups, seed=3)
    assert row.ci95 == pytest.approx(resamples.interval(resamples.means(diff)))


def test_groups_of_one_image_are_independent_images(stores: Stores) -> None:
    suite = suite_of([cell("toy/val")], [view("toy/val", groups=np.arange(N)[::-1].copy())])
    a = stores.write("a", suite, {"toy/val": answers(WRONG_A)})
    b = stores.write("b", suite, {"toy/val": answers(WRONG_B)})
    row = rows_of(compared(a, b))["toy/val", "top1"]
    assert row.test == "McNemar, exact binomial" and row.p == pytest.approx(binomtest(9, 11).pvalue)


def test_several_right_labels(stores: Stores) -> None:
    """Where the answer of B counts as right too, nothing differs."""
    both = tuple((label, (label + 1) % CLASSES) for label in labels_of(N).tolist())
    suite = one_set(answers=both)
    a = stores.write("a", suite, {"toy/val": answers(WRONG_A)})
    b = stores.write("b", suite, {"toy/val": answers(WRONG_B)})
    comparison = compared(a, b)
    row = rows_of(comparison)["toy/val", "top1"]
    assert (row.a, row.b, row.p) == (1, 1, 1)
    assert comparison.classes == () and ("toy/val", "nll") not in rows_of(comparison)


# ---------------------------------------------------------------------------------------------------------- the family


def test_the_family_has_one_test_per_set_and_holm_adjusts_it(stores: Stores) -> None:
    suite = several_sets()
    a = stores.write("a", suite, all_answers({"other/test": range(9)}))
    dropped = {"toy/val": range(12), "toy/flat": range(10, 15), "toy-c/fog/1": (0, 1), "toy-c/snow/3": (0,)}
    b = stores.write("b", suite, all_answers(dropped))
    comparison = compared(a, b)
    assert [(row.id, row.metric) for row in comparison.family] == [
        ("toy/val", "top1"),
        ("toy/flat", "top1"),
        ("other/test", "top1"),
        ("toy-c/mean", "error"),
    ]
    raw = [2 / 2**12, 2 / 2**5, 2 / 2**9, 2 / 2**2]
    assert [row.p for row in comparison.family] == pytest.approx(raw)
    assert [row.p_holm for row in comparison.family] == pytest.approx([4 * raw[0], 2 * raw[1], 3 * raw[2], raw[3]])
    part = rows_of(comparison)["toy/flat/part", "top1"]
    assert part.p == pytest.approx(2 / 2**3) and part.p_holm is None and not part.primary
    assert rows_of(comparison)["toy-c/fog/1", "error"].p == pytest.approx(2 / 2**2)  # a cell: outside the family


def test_a_sweep_is_compared_by_the_means_of_its_cells(stores: Stores) -> None:
    suite = several_sets()
    a = stores.write("a", suite, all_answers({"toy-c/fog/1": (0, 1, 2), "toy-c/snow/1": (7,)}))
    b = stores.write("b", suite, all_answers({"toy-c/fog/1": (2, 3), "toy-c/fog/3": (3, 4, 5), "toy-c/snow/3": (3,)}))
    rows = rows_of(compared(a, b))
    errors = np.zeros((2, 4, N))
    errors[0, 0, [0, 1, 2]] = errors[0, 2, 7] = 1
    errors[1, 0, [2, 3]] = errors[1, 1, [3, 4, 5]] = errors[1, 3, 3] = 1
    diff = (errors[1] - errors[0]).mean(axis=0)
    mean, fog = rows["toy-c/mean", "error"], rows["toy-c/fog", "error"]
    assert (mean.a, mean.b, mean.difference, mean.n) == pytest.approx((4 / 240, 6 / 240, 2 / 240, 240))
    assert (fog.a, fog.b, fog.n, fog.p) == pytest.approx((3 / 120, 5 / 120, 120, None))
    assert mean.p == pytest.approx(flips(diff.tolist()))
    assert mean.test == "permutation over images, exact sign flips"
    assert mean.lower_is_better and mean.gain == -mean.difference and mean.lowest_gain == -mean.ci95[1]
    resamples = Resamples(N, seed=3)
    assert mean.ci95 == pytest.approx(resamples.interval(resamples.means(diff)))
    assert fog.ci95 == pytest.approx(resamples.interval(resamples.means((errors[1] - errors[0])[:2].mean(axis=0))))


def test_cells_of_different_images_are_joined_by_name(stores: Stores) -> None:
    """An incomplete copy: the mean of the cells' means, and a test over all images that occur."""
    first, second = cell("toy-c/fog/1", 6), cell("toy-c/fog/2", keys=[f"image-{number}" for number in (5, 0)])
    views = [view("toy-c/fog/1", 6, corruption=("fog", 1)), view("toy-c/fog/2", 2, corruption=("fog", 2))]
    suite = suite_of([first, second], views)
    a = stores.write("a", suite, {first.id: answers((), 6), second.id: answers((), 2)})
    b = stores.write("b", suite, {first.id: answers((0, 1), 6), second.id: answers((1,), 2)})
    mean = rows_of(compared(a, b))["toy-c/mean", "error"]
    assert (mean.a, mean.b, mean.n) == pytest.approx((0, (2 / 6 + 1 / 2) / 2, 8))
    assert mean.p == pytest.approx(flips([1 / 6 + 1 / 2, 1 / 6]))


def test_imagenet_c_has_mce_of_both_models(stores: Stores) -> None:
    n = 12
    rng = np.random.default_rng(0)
    names = list(itertools.product(robustness_metrics.CORRUPTIONS, robustness_metrics.SEVERITIES))
    clean = cell("imagenet/val", keys=[f"image-{number}" for number in range(n + 5)][::-1])
    cells = [clean, *(cell(f"imagenet-c/{name}/{severity}", n) for name, severity in names)]
    views = [view("imagenet/val", n + 5)]
    views += [view(f"imagenet-c/{c}/{s}", n, corruption=(c, s), clean="imagenet/val") for c, s in names]
    suite = suite_of(cells, views)
    right = [{one.id: rng.random(len(one)) < 0.6 for one in cells} for _ in range(2)]
    rows = rows_of(compared(stores.write("a", suite, right[0]), stores.write("b", suite, right[1])))
    errors = [{(c, s): 1.0 - own[f"imagenet-c/{c}/{s}"] for c, s in names} for own in right]
    unspoilt = [1.0 - own["imagenet/val"][::-1][:n] for own in right]
    mce = [robustness_metrics.mce(own) for own in errors]
    relative = [robustness_metrics.relative_mce(*own) for own in zip(errors, unspoilt, strict=True)]
    for metric, terms in (("mce", mce), ("relative_mce", relative)):
        row = rows["imagenet-c/mean", metric]
        assert (row.a, row.b) == pytest.approx((terms[0].mean(), terms[1].mean()))
        resamples = Resamples(n, seed=3)
        assert row.ci95 == pytest.approx(resamples.interval(resamples.means(terms[1] - terms[0])))
        assert row.p is None and row.n == 75 * n
    fog = robustness_metrics.corruption_error(errors[1]).mean(axis=0)[robustness_metrics.CORRUPTIONS.index("fog")]
    assert rows["imagenet-c/fog", "ce"].b == pytest.approx(fog)


# ----------------------------------------------------------------------------------------------------- kNN and classes


def knn_suite(classify: bool = True) -> Suite:
    reference = cell("toy/reference", CLASSES, logits=False, embeddings=True)
    asked = cell("toy/val", logits=classify, embeddings=True)
    rows, labels = np.arange(N, dtype=np.int64), labels_of(N)
    nearest = KnnView(
        "toy", "val", asked.id, rows, labels, reference.id, np.arange(CLASSES), labels_of(CLASSES), (1,), 0.07, CLASSES
    )
    return suite_of([reference, asked], [view("toy/val"), nearest] if classify else [nearest])


def embedded(right: np.ndarray) -> dict[str, np.ndarray]:
    rows = logits_of(right, 1.0)
    return {"toy/reference": np.eye(CLASSES, dtype=np.float32), "toy/val": rows}


def test_neighbours_are_compared_and_join_the_family_when_named(stores: Stores, capsys: Any) -> None:
    suite = knn_suite()
    a = stores.write("a", suite, {"toy/val": answers()}, embedded(answers()))
    b = stores.write("b", suite, {"toy/val": answers()}, embedded(answers(range(8))))
    row = rows_of(compared(a, b))["toy/val", "knn_top1_k1"]
    assert (row.a, row.b, row.p) == pytest.approx((1, 52 / 60, 2 / 2**8)) and not row.primary
    assert main([str(a), str(b), "--fail-if-worse"]) == 0  # by top1
    assert main([str(a), str(b), "--fail-if-worse", "knn_top1_k1"]) == 1
    assert [row.metric for row in compared(a, b, "knn_top1_k1").family] == ["knn_top1_k1"]
    capsys.readouterr()
    assert main([str(a), str(b), "--fail-if-worse", "knn_top1_k2"]) == 2
    message = "No set is tested by 'knn_top1_k2'. Did you mean 'knn_top1_k1' or 'top1'? Valid: knn_top1_k1, top1."
    assert message in capsys.readouterr().err


def test_a_model_without_classes_is_compared_by_neighbours(stores: Stores, capsys: Any) -> None:
    a = stores.write("a", knn_suite(), {"toy/val": answers()}, embedded(answers()))
    b = stores.write("b", knn_suite(classify=False), {}, embedded(answers((3,))), classifier=None)
    comparison = compared(a, b)
    assert {row.metric for row in comparison.rows} == {"knn_top1_k1"} and comparison.family == ()
    assert "A classifies by linear head, B by nothing." in comparison.notices
    assert "Only A answers toy/val (classify): left out." in comparison.notices
    assert main([str(a), str(b), "--fail-if-worse"]) == 2  # nothing to judge by must not pass
    assert "one of knn_top1_k1" in capsys.readouterr().err


def test_classes_are_counted_and_adjusted_for_their_number(stores: Stores) -> None:
    a, b = stores.pair()
    classes = compared(a, b).classes
    found = {row.name: (row.images, row.a, row.b, row.only_a, row.only_b) for row in classes}
    # Class c holds the images c, c + 6, ...; B loses 0..8, A loses 9 and 10, both lose 11 and 12.
    assert found == {
        "class 0": (10, 9, 7, 2, 0),
        "class 1": (10, 10, 8, 2, 0),
        "class 2": (10, 10, 8, 2, 0),
        "class 3": (10, 9, 9, 1, 1),
        "class 4": (10, 9, 9, 1, 1),
        "class 5": (10, 9, 8, 1, 0),
    }
    assert classes[0].difference == pytest.approx(-0.2)
    assert [row.p_holm for row in classes] == [1.0] * CLASSES  # 0.5 three times, six tests


def test_a_class_that_fell_certainly(stores: Stores) -> None:
    suite = suite_of([cell("toy/val", 120)], [view("toy/val", 120)])
    a = stores.write("a", suite, {"toy/val": answers((), 120)})
    b = stores.write("b", suite, {"toy/val": answers(range(2, 74, 6), 120)})
    fell = next(row for row in compared(a, b).classes if row.p_holm != 1)
    assert (fell.name, fell.a, fell.b) == ("class 2", 20, 8)
    assert fell.p_holm == pytest.approx(CLASSES * 2 / 2**12)


def test_nothing_is_claimed_about_classes_of_grouped_images(stores: Stores, capsys: Any) -> None:
    suite = one_set(groups=labels_of(N))
    a = stores.write("a", suite, {"toy/val": answers(WRONG_A)})
    b = stores.write("b", suite, {"toy/val": answers(WRONG_B)})
    assert {row.p_holm for row in compared(a, b).classes} == {None}
    assert main([str(a), str(b)]) == 0
    assert "nothing is claimed about single classes" in " ".join(capsys.readouterr().out.split())
