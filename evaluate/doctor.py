"""Check the data before any compute is spent: where each set is, whether it is whole, and whether its labels are right.

python -m evaluate.doctor  # the bundled emoji set
python -m evaluate.doctor --data folder:my-pictures
python -m evaluate.doctor --data-root data --sets imagenet imagenet-c --deep --json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from digpt.data.emoji import EmojiSet
from digpt.data.imagenet import IMAGENET_SETS, TRAINING, ImageNetImages, locate, open_imagenet, real_labels
from digpt.data.imagenet_c import CELLS, SIZE, open_cell, present_cells
from digpt.data.imagenet_labels import LABEL_FILES, agreement, val_number
from digpt.data.imagenet_sets import imagenet_set, missing
from digpt.data.images import ImageSource
from digpt.errors import ConfigError, DigptError
from evaluate import cli
from evaluate.doctor_masks import ade20k_findings
from evaluate.doctor_pictures import own_findings, training_findings
from evaluate.findings import SAMPLE, Finding, Level, chosen, counts, decoded, some
from evaluate.progress import Progress, bars, no_progress

COMMAND = cli.command("doctor", __doc__, {0: "nothing wrong, but for warnings", 1: "something has to be repaired"})
CELL_SAMPLE = 2  # images that are decoded of a cell of ImageNet-C, unless all are
_COLORS = {"ok": "green", "warning": "yellow", "error": "red"}
# True labels agree with ReaL's for 90 % of the images, labels in any other order for about 0.1 %.
_AGREEMENT, _ENOUGH = 0.5, 100
_REAL_SCORED = 46_837


@dataclass(frozen=True)
class DoctorOptions:
    """Options of the command."""

    data_root: Path | None = None
    """Folder that the sets lie in (default: check the bundled emoji set)."""
    data: str | None = None
    """Your own labelled pictures instead: folder:DIR, tar:DIR, wds:SHARDS or hfds:NAME, as in training."""
    sets: tuple[str, ...] = ()
    """Sets that have to be there, imagenet-train among them (default: whichever are)."""
    deep: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Decode every image instead of a sample."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the findings as JSON on standard output, and nothing else there."""


def diagnose(
    data_root: Path | None,
    *,
    data: str | None = None,
    sets: Sequence[str] | None = None,
    deep: bool = False,
    progress: Progress = no_progress,
) -> list[Finding]:
    """Look at the sets below ``data_root``, or at the pictures of ``data``; without either, at the bundled emoji set.

    A set of ``sets`` that is missing is an error; without ``sets`` all are looked for, and those that are missing are
    warnings unless none is there; ADE20K is looked at where it lies beside them. ``deep`` decodes every image.

    Raises:
        DataError: an unknown set, or ``data_root`` is no folder.
        ConfigError: sets without a data root, or ``data`` beside one.
    """
    if data is not None and (data_root is not None or sets):
        raise ConfigError("--data excludes --data-root and --sets: your own pictures, or the ImageNet family.")
    if data is not None:
        return list(own_findings(data, deep, progress))
    if data_root is None:
        if sets:
            raise ConfigError("--sets needs --data-root: the bundled emoji set is the only one that needs none.")
        return [_emoji()]
    wanted = dict.fromkeys(sets or (*IMAGENET_SETS, TRAINING.name))
    names = [imagenet_set(name).name for name in wanted if name != TRAINING.name]
    findings = [finding for name in names for finding in _set(name, data_root, bool(sets), deep, progress)]
    found = [] if sets else ade20k_findings(data_root, deep, progress)
    masks = [Finding("ade20k", level, text) for level, text in found]
    if not sets and not masks and not any(locate(name, data_root) for name in names):
        findings.append(Finding("all", "error", f"{data_root} holds none of the sets; give the folder they lie in."))
    if TRAINING.name in wanted:
        findings += training_findings(data_root, bool(sets), deep, progress)
    return findings + masks


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
    yield from counts(imagenet_set(name), source.labels)
    yield from _stray(name, source)
    if name == "imagenet":
        yield from _val_labels(source)
    if name == "imagenet-v2" and "integers" in source.layout:
        yield Finding(
            name, "ok", "Folder 10 is class 10: the names count, not their order (as strings, 10 would come third)."
        )
    yield from decoded(name, [(source, chosen(len(source), SAMPLE, deep))], deep, progress)


def _stray(name: str, source: ImageNetImages) -> Iterator[Finding]:
    stray = [file for file in source.stray if file not in LABEL_FILES and not file.lower().startswith("readme")]
    if stray:
        yield Finding(
            name, "warning", f"{len(stray)} files or folders are no images of the set and are left out: {some(stray)}."
        )


def _val_labels(source: ImageNetImages) -> Iterator[Finding]:
    """Whether the labels are the true ones, which ReaL's lists tell without the label file."""
    numbers = [val_number(source.sample_name(index)) for index in range(len(source))]
    unnamed = [source.sample_name(index) for index, number in enumerate(numbers) if number is None]
    if unnamed:
        yield Finding(
            "imagenet",
            "warning",
            f"{len(unnamed)} files have no name such as ILSVRC2012_val_00000001.JPEG ({some(unnamed)}): are these the "
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
    if not cells:
        yield Finding("imagenet-c", "error", f"{place} has corruptions, but none at a severity from 1 to 5.")
        return
    if len(cells) < len(CELLS):
        absent = [f"{corruption}/{severity}" for corruption, severity in CELLS if (corruption, severity) not in cells]
        yield Finding(
            "imagenet-c",
            "warning",
            f"{len(absent)} of {len(CELLS)} cells are missing, without which there is no mCE: {some(absent)}; they "
            f"come from {imagenet_set('imagenet-c').source}.",
        )
    asked: list[tuple[ImageSource, Sequence[int]]] = []
    names: dict[bytes, list[str]] = {}
    layouts: set[str] = set()
    said: dict[tuple[Level, str], list[str]] = {}  # by what is said, so that 75 equal warnings become one
    for done, cell in enumerate(cells):
        try:
            source = open_cell(place, *cell)
        except DigptError as error:
            said.setdefault(("error", str(error)), []).append(f"{cell[0]}/{cell[1]}")
            continue
        for finding in (*counts(imagenet_set("imagenet-c"), source.labels), *_stray("imagenet-c", source)):
            said.setdefault((finding.level, finding.message), []).append(f"{cell[0]}/{cell[1]}")
        layouts.add(source.layout)
        names.setdefault(source.names.text.tobytes(), []).append(source.name)
        asked.append((source, chosen(len(source), CELL_SAMPLE, deep)))
        progress("imagenet-c cells", done + 1, len(CELLS))
    yield Finding("imagenet-c", "ok", f"{place}: {some(sorted(layouts), 5)}, {len(cells)} cells.")
    for (level, message), where in said.items():
        yield Finding("imagenet-c", level, f"In {some(where)}: {message}")
    if len(names) > 1:
        rare = min(names.values(), key=len)
        yield Finding("imagenet-c", "warning", f"Not all cells have the same images: {some(rare)} differ.")
    yield from decoded("imagenet-c", asked, deep, progress, side=SIZE)


def render(findings: Sequence[Finding]) -> Table:
    """The findings as a table."""
    table = Table("set", "", "finding", show_edge=False)
    for finding in findings:
        color = _COLORS[finding.level]
        table.add_row(finding.set, f"[{color}]{finding.level}[/]", finding.message.replace("[", r"\["))
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; 1 if any is an error, 2 after one line about a wrong command."""
    return COMMAND.run(DoctorOptions, argv, _run)


def _run(options: DoctorOptions) -> int:
    with bars() as progress:
        findings = diagnose(
            options.data_root, data=options.data, sets=options.sets, deep=options.deep, progress=progress
        )
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        console = Console(width=None if sys.stdout.isatty() else cli.TABLE_WIDTH)
        console.print(render(findings), highlight=False)
    return int(any(finding.level == "error" for finding in findings))


if __name__ == "__main__":
    raise SystemExit(main())
