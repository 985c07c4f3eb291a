"""What `evaluate.doctor` says of ADE20K: is it there, whole, and with masks that still count from 1?

findings = list(ade20k_findings(Path("data")))
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from digpt.data.ade20k import ADE20K_CLASSES, ADE20K_COUNTS, IGNORED, MaskSource, decode_mask, open_masks
from digpt.data.source import seeded_choice
from digpt.errors import DataError, DigptError
from evaluate.findings import Level
from evaluate.mask_data import find_ade20k
from evaluate.progress import Progress, no_progress

SAMPLE = 64  # pairs that are decoded of a split, unless all are
_SHOWN = 3


def ade20k_findings(root: Path, deep: bool = False, progress: Progress = no_progress) -> Iterator[tuple[Level, str]]:
    """Level and sentence of each thing that was looked at; nothing where there is no ADE20K below ``root``.

    ``deep`` decodes every pair instead of a sample.
    """
    place = find_ade20k(root)
    if place is None:
        return
    for split, published in ADE20K_COUNTS.items():
        try:
            source = open_masks(f"ade20k:{place}", split)
        except DataError as error:
            # Evaluation needs the validation images alone.
            yield ("error" if split == "val" else "warning", f"{split}: {error}")
            continue
        whole = len(source) == published
        counted = f"{split}: {len(source):,} images with masks at {place}"
        odd = f", not the published {published:,}: figures will not compare with published ones"
        yield ("ok" if whole else "warning", f"{counted}{'' if whole else odd}.")
        yield from _pairs(split, source, deep, progress)


def _pairs(split: str, source: MaskSource, deep: bool, progress: Progress) -> Iterator[tuple[Level, str]]:
    """Whether pairs can be decoded and fit, and whether 0 still means "not labelled" in the masks."""
    rows = range(len(source)) if deep else seeded_choice(len(source), SAMPLE).tolist()
    values, broken = np.zeros(256, dtype=np.int64), []
    for done, row in enumerate(rows):
        progress(f"ade20k {split}", done, len(rows))
        try:
            source.pixels(row)
            values += np.bincount(decode_mask(source.read(row)[1]).ravel(), minlength=256)
        except DigptError as error:
            broken.append(str(error))
    progress(f"ade20k {split}", len(rows), len(rows))
    if broken:
        more = f" And {len(broken) - _SHOWN} more." if len(broken) > _SHOWN else ""
        yield "error", f"{split}: {len(broken)} of {len(rows):,} pairs: {' '.join(broken[:_SHOWN])}{more}"
    if values[IGNORED]:
        yield (
            "error",
            f"{split}: masks hold the value {IGNORED}, which the published ones do not: the zero rule was applied to "
            "the files, and would be applied twice; unpack ADEChallengeData2016.zip again.",
        )
    if not broken and not values[IGNORED]:
        classes = np.count_nonzero(values[1 : len(ADE20K_CLASSES) + 1])
        unlabelled = values[0] / max(1, values.sum())
        looked = f"{'all' if deep else 'a sample of'} {len(rows):,} pairs could be decoded"
        yield "ok", f"{split}: {looked}; {classes} classes, {unlabelled:.1%} of the pixels not labelled."
