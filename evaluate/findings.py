"""What the doctor finds, and how it looks at the images of any set: their numbers, and whether they can be decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from digpt.data.imagenet import ImageNetSet, class_subset, wnids
from digpt.data.images import ImageSource
from digpt.data.source import seeded_choice
from digpt.decode import decode
from digpt.errors import DigptError
from evaluate.progress import Progress

Level = Literal["ok", "warning", "error"]
SAMPLE = 64  # images that are decoded of a set, unless all are
_CHUNK = 2048


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``message`` says what to do.

    ``error``: numbers would be wrong, or the evaluation would stop. ``warning``: it runs, but on something other than
    the whole published set.
    """

    set: str
    level: Level
    message: str


def counts(entry: ImageNetSet, labels: NDArray[np.int64]) -> Iterator[Finding]:
    """Warnings where the numbers of images, in all or per class, are not the published ones."""
    name = entry.name
    if len(labels) != entry.images:
        yield Finding(
            name,
            "warning",
            f"{len(labels):,} images instead of {entry.images:,}: the numbers will not compare with published ones; "
            f"the whole set comes from {entry.source}.",
        )
    count = np.bincount(labels, minlength=len(wnids()))
    classes = class_subset(name) if entry.classes < len(wnids()) else np.arange(len(wnids()))
    empty = classes[count[classes] == 0]
    if len(empty):
        yield Finding(
            name,
            "warning",
            f"{len(empty)} of {entry.classes} classes have no image: {some([wnids()[label] for label in empty])}.",
        )
    if entry.per_class is not None:
        odd = [label for label in classes if count[label] not in (0, entry.per_class)]
        if odd:
            shown = some([f"{wnids()[label]} has {count[label]}" for label in odd])
            yield Finding(name, "warning", f"{len(odd)} classes do not have {entry.per_class} images each: {shown}.")


def chosen(size: int, limit: int, deep: bool) -> Sequence[int]:
    """Which of ``size`` images are looked at: ``limit`` of them, always the same, or with ``deep`` all."""
    return range(size) if deep else seeded_choice(size, limit).tolist()


def decoded(
    name: str,
    asked: Sequence[tuple[ImageSource, Sequence[int]]],
    deep: bool,
    progress: Progress,
    side: int | None = None,
) -> Iterator[Finding]:
    """Errors for images that cannot be decoded, or are not ``side`` pixels wide and high."""
    broken: list[str] = []
    odd: list[str] = []
    total = sum(len(indices) for _, indices in asked)
    for done, (source, index, seen) in enumerate(_looked_at(asked), start=1):
        where = f"{source.name}: {source.sample_name(index)}"
        if isinstance(seen, str):
            broken.append(f"{where}: {seen}")
        elif side is not None and seen != (side, side):
            odd.append(f"{where} is {seen[0]} x {seen[1]}")
        progress(f"{name} images", done, total)
    if broken:
        yield Finding(
            name,
            "error",
            f"{len(broken)} of {total:,} images cannot be read; copy them anew: {some(broken)}"
            f"{'' if deep else ' --deep looks at all images.'}",
        )
    if odd:
        yield Finding(
            name,
            "error",
            f"{len(odd)} of {total:,} images are not {side} x {side} pixels, so this is not the published set "
            f"and no mCE comes from it: {some(odd)}.",
        )
    if not broken and not odd:
        size = f" and are {side} x {side} pixels" if side else ""
        yield Finding(name, "ok", f"{'All' if deep else 'A sample of'} {total:,} images could be decoded{size}.")


def _looked_at(
    asked: Sequence[tuple[ImageSource, Sequence[int]]],
) -> Iterator[tuple[ImageSource, int, tuple[int, int] | str]]:
    """Each image's width and height, or what is wrong with it; a few thousand are under way at most."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for source, indices in asked:

            def look(index: int, source: ImageSource = source) -> tuple[int, int] | str:
                try:
                    return decode(source.read(index)[0]).size
                except DigptError as error:
                    return str(error)

            for start in range(0, len(indices), _CHUNK):
                part = indices[start : start + _CHUNK]
                for index, seen in zip(part, pool.map(look, part), strict=True):
                    yield source, index, seen


def some(names: Sequence[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
