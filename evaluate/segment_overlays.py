"""Pictures of a segmentation: the image, its label and the prediction side by side, in the colours of the classes.

paths = draw_overlays(suite, model.pixels, inference, count=8, seed=0, folder=Path("runs/ade20k/overlays"))
"""

from __future__ import annotations

import io
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digpt.data.ade20k import IGNORED, palette
from digpt.errors import DataError
from digpt.files import atomic_write
from digpt.segment_inference import PixelModel, SegmentInference, predict
from evaluate.progress import Progress, no_progress
from evaluate.segment_compute import masks_of
from evaluate.suite import Subset, Suite

OVERLAYS_NAME = "overlays"
OPACITY = 0.6  # of a class's colour

Pixels = NDArray[np.uint8]


def draw_overlays(
    suite: Suite,
    model: PixelModel,
    inference: SegmentInference,
    *,
    count: int,
    seed: int,
    folder: Path,
    progress: Progress = no_progress,
) -> list[Path]:
    """Write ``count`` pictures of each split as PNG files; more of them hold the fewer, as with ``--limit``.

    Raises:
        DataError: an image that cannot be used, or a file that cannot be written.
    """
    chosen = [
        (cell, int(row))
        for cell in suite.cells
        for row in Subset(count, seed=seed).choose(cell.keys, np.zeros(len(cell), np.int64))
    ]
    colors = palette(len(suite.class_names))
    paths = []
    for done, (cell, row) in enumerate(chosen):
        progress(OVERLAYS_NAME, done, len(chosen))
        image, labels = masks_of(cell).masks.pixels(int(cell.rows[row]))
        found = predict(model, image, inference, labels.shape)
        picture = np.concatenate([image, blended(image, labels, colors), blended(image, found, colors)], axis=1)
        split = cell.id.rpartition("/")[2]
        # Keys are file names, or scenes by number ("scene 3 of val").
        paths.append(folder / f"{split}-{PurePath(cell.keys[row]).stem.replace(' ', '-')}.png")
        _write(paths[-1], picture)
    progress(OVERLAYS_NAME, len(chosen), len(chosen))
    return paths


def blended(image: Pixels, labels: Pixels, colors: Pixels) -> Pixels:
    """An image uint8 ``[H,W,3]`` under its classes' ``colors`` ``[K,3]``; as it is where the label is ignored."""
    counted = labels != IGNORED
    tint = colors[np.where(counted, labels, 0)]
    mixed = np.rint((1 - OPACITY) * image + OPACITY * tint).astype(np.uint8)
    return np.where(counted[..., None], mixed, image)


def _write(path: Path, pixels: Pixels) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    try:
        atomic_write(path, buffer.getvalue())
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}.") from error
