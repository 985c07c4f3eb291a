"""At which cosine a model answers "none of these": measured on real images, once with and once without their label.

    calibrated = calibrate(engine, images, seed=0)

Leave-label-out: every image is classified among n labels drawn at random, first its own among them, then without it.
The threshold at n is where both errors are equal: answering "none of these" although the label is there, and giving a
label although the right one is not. It is chosen on one half of the labels' images and measured on the other half,
whose labels are others. The errors are those of this kind of picture, and grow with n: among a thousand labels some are
close to any picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.abstain import AbstainRule
from digpt.data.emoji import EmojiSet
from digpt.engine import Engine
from digpt.errors import InputError
from export.images import evenly, folder_images

COUNTS = (1, 3, 10, 30, 100, 300, 1000, 3000)  # numbers of labels that thresholds are measured at
IMAGES = 1024  # at most: half to choose, half to measure
LEAST = 64  # with fewer, an error rate means nothing
DRAWS = 4  # lists of labels drawn for each image
CHANCE = 0.9  # of both errors together, where 1 is what guessing gives: such a model has nothing to go by
SPLITS = ("val", "flat", "contrast")  # of the bundled set: concepts that its models know, in drawings they do not
FEW = 10  # labels; the number that a model must be able to tell "none of these" at, if it has as many

Floats = NDArray[np.float32]
Pictures = list[tuple[bytes, str]]


@dataclass(frozen=True)
class Errors:
    """At ``labels`` labels, on images that did not choose the threshold: fractions of images.

    ``false_reject``: "none of these" though the label is there. ``false_accept``: a label though the right one is not.
    """

    labels: int
    false_reject: float
    false_accept: float


@dataclass(frozen=True)
class Calibration:
    """``rule`` is None where nothing could be calibrated, and ``reason`` says why.

    ``engine`` (backend and precision) and ``templates`` are those that the cosines were measured with.
    ``unseen`` are of the bundled set's concepts that no image or caption of its models was about, asked among others.
    """

    rule: AbstainRule | None
    images: int = 0
    of: str = ""
    errors: tuple[Errors, ...] = ()
    unseen: tuple[Errors, ...] = ()
    engine: str = ""
    templates: tuple[str, ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any] | None:
        """What the manifest records; None without a rule."""
        if self.rule is None:
            return None
        return {
            "rule": "equal error of leave-label-out, on the best label's cosine",
            **self.rule.to_dict(),
            "images": self.images,
            "of": self.of,
            "engine": self.engine,
            "templates": list(self.templates),
            "errors": [vars(error) for error in self.errors],
            "unseen_false_accept": {str(error.labels): error.false_accept for error in self.unseen},
        }


def calibrate(engine: Engine, folder: Path | None, seed: int = 0) -> Calibration:
    """Calibrate on the bundled set, or on a ``folder`` whose pictures lie in folders named by their labels.

    A model that brings labels along is asked about these alone.

    Raises:
        DataError: the folder holds no images.
    """
    if not engine.info.has_text:
        return Calibration(None, reason="it has no text tower")
    known, unseen, names = _bundled() if folder is None else _labelled(folder)
    labels = engine.info.choices or names
    known, unseen = ([item for item in items if item[1] in set(labels)] for items in (known, unseen))
    of = "the bundled set" if folder is None else str(folder.name)
    if len(known) < LEAST or len({label for _, label in known}) < 2:
        return Calibration(None, reason=f"{of} holds {len(known)} pictures of its labels, and {LEAST} are needed")
    return _calibrated(engine, evenly(known, IMAGES), evenly(unseen, IMAGES // 2), labels, of, seed)


def _calibrated(
    engine: Engine, known: Pictures, unseen: Pictures, labels: Sequence[str], of: str, seed: int
) -> Calibration:
    rng = np.random.default_rng(seed)
    column = {label: index for index, label in enumerate(labels)}
    counts = [count for count in COUNTS if count < len(labels)]
    matrix = engine.class_matrix(labels)
    own = np.array([column[label] for _, label in known])
    best = best_of(_cosines(engine, known, matrix), own, counts, rng, np.arange(len(labels)))
    chosen = _half(own)
    cosine = tuple(round(equal_error(a[chosen], b[chosen]), 4) for a, b in zip(*best, strict=True))
    errors = tuple(_errors(counts, cosine, *(part[:, ~chosen] for part in best)))
    told = max((error for error in errors if error.labels <= FEW), key=lambda error: error.labels)
    if not told.false_reject + told.false_accept < CHANCE:
        return Calibration(None, reason=f"on {of} its cosines do not tell a right label from a wrong one")
    seen = np.array(sorted({column[label] for label in labels} - {column[label] for _, label in unseen}))
    met: tuple[Errors, ...] = ()
    if unseen:
        theirs = np.array([column[label] for _, label in unseen])
        few = [count for count in counts if count < len(seen)]
        met = tuple(_errors(few, cosine, *best_of(_cosines(engine, unseen, matrix), theirs, few, rng, seen)))
    info = engine.info
    asked = f"{info.backend} {info.precision}"
    return Calibration(AbstainRule(tuple(counts), cosine), len(known), of, errors, met, asked, info.templates)


def _cosines(engine: Engine, pictures: Pictures, matrix: Floats) -> Floats:
    """The cosine of every picture with every label ``[N,C]``."""
    crops = []
    for data, label in pictures:
        try:
            crops.append(engine.decode(data))
        except InputError as error:
            raise InputError(f"A picture of {label!r}: {error}") from error
    return engine.similarity(engine.embed_images(crops), matrix)


def best_of(
    cosine: Floats, own: NDArray[np.int64], counts: Sequence[int], rng: np.random.Generator, others: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """The best label's cosine among so many as ``counts`` say, float32 ``[counts, N * DRAWS]`` each.

    Args:
        cosine: of N images with C labels ``[N,C]``.
        own: the column of each image's label ``[N]``.
        others: columns that wrong labels are drawn from.

    Returns:
        With the image's own label among them, and without it.
    """
    with_own, without = np.empty((2, len(counts), len(own) * DRAWS), np.float32)
    for item, (row, label) in enumerate(zip(np.tile(cosine, (DRAWS, 1)), np.tile(own, DRAWS), strict=True)):
        wrong = np.maximum.accumulate(row[rng.permutation(others[others != label])])  # of the first 1, 2, 3, ...
        for at, count in enumerate(counts):
            without[at, item] = wrong[count - 1]
            with_own[at, item] = row[label] if count == 1 else max(row[label], wrong[count - 2])
    return with_own, without


def equal_error(with_own: Floats, without: Floats) -> float:
    """The threshold at which as many of ``with_own`` lie below as of ``without`` do not."""
    candidates = np.unique(np.concatenate([with_own, without]))
    below = np.searchsorted(np.sort(with_own), candidates) / len(with_own)
    above = 1 - np.searchsorted(np.sort(without), candidates) / len(without)
    return float(candidates[np.argmin(np.abs(below - above))])


def _errors(counts: Sequence[int], cosine: Sequence[float], with_own: Floats, without: Floats) -> list[Errors]:
    rates = zip(counts, cosine, with_own, without, strict=False)
    return [Errors(n, round(float((a < t).mean()), 4), round(float((b >= t).mean()), 4)) for n, t, a, b in rates]


def _half(own: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the images (of every draw) choose: those of every other label that has images."""
    labels = np.unique(own)
    return np.tile(np.isin(own, labels[::2]), DRAWS)


def _bundled() -> tuple[Pictures, Pictures, tuple[str, ...]]:
    """Pictures of known and of unseen concepts, and the names to choose from."""
    emoji = EmojiSet.load()
    known = [emoji.images(split) for split in SPLITS]
    fewest = IMAGES // len(SPLITS)  # of each split alike: a split of black line art is a third, whatever its size
    shares = [evenly(images, fewest) for images in known]

    def named(images: Sequence[Any]) -> Pictures:
        return [(image.encoded, emoji.concepts[image.concept].name) for image in images]

    return (
        named([image for images in shares for image in images]),
        named(emoji.images("unseen")),
        (*emoji.five_style_names(),),
    )


def _labelled(folder: Path) -> tuple[Pictures, Pictures, tuple[str, ...]]:
    """The pictures below ``folder`` that lie in a folder of their own, which names their label."""
    files = [file for file in folder_images(folder, 10**9) if file.parent != folder]
    named = [(file, file.parent.name.replace("_", " ")) for file in files]
    names = tuple(dict.fromkeys(name for _, name in named))
    return [(file.read_bytes(), name) for file, name in evenly(named, IMAGES)], [], names
