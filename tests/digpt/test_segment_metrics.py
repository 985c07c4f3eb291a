"""Segmentation figures against counting by hand, torchmetrics' matrix, and resamples that are drawn one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_confusion_matrix

from digpt.resampling import Resamples
from digpt.segment_metrics import Scores, class_parts, confusion, miou_resampled

CLASSES = 6
ABSENT, ONLY_PREDICTED, ONLY_LABELLED = 2, 4, 5


def maps(seed: int = 0, images: int = 5) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Predictions and labels of odd sizes: one class nowhere, one only predicted, one only labelled, some ignored."""
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        size = tuple(random.integers(7, 20, 2))
        label = random.choice([0, 1, 3, ONLY_LABELLED, 255], size=size).astype(np.uint8)
        noise = random.choice([0, 1, 3, ONLY_PREDICTED], size=size).astype(np.uint8)
        right = (random.random(size) < 0.6) & ~np.isin(label, [255, ONLY_LABELLED])
        pairs.append((np.where(right, label, noise), label))
    return pairs


def counted(pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> tuple[list[float], list[float], float]:
    """IoU and accuracy of each class and the overall accuracy, by sets of pixels."""
    predicted: list[set[tuple[int, int]]] = [set() for _ in range(CLASSES)]
    labelled: list[set[tuple[int, int]]] = [set() for _ in range(CLASSES)]
    for number, (prediction, label) in enumerate(pairs):
        for place, (found, wanted) in enumerate(zip(prediction.flat, label.flat, strict=True)):
            if wanted != 255:
                predicted[found].add((number, place))
                labelled[wanted].add((number, place))
    both = [len(p & w) for p, w in zip(predicted, labelled, strict=True)]
    unions = [len(p | w) for p, w in zip(predicted, labelled, strict=True)]
    iou = [hit / union if union else math.nan for hit, union in zip(both, unions, strict=True)]
    accuracy = [hit / len(w) if w else math.nan for hit, w in zip(both, labelled, strict=True)]
    return iou, accuracy, sum(both) / sum(len(w) for w in labelled)


def total(pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> NDArray[np.int64]:
    return np.sum([confusion(prediction, label, CLASSES) for prediction, label in pairs], axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_sets_of_pixels(seed: int) -> None:
    pairs = maps(seed)
    iou, accuracy, overall = counted(pairs)
    scores = Scores.of(total(pairs))
    np.testing.assert_allclose(scores.iou, iou, rtol=1e-14)
    np.testing.assert_allclose(scores.accuracy, accuracy, rtol=1e-14)
    assert scores.miou == pytest.approx(np.nanmean(iou), rel=1e-14)
    assert scores.macc == pytest.approx(np.nanmean(accuracy), rel=1e-14)
    assert scores.aacc == pytest.approx(overall, rel=1e-14)
    # A class that is only predicted pulls mIoU down; one that is nowhere does not, nor either of them mAcc.
    assert math.isnan(scores.iou[ABSENT]) and scores.iou[ONLY_PREDICTED] == 0 == scores.iou[ONLY_LABELLED]
    assert math.isnan(scores.accuracy[ONLY_PREDICTED]) and scores.accuracy[ONLY_LABELLED] == 0


def test_the_matrix_is_torchmetrics() -> None:
    """Its confusion matrix, that is; its MeanIoU averages over updates and is another figure."""
    for prediction, label in maps(3):
        expected = multiclass_confusion_matrix(
            torch.from_numpy(prediction).long(), torch.from_numpy(label).long(), CLASSES, ignore_index=255
        )
        np.testing.assert_array_equal(confusion(prediction, label, CLASSES), expected.numpy())


def test_rows_are_labels_and_ignored_pixels_count_nowhere() -> None:
    label, prediction = np.array([[0, 1, 1], [255, 1, 0]]), np.array([[0, 0, 1], [1, 0, 0]])
    matrix = confusion(prediction, label, 2)
    assert matrix.dtype == np.int64 and matrix.tolist() == [[2, 0], [2, 1]]
    assert confusion(prediction, np.where(label == 255, 7, label), 2, ignore=7).tolist() == matrix.tolist()
    assert class_parts(matrix).tolist() == [[2, 4, 2], [1, 1, 3]]
    assert confusion(np.full(4, 99), np.full(4, 255), 2).sum() == 0  # what is predicted there is not even looked at


def test_150_classes_do_not_overflow_the_bytes_that_labels_come_in() -> None:
    label = np.array([149, 149, 3], dtype=np.uint8)
    matrix = confusion(np.array([149, 3, 149], dtype=np.uint8), label, 150)
    assert (matrix[149, 149], matrix[149, 3], matrix[3, 149], matrix.sum()) == (1, 1, 1, 3)


def test_the_set_is_summed_before_it_is_divided() -> None:
    pairs = maps(4)
    of_set = Scores.of(total(pairs)).miou
    mean_of_images = float(np.mean([Scores.of(total([pair])).miou for pair in pairs]))
    assert abs(of_set - mean_of_images) > 1e-3
    parts = np.stack([class_parts(confusion(*pair, CLASSES)) for pair in pairs])
    assert Scores.of_parts(parts.sum(axis=0)).miou == of_set


def test_nothing_labelled_is_no_figure() -> None:
    scores = Scores.of(np.zeros((3, 3)))
    assert all(math.isnan(value) for value in (scores.miou, scores.macc, scores.aacc))


def test_each_resample_is_the_score_of_its_own_images() -> None:
    """Drawn one by one: the identity's sums say how often every image counts in each resample."""
    pairs = maps(5, images=3)
    pairs[1][1][:] = 255  # an image without any labelled pixel
    pairs[2][1][:] = 0  # other classes are missing from some resamples
    pairs[2][0][:] = 0
    parts = np.stack([class_parts(confusion(*pair, CLASSES)) for pair in pairs])
    resamples = Resamples(len(parts), seed=1, n_resamples=300)
    times = resamples.sums(np.eye(len(parts)))
    expected = [Scores.of_parts((parts * row[:, None, None]).sum(axis=0)).miou for row in times]
    found = miou_resampled(parts, resamples)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert np.isnan(found).sum() == (times[:, 1] == len(parts)).sum() > 0  # only the unlabelled image was drawn


def test_the_interval_holds_the_score_of_the_set() -> None:
    pairs = maps(6, images=40)
    resamples = Resamples(len(pairs), n_resamples=500)
    low, high = resamples.interval(
        miou_resampled(np.stack([class_parts(confusion(*pair, CLASSES)) for pair in pairs]), resamples)
    )
    assert low < Scores.of(total(pairs)).miou < high
    assert 0.005 < high - low < 0.1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        confusion(np.zeros((2, 3)), np.zeros((3, 2)), 4)
    for prediction, label, what in ((4, 0, "Predictions"), (0, 4, "Labels"), (-1, 0, "Predictions")):
        with pytest.raises(ValueError, match=rf"{what} must lie in 0\.\.3"):
            confusion([prediction], [label], 4)
    with pytest.raises(ValueError, match=r"\[K, K\]"):
        Scores.of(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"\[K, 3\]"):
        Scores.of_parts(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"\[N, K, 3\]"):
        miou_resampled(np.zeros((4, 3)), Resamples(4))
    with pytest.raises(ValueError, match="4 images"):
        miou_resampled(np.zeros((5, 2, 3)), Resamples(4))
