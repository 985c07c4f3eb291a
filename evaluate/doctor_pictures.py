"""The doctor's look at pictures in a training and a validation split: ImageNet's training images, and the user's own.

for finding in training_findings(Path("data"), asked=False, deep=False, progress=no_progress): ...
for finding in own_findings("folder:my-pictures", deep=False, progress=no_progress): ...
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digpt.data.imagenet import TRAINING, locate, open_imagenet, training_folder, training_place, wnids
from digpt.data.images import FolderImages, ImageSource, TarImages, open_images
from digpt.errors import DigptError
from evaluate.findings import SAMPLE, Finding, Level, chosen, counts, decoded, some
from evaluate.progress import Progress
from evaluate.suite_images import name_of


def training_findings(root: Path, asked: bool, deep: bool, progress: Progress) -> Iterator[Finding]:
    """ImageNet's training images, which neighbours and linear probes need; where ``asked``, they have to be there."""
    name, place = TRAINING.name, training_place(root)
    try:
        source = training_folder(root)
    except DigptError as error:
        level: Level = "error" if asked or place is not None else "warning"
        yield Finding(name, level, f"{error} evaluate.knn and evaluate.linear_probe need them, nothing else does.")
        return
    assert source.labels is not None
    filled = np.unique(source.labels)
    yield Finding(name, "ok", f"{place}: class folders, {len(source):,} images of {len(filled):,} classes.")
    yield from counts(TRAINING, source.labels)
    if locate("imagenet", root):
        try:
            validation = open_imagenet("imagenet", root)
        except DigptError:
            pass  # which is said of that set
        else:
            yield from _mismatch(name, _words(filled, wnids()), _words(np.unique(validation.labels), wnids()))
    yield from decoded(name, [(source, chosen(len(source), SAMPLE, deep))], deep, progress)


def own_findings(spec: str, deep: bool, progress: Progress) -> Iterator[Finding]:
    """The user's own pictures: what each split holds, its labels, and whether both have the same classes."""
    name = name_of(spec)
    try:
        validation = open_images(spec, "val", whole=True)
    except DigptError as error:
        yield Finding(f"{name}/val", "error", str(error))
        return
    asked = yield from _split(f"{name}/val", validation, deep, progress)
    need = "evaluate.knn, evaluate.linear_probe and training need training images, nothing else does."
    try:
        training = open_images(spec, "train")
    except DigptError as error:
        yield Finding(f"{name}/train", "warning", f"{error} {need}")
        return
    if training.fingerprint == validation.fingerprint:
        aside = "Before finetuning set some pictures of each class aside (docs/data.md)."
        yield Finding(f"{name}/train", "warning", f"There are no splits, so that all images are asked. {need} {aside}")
        return
    known = yield from _split(f"{name}/train", training, deep, progress)
    yield from _mismatch(name, known, asked)


def _split(name: str, source: ImageSource, deep: bool, progress: Progress) -> Generator[Finding, None, set[str]]:
    """Findings about one split; returns the classes that it has images of."""
    rows, labels, unlabelled = _labels(name, source, progress)
    if unlabelled:
        yield Finding(name, "error", f"{len(unlabelled):,} of {len(source):,} images have no label: {some(unlabelled)}")
    wrong = labels < 0 if source.classes is None else (labels < 0) | (labels >= len(source.classes))
    if wrong.any():
        shown = [
            f"{source.sample_name(int(row))} has {label}" for row, label in zip(rows[wrong], labels[wrong], strict=True)
        ]
        valid = "" if source.classes is None else f" of 0 to {len(source.classes) - 1}"
        yield Finding(name, "error", f"{len(shown):,} labels are none{valid}: {some(shown)}.")
    filled, count = np.unique(labels[~wrong], return_counts=True)
    if len(filled):
        numbers = f"{count.min():,} of each class"
        if count.min() < count.max():
            numbers = f"{count.min():,} to {count.max():,} of each class"
        yield Finding(name, "ok", f"{source.name}: {len(source):,} images of {len(filled):,} classes, {numbers}.")
    words = _words(filled, source.classes)
    yield from _named(name, source, words)
    looked_at = rows[chosen(len(rows), SAMPLE, deep)].tolist()  # without a label nothing is read
    yield from decoded(name, [(source, looked_at)], deep, progress)
    return words


def _labels(
    name: str, source: ImageSource, progress: Progress
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    """The rows that have a label, their labels, and what is wrong with each other row; all are looked at."""
    if source.labels is not None:
        return np.arange(len(source), dtype=np.int64), source.labels, []
    found: dict[int, int] = {}
    broken: list[str] = []
    for index in range(len(source)):
        try:
            found[index] = source.label(index)
        except DigptError as error:
            broken.append(str(error))
        progress(f"{name} labels", index + 1, len(source))
    return np.array([*found], dtype=np.int64), np.array([*found.values()], dtype=np.int64), broken


def _named(name: str, source: ImageSource, filled: set[str]) -> Iterator[Finding]:
    """What is said of classes that have no names, or no images."""
    if source.classes is not None:
        if empty := sorted(set(source.classes) - filled):
            number = f"{len(empty):,} of {len(source.classes):,}"
            yield Finding(name, "warning", f"{number} classes have no image: {some(empty)}.")
    elif isinstance(source, FolderImages | TarImages):
        yield Finding(name, "error", "The images lie in no class folders: make a folder per class (docs/data.md).")
    else:
        yield Finding(
            name,
            "warning",
            "Nothing names the classes (a classes.txt beside the shards would): they are numbered as the linear head "
            "has them, and neither a text tower nor neighbours can be asked.",
        )


def _mismatch(name: str, training: set[str], validation: set[str]) -> Iterator[Finding]:
    """What is said where the splits have images of different classes."""
    if unknown := sorted(validation - training):
        yield Finding(
            name,
            "error",
            f"{len(unknown):,} classes have validation images and no training images, so that nothing trained on these "
            f"can answer them: {some(unknown)}.",
        )
    if unasked := sorted(training - validation):
        yield Finding(
            name,
            "warning",
            f"{len(unasked):,} classes have training images and no validation images: {some(unasked)}.",
        )


def _words(labels: NDArray[np.int64], classes: tuple[str, ...] | None) -> set[str]:
    """The names of classes, or their numbers where they have none."""
    return {str(label) if classes is None else classes[label] for label in labels.tolist()}
