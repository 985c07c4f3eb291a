"""Compare two models on the same pictures: which one's features tell their classes apart, and is it chance?

python examples/drawings.py runs/drawings
python examples/compare_checkpoints.py runs/drawings bundled bundled-early-teacher
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from digpt.data.images import open_images
from digpt.engine import Engine
from digpt.errors import DataError, DigptError
from digpt.neighbors import knn_classify
from digpt.probe import held_out_rows
from digpt.resampling import Resamples
from digpt.significance import Difference, McNemar, mcnemar, paired_bootstrap


def compare(
    folder: Annotated[Path, tyro.conf.Positional],
    first: Annotated[str, tyro.conf.Positional],
    second: Annotated[str, tyro.conf.Positional],
    k: int = 10,
) -> tuple[Difference, McNemar]:
    """Classify half of the pictures by the nearest of the other half; print and return what the models differ by.

    Args:
        folder: pictures in folders that are their classes.
        first: a model spec, or the URL of a running server.
        second: the model to compare it with.
        k: how many neighbours vote.
    """
    images = open_images(f"folder:{folder}")
    if images.classes is None or images.labels is None:
        raise DataError(f"{folder} has no folders, whose names would be the classes.")
    asked, right = held_out_rows(images.labels, 0.5, seed=0), []
    for spec in (first, second):
        engine = Engine.load(spec)
        rows = engine.embed_images([engine.decode(images.read(number)[0]) for number in range(len(images))])
        known = images.labels[~asked]
        answers = knn_classify(rows[~asked], known, rows[asked], k=min(k, len(known)), n_classes=len(images.classes))
        right.append(answers == images.labels[asked])
        print(f"{np.mean(right[-1]):6.1%} of {asked.sum()} right: {spec} ({engine.info.fingerprint[:19]})")
    by, test = paired_bootstrap(*right, Resamples(int(asked.sum()))), mcnemar(*right)
    value, low, high = (100 * number for number in (by.value, *by.ci95))
    print(f"{value:+.1f} points [{low:+.1f}, {high:+.1f}], p = {test.p_value:.2g} (McNemar, exact)")
    print(f"right in both {test.both}, only in the first {test.b}, only in the second {test.c}")
    return by, test


if __name__ == "__main__":
    try:
        tyro.cli(compare, description=__doc__)
    except (DigptError, OSError) as error:
        sys.exit(f"error: {error}")
