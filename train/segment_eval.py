"""mIoU, mAcc and aAcc of a segmenter while it trains, over all processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from digpt.data.ade20k import MaskSource
from digpt.data.source import SampleError
from digpt.errors import DataError
from digpt.segment_inference import SegmentInference, predict
from digpt.segment_metrics import Scores, confusion
from digpt.segmentation import Segmenter
from train.task import Evaluation

Pixels = NDArray[np.uint8]
AT_ONCE = 32  # images of one size in a forward pass


def segment_figures(
    segmenter: Segmenter, source: MaskSource, inference: SegmentInference, evaluation: Evaluation
) -> dict[str, float]:
    """``miou``, ``macc`` and ``aacc`` of ``source``, from intersections and unions summed over all of it.

    Raises:
        DataError: an image cannot be read, which a figure must not hide; or nothing is labelled.
    """
    classes, share = len(source.classes), evaluation.share
    total = torch.zeros(classes, classes, dtype=torch.float64)
    mine = range(share.rank, len(source), share.world)
    for images, labels in _batches(source, mine, AT_ONCE if _plain(inference) else 1):
        evaluation.check()
        for found, label in zip(_predicted(segmenter, images, labels, inference), labels, strict=True):
            total += torch.from_numpy(confusion(found, label, classes)).double()
    matrix = evaluation.total(total.to(evaluation.device)).cpu().long().numpy()
    if not matrix.any():
        raise DataError(f"{source.name} has no labelled pixel: name where to evaluate with --val-data.")
    scores = Scores.of(matrix)
    return {"miou": scores.miou, "macc": scores.macc, "aacc": scores.aacc}


def _plain(inference: SegmentInference) -> bool:
    """Whether an image is one view of its own size in one piece, so that several make a batch."""
    return inference.mode == "whole" and inference.scale is None and inference.ratios == (1.0,) and not inference.flip


def _batches(source: MaskSource, rows: range, size: int) -> Iterator[tuple[list[Pixels], list[Pixels]]]:
    """Images and labels of ``rows`` in order, up to ``size`` of one shape together."""
    images: list[Pixels] = []
    labels: list[Pixels] = []
    for row in rows:
        try:
            image, label = source.pixels(row)
        except SampleError as error:
            raise DataError(f"{source.name} cannot be evaluated: {error}") from None
        if images and (len(images) == size or image.shape != images[0].shape):
            yield images, labels
            images, labels = [], []
        images.append(image)
        labels.append(label)
    if images:
        yield images, labels


def _predicted(
    segmenter: Segmenter, images: Sequence[Pixels], labels: Sequence[Pixels], inference: SegmentInference
) -> Sequence[Pixels]:
    if _plain(inference):
        logits = segmenter.pixel_logits(torch.from_numpy(np.stack(images)))
        return list(logits.argmax(dim=1).to(torch.uint8).cpu().numpy())
    pairs = zip(images, labels, strict=True)
    return [predict(segmenter, image, inference, (label.shape[0], label.shape[1])) for image, label in pairs]
