"""Check the data before any compute is spent: where each set is, whether it is whole, and whether its labels are right.

    python -m evaluate.doctor --data-root data
    python -m evaluate.doctor --data-root data --sets imagenet imagenet-c --deep --json
    python -m evaluate.doctor                       # the bundled emoji set

Exit code 0: nothing wrong (there may be warnings); 1: something has to be repaired; 2: the command itself was wrong.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from digpt.data.emoji import EmojiSet
from digpt.data.imagenet import IMAGENET_SETS, ImageNetImages, class_subset, locate, open_imagenet, real_labels, wnids
from digpt.data.imagenet_c import CELLS, SIZE, open_cell, present_cells
from digpt.data.imagenet_labels import LABEL_FILES, agreement, val_number
from digpt.data.imagenet_sets import imagenet_set, missing
from digpt.data.source import seeded_choice
from digpt.decode import decode
from digpt.errors import ConfigError, DigptError
from evaluate import cli
from evaluate.progress import Progress, bars, no_progress

Level = Literal["ok", "warning", "error"]
SAMPLE, CELL_SAMPLE = 64, 2  # images that are decoded of a set, and of a cell of ImageNet-C, unless all are
_CHUNK = 2048
_COLORS = {"ok": "green", "warning": "yellow", "error": "red"}
# True labels agree with ReaL's for 90 % of the images, labels in any other order for about 0.1 %.
_AGREEMENT, _ENOUGH = 0.5, 100
_REAL_SCORED = 46_837


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``message`` says what to do.

    ``error``: numbers would be wrong, or the evaluation would stop. ``warning``: it runs, but on something other than
    the whole published set.
    """

    set: str
    level: Level
    message: str


@dataclass(frozen=True)
class DoctorOptions:
    """Options of the command."""

    data_root: Path | None = None
    """Folder that the sets lie in (default: check the bundled emoji set)."""
    sets: tuple[str, ...] = ()
    """Sets that have to be there (default: whichever are)."""
    deep: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Decode every image instead of a sample."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the findings as JSON on standard output, and nothing else there."""


def diagnose(
    data_root: Path | None,
    *,
    sets: Sequence[str] | None = None,
    deep: bool = False,
    progress: Progress = no_progress,
) -> list[Finding]:
    """Look at the sets below ``data_root``; without one, at the bundled emoji set.

    A set of ``sets`` that is missing is an error; without ``sets`` all are looked for, and those that are missing are
    warnings unless none is there. ``deep`` decodes every image.

    Raises:
        DataError: an unknown set, or ``data_root`` is no folder.
        ConfigError: sets without a data root.
    """
    if data_root is None:
        if sets:
            raise ConfigError("--sets needs --data-root: the bundled emoji set is the only one that needs none.")
        return [_emoji()]
    names = [imagenet_set(name).name for name in dict.fromkeys(sets or IMAGENET_SETS)]
    findings = [finding for name in names for finding in _set(name, data_root, bool(sets), deep, progress)]
    if not sets and not any(locate(name, data_root) for name in names):
        findings.append(Finding("all", "error", f"{data_root} holds none of the sets; give the folder they lie in."))
    return findings


def _emoji() -> Finding:
    try:
        emoji = EmojiSet.load()
        whole = emoji.compute_fingerprint() == emoji.fingerprint
    except DigptError as error:
        return Finding("emoji", "error", str(error))
    if not whole:
        return Finding("emoji", "error", "The pixels are not those that were bundled: git checkout -- data/emoji.")
    return Finding("emoji", "ok", f"{len(emoji.concepts):,} concepts, fingerprint {emoji.fingerprint[:16]} confirmed.")


def _set(name: str, root: Path, asked: bool, deep: bool, progress: Progress) -> Iterator[Finding]:
    places = {place.resolve(): place for place in reversed(locate(name, root))}
    if not places:
        yield Finding(name, "error" if asked else "warning", str(missing(name, root)))
        return
    place, *others = reversed(places.values())
    if others:
        yield Finding(name, "warning", f"Also at {', '.join(map(str, others))}; {place} is used.")
    try:
        if name == "imagenet-c":
            yield from _corrupted(place, deep, progress)
            return
        source = open_imagenet(name, root)
    except DigptError as error:
        yield Finding(name, "error", str(error))
        return
    filled = len(np.unique(source.labels))
    yield Finding(name, "ok", f"{place}: {source.layout}, {len(source):,} images of {filled:,} classes.")
    if name == "imagenet-real":
        yield from _real(source, root)
        return
    yield from _counts(name, source)
    yield from _stray(name, source)
    if name == "imagenet":
        yield from _val_labels(source)
    if name == "imagenet-v2" and "integers" in source.layout:
        yield Finding(
            name, "ok", "Folder 10 is class 10: the names count, not their order (as strings, 10 would come third)."
        )
    yield from _decoded(name, [(source, _chosen(source, SAMPLE, deep))], deep, progress)


def _counts(name: str, source: ImageNetImages) -> Iterator[Finding]:
    """Warnings where the numbers of images, in all or per class, are not the published ones."""
    entry = imagenet_set(name)
    if len(source) != entry.images:
        yield Finding(
            name,
            "warning",
            f"{len(source):,} images instead of {entry.images:,}: the numbers will not compare with published ones; "
            f"the whole set comes from {entry.source}.",
        )
    counts = np.bincount(source.labels, minlength=len(wnids()))
    classes = class_subset(name) if entry.classes < len(wnids()) else np.arange(len(wnids()))
    empty = classes[counts[classes] == 0]
    if len(empty):
        yield Finding(
            name,
            "warning",
            f"{len(empty)} of {entry.classes} classes have no image: {_some([wnids()[label] for label in empty])}.",
        )
    if entry.per_class is not None:
        odd = [label for label in classes if counts[label] not in (0, entry.per_class)]
        if odd:
            shown = _some([f"{wnids()[label]} has {counts[label]}" for label in odd])
            yield Finding(name, "warning", f"{len(odd)} classes do not have {entry.per_class} images each: {shown}.")


def _stray(name: str, source: ImageNetImages) -> Iterator[Finding]:
    stray = [file for file in source.stray if file not in LABEL_FILES and not file.lower().startswith("readme")]
    if stray:
        yield Finding(
            name, "warning", f"{len(stray)} files or folders are no images of the set and are left out: {_some(stray)}."
        )


def _val_labels(source: ImageNetImages) -> Iterator[Finding]:
    """Whether the labels are the true ones, which ReaL's lists tell without the label file."""
    numbers = [val_number(source.sample_name(index)) for index in range(len(source))]
    unnamed = [source.sample_name(index) for index, number in enumerate(numbers) if number is None]
    if unnamed:
        yield Finding(
            "imagenet",
            "warning",
            f"{len(unnamed)} files have no name such as ILSVRC2012_val_00000001.JPEG ({_some(unnamed)}): are these the "
            "validation images? ReaL needs the original names.",
        )
    pairs = [(number, int(label)) for number, label in zip(numbers, source.labels, strict=True) if number is not None]
    share, count = agreement(pairs)
    if count >= _ENOUGH and share < _AGREEMENT:
        yield Finding(
            "imagenet",
            "error",
            f"{share:.1%} of the labels are among ReaL's, where right ones are for 90 %: the images lie in the wrong "
            "class folders; sort them again from ILSVRC2012_img_val.tar.",
        )
    elif count >= _ENOUGH:
        yield Finding("imagenet", "ok", f"{share:.1%} of the labels are among ReaL's (of the whole set, 90.0 % are).")


def _real(source: ImageNetImages, root: Path) -> Iterator[Finding]:
    try:
        real = real_labels(root, [source.sample_name(index) for index in range(len(source))])
        shipped = real_labels(None, ())
    except DigptError as error:
        yield Finding("imagenet-real", "error", str(error))
        return
    scored = sum(bool(labels) for labels in real.answers)
    left_out = len(real.answers) - scored
    yield Finding(
        "imagenet-real",
        "ok" if scored == _REAL_SCORED else "warning",
        f"{scored:,} images are scored (published: {_REAL_SCORED:,}), {left_out:,} have no ReaL label and are left "
        f"out; labels from {real.source}.",
    )
    if real.fingerprint != shipped.fingerprint:
        yield Finding(
            "imagenet-real",
            "warning",
            f"{real.source} is not the published list: remove it, and timm's copy of the published one is used.",
        )


def _corrupted(place: Path, deep: bool, progress: Progress) -> Iterator[Finding]:
    """Findings about ImageNet-C: its cells, their images, and the size of these."""
    progress("imagenet-c cells", 0, len(CELLS))
    cells = present_cells(place)
    if len(cells) < len(CELLS):
        absent = [f"{corruption}/{severity}" for corruption, severity in CELLS if (corruption, severity) not in cells]
        yield Finding(
            "imagenet-c",
            "warning",
            f"{len(absent)} of {len(CELLS)} cells are missing, without which there is no mCE: {_some(absent)}; they "
            f"come from {imagenet_set('imagenet-c').source}.",
        )
    chosen: list[tuple[ImageNetImages, Sequence[int]]] = []
    names: dict[bytes, list[str]] = {}
    layouts: set[str] = set()
    said: dict[tuple[Level, str], list[str]] = {}  # by what is said, so that 75 equal warnings become one
    for done, cell in enumerate(cells):
        try:
            source = open_cell(place, *cell)
        except DigptError as error:
            said.setdefault(("error", str(error)), []).append(f"{cell[0]}/{cell[1]}")
            continue
        for finding in (*_counts("imagenet-c", source), *_stray("imagenet-c", source)):
            said.setdefault((finding.level, finding.message), []).append(f"{cell[0]}/{cell[1]}")
        layouts.add(source.layout)
        names.setdefault(source.names.text.tobytes(), []).append(source.name)
        chosen.append((source, _chosen(source, CELL_SAMPLE, deep)))
        progress("imagenet-c cells", done + 1, len(CELLS))
    yield Finding("imagenet-c", "ok", f"{place}: {_some(sorted(layouts), 5)}, {len(cells)} cells.")
    for (level, message), where in said.items():
        yield Finding("imagenet-c", level, f"In {_some(where)}: {message}")
    if len(names) > 1:
        rare = min(names.values(), key=len)
        yield Finding("imagenet-c", "warning", f"Not all cells have the same images: {_some(rare)} differ.")
    yield from _decoded("imagenet-c", chosen, deep, progress, side=SIZE)


def _chosen(source: ImageNetImages, limit: int, deep: bool) -> Sequence[int]:
    return range(len(source)) if deep else seeded_choice(len(source), limit).tolist()


def _decoded(
    name: str,
    chosen: Sequence[tuple[ImageNetImages, Sequence[int]]],
    deep: bool,
    progress: Progress,
    side: int | None = None,
) -> Iterator[Finding]:
    """Errors for images that cannot be decoded, or are not ``side`` pixels wide and high."""
    broken: list[str] = []
    odd: list[str] = []
    total = sum(len(indices) for _, indices in chosen)
    for done, (source, index, seen) in enumerate(_looked_at(chosen), start=1):
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
            f"{len(broken)} of {total:,} images cannot be read; copy them anew: {_some(broken)}"
            f"{'' if deep else ' --deep looks at all images.'}",
        )
    if odd:
        yield Finding(
            name,
            "error",
            f"{len(odd)} of {total:,} images are not {side} x {side} pixels, so this is not the published set "
            f"and no mCE comes from it: {_some(odd)}.",
        )
    if not broken and not odd:
        size = f" and are {side} x {side} pixels" if side else ""
        yield Finding(name, "ok", f"{'All' if deep else 'A sample of'} {total:,} images could be decoded{size}.")


def _looked_at(
    chosen: Sequence[tuple[ImageNetImages, Sequence[int]]],
) -> Iterator[tuple[ImageNetImages, int, tuple[int, int] | str]]:
    """Each image's width and height, or what is wrong with it; a few thousand are under way at most."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for source, indices in chosen:

            def look(index: int, source: ImageNetImages = source) -> tuple[int, int] | str:
                try:
                    return decode(source.read(index)[0]).size
                except DigptError as error:
                    return str(error)

            for start in range(0, len(indices), _CHUNK):
                part = indices[start : start + _CHUNK]
                for index, seen in zip(part, pool.map(look, part), strict=True):
                    yield source, index, seen


def _some(names: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def render(findings: Sequence[Finding]) -> Table:
    """The findings as a table."""
    table = Table("set", "", "finding", show_edge=False)
    for finding in findings:
        color = _COLORS[finding.level]
        table.add_row(finding.set, f"[{color}]{finding.level}[/]", finding.message.replace("[", r"\["))
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; 1 if any is an error, 2 after one line about a wrong command."""
    options = cli.parse(DoctorOptions, argv, "evaluate.doctor", "Check the data sets before evaluating on them.")
    return cli.guarded(lambda: _run(options))


def _run(options: DoctorOptions) -> int:
    with bars() as progress:
        findings = diagnose(options.data_root, sets=options.sets, deep=options.deep, progress=progress)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        console = Console(width=None if sys.stdout.isatty() else cli.TABLE_WIDTH)
        console.print(render(findings), highlight=False)
    return int(any(finding.level == "error" for finding in findings))


if __name__ == "__main__":
    raise SystemExit(main())
