"""The ImageNet family as a suite: IN-1K, ReaL, V2, A, R, Sketch and C, from wherever they lie below a directory.

    suite = imagenet_suite(Path("data"), sets=ROBUSTNESS, size=224)

Layouts are found and read by `digpt.data.imagenet`; ``docs/data-evaluation.md`` shows them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.classsets import default_cache_dir
from digpt.corruptions import CORRUPTIONS, SEVERITIES
from digpt.data.imagenet import (
    available,
    class_subset,
    descriptions,
    locate,
    open_imagenet,
    real_labels,
    training_folder,
    wnids,
)
from digpt.data.imagenet_c import present_cells
from digpt.data.images import ImageSource
from digpt.errors import ConfigError, DataError, near_misses
from digpt.text import imagenet_names
from evaluate.suite import Cell, KnnView, SetBlock, Subset, Suite, View, fingerprint_of
from evaluate.suite_emoji import TOP, Neighbours
from evaluate.sweep import INTERVAL, Sweep, sweep_cells

IMAGENET = ("imagenet", "imagenet-v2", "imagenet-real")
ROBUSTNESS = (*IMAGENET, "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-c")
ZERO_SHOT = ("imagenet", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch")
RESTRICTED = ("imagenet-a", "imagenet-r")  # asked among their 200 classes
SPLIT = {"imagenet": "val", "imagenet-real": "val", "imagenet-v2": "matched-frequency"}
KNN_SETS = ("imagenet", "imagenet-v2")

_VAL_NAME = re.compile(r"ILSVRC2012_val_\d{8}")


@dataclass
class _Parts:
    """What is being put together."""

    root: Path
    subset: Subset
    cells: dict[str, Cell] = field(default_factory=dict)
    labels: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    views: list[View | KnnView] = field(default_factory=list)
    block: SetBlock = field(default_factory=SetBlock)
    notes: list[str] = field(default_factory=list)

    def cell(self, name: str, **options: Any) -> Cell:
        """The cell of a whole set, made once."""
        cell_id = f"{name}/{SPLIT.get(name, 'test')}"
        if cell_id not in self.cells:
            source = open_imagenet(name, self.root)
            self._add(cell_id, name, SPLIT.get(name, "test"), source, **options)
        return self.cells[cell_id]

    def corrupted(self, name: str, severity: int) -> Cell:
        split = f"{name}/{severity}"
        source = open_imagenet("imagenet-c", self.root, corruption=name, severity=severity, cache=_listings())
        return self._add(f"imagenet-c/{split}", "imagenet-c", split, source, cropped=True)

    def training(self) -> Cell:
        source = training_folder(self.root)
        whole = self.subset
        self.subset = Subset()
        try:
            return self._add("imagenet/train", "imagenet", "train", source, logits=False, embeddings=True)
        finally:
            self.subset = whole

    def _add(self, cell_id: str, dataset: str, split: str, source: ImageSource, **options: Any) -> Cell:
        assert source.labels is not None
        keys = [image_key(source.sample_name(index)) for index in range(len(source))]
        rows = self.subset.choose(keys, source.labels)
        if dataset == "imagenet-c":  # one order in all cells, however their tars or folders list them
            rows = rows[np.argsort([keys[row] for row in rows], kind="stable")]
        kept = tuple(keys[row] for row in rows)
        cell = Cell(cell_id, source, rows, kept, fingerprint_of(source.fingerprint, kept), **options)
        self.cells[cell_id], self.labels[cell_id] = cell, source.labels[rows]
        self.block.add(dataset, split, len(cell), cell.fingerprint)
        return cell


def _listings() -> Path:
    """Where the listings of archives are kept beside which nothing can be written."""
    return default_cache_dir().parent / "listings"


def image_key(name: str) -> str:
    """What one picture is called in every set that has it: ImageNet's validation number, else class folder and file."""
    found = _VAL_NAME.search(name)
    return found.group() if found else "/".join(name.split("/")[-2:])


def imagenet_suite(
    root: Path,
    *,
    sets: Sequence[str],
    explicit: bool = False,
    knn: Neighbours | None = None,
    sweep: Sweep | None = None,
    subset: Subset | None = None,
    templates: tuple[str, ...] | None = None,
) -> Suite:
    """Ask for the ``sets`` below ``root``; a missing one is noted, or refused where it was named (``explicit``).

    Of ImageNet-C the cells that are there are asked, named or not: a part of it has errors, but no mCE.

    With ``knn`` the neighbours among the training images are asked, and nothing else.

    Raises:
        DataError: none of the sets is there, or one is laid out in a way that cannot be read.
    """
    parts = _Parts(root, subset or Subset())
    present = _present(root, sets, explicit, parts)
    for name in present if knn is None else ():
        _ADD.get(name, _add_plain)(parts, name)
    if sweep is not None:
        clean = parts.cell("imagenet")
        base = View("imagenet", "val", clean.id, np.arange(len(clean)), parts.labels[clean.id])
        for cell, view in sweep_cells(clean, base, sweep, seed=parts.subset.seed):
            parts.cells[cell.id] = cell
            parts.views.append(view)
    if knn is not None:
        _add_neighbours(parts, knn, present)
    asked = {view.id for view in parts.views}
    if any(view.dataset == "imagenet-c" for view in parts.views) and "imagenet/val" not in asked:
        parts.notes.append("imagenet-c: no relative mCE, which needs the clean images: ask for imagenet with it")
    return Suite(
        name="imagenet",
        class_names=imagenet_names(),
        class_ids=wnids(),
        class_titles=descriptions(),
        cells=tuple(parts.cells.values()),
        views=tuple(parts.views),
        protocol=_protocol(parts, sweep, knn),
        templates=templates,
        notes=tuple(parts.notes),
    )


def _present(root: Path, sets: Sequence[str], explicit: bool, parts: _Parts) -> list[str]:
    unknown = [name for name in sets if name not in ROBUSTNESS]
    if unknown:
        close = near_misses(unknown[0], ROBUSTNESS)
        raise DataError(f"There is no set {unknown[0]!r}.{close} Valid: {', '.join(ROBUSTNESS)}.")
    there = available(root)
    missing = [name for name in sets if name not in there]
    if missing and (explicit or len(missing) == len(sets)):
        open_imagenet(missing[0], root)  # which says where it looked
        raise DataError(f"{missing[0]} is not below {root}; python -m evaluate.doctor --data-root {root} says more.")
    parts.notes += [f"{name}: not found below the data root, left out" for name in missing]
    return [name for name in sets if name in there]


def _add_plain(parts: _Parts, name: str) -> None:
    cell = parts.cell(name)
    rows = np.arange(len(cell), dtype=np.int64)
    parts.views.append(View(name, cell.id.partition("/")[2], cell.id, rows, parts.labels[cell.id]))


def _add_real(parts: _Parts, name: str) -> None:
    """ReaL: the validation images under their reassessed labels; images without any are left out."""
    cell = parts.cell("imagenet")
    real = real_labels(parts.root, cell.keys)
    rows = np.array([row for row, labels in enumerate(real.answers) if labels], dtype=np.int64)
    if not len(rows):
        raise DataError("ReaL has no label for any of the validation images chosen; choose more.")
    kept = tuple(tuple(real.answers[row]) for row in rows)
    first = np.array([labels[0] for labels in kept], dtype=np.int64)
    parts.block.add(name, "val", len(rows), f"sha256:{real.fingerprint}")
    parts.views.append(View(name, "val", cell.id, rows, first, answers=kept))


def _add_restricted(parts: _Parts, name: str) -> None:
    """A or R among its 200 classes; and the clean images of these classes, where they are there, among the same."""
    cell, classes = parts.cell(name), class_subset(name)
    rows = np.arange(len(cell), dtype=np.int64)
    parts.views.append(View(name, "test", cell.id, rows, parts.labels[cell.id], classes=classes))
    if "imagenet" in available(parts.root):
        clean = parts.cell("imagenet")
        labels = parts.labels[clean.id]
        rows = np.flatnonzero(np.isin(labels, classes)).astype(np.int64)
        if len(rows):
            parts.views.append(View("imagenet", f"val/{name}", clean.id, rows, labels[rows], classes=classes))


def _add_corruptions(parts: _Parts, name: str) -> None:
    """The cells of ImageNet-C that are there; what is missing is noted, for without it there is no mCE."""
    place = locate(name, parts.root)[0]
    cells = present_cells(place, _listings())
    if not cells:
        raise DataError(f"{place} has corruptions, but none at a severity from 1 to 5: unpack the archives anew.")
    lacking = [word for word in CORRUPTIONS if any((word, severity) not in cells for severity in SEVERITIES)]
    if lacking:
        parts.notes.append(
            f"{name}: mCE is not given, for {len(lacking)} of {len(CORRUPTIONS)} corruptions are missing or lack a "
            f"severity ({', '.join(lacking)}); the errors are those of the {len(cells)} cells that are there"
        )
    for corruption, severity in cells:
        cell = parts.corrupted(corruption, severity)
        rows = np.arange(len(cell), dtype=np.int64)
        view = View(
            name,
            f"{corruption}/{severity}",
            cell.id,
            rows,
            parts.labels[cell.id],
            corruption=(corruption, severity),
            clean="imagenet/val",
        )
        parts.views.append(view)


_ADD = {
    "imagenet-real": _add_real,
    "imagenet-a": _add_restricted,
    "imagenet-r": _add_restricted,
    "imagenet-c": _add_corruptions,
}


def _add_neighbours(parts: _Parts, knn: Neighbours, sets: Sequence[str]) -> None:
    """kNN among the training images; nothing is classified."""
    reference = parts.training()
    if max(knn.k) > len(reference):
        raise ConfigError(f"k={max(knn.k)} exceeds the {len(reference)} training images; give a smaller --k.")
    for name in sets:
        cell = parts.cell(name, logits=False, embeddings=True)
        parts.views.append(
            KnnView(
                dataset=name,
                split=SPLIT[name],
                cell=cell.id,
                rows=np.arange(len(cell), dtype=np.int64),
                labels=parts.labels[cell.id],
                reference=reference.id,
                reference_rows=np.arange(len(reference), dtype=np.int64),
                reference_labels=parts.labels[reference.id],
                ks=knn.k,
                temperature=knn.temperature,
                n_classes=len(wnids()),
            )
        )


def _protocol(parts: _Parts, sweep: Sweep | None, knn: Neighbours | None) -> dict[str, Any]:
    protocol: dict[str, Any] = {
        "name": "imagenet",
        "version": 1,
        "sets": parts.block.lines,
        **parts.subset.describe(),
        "preprocess": "the model's own; imagenet-c is cropped and never shrunk",
        "interval": {**INTERVAL, "groups": "images"},
        "classification": {
            "top": list(TOP),
            "ece_bins": 15,
            "restricted": {name: 200 for name in RESTRICTED if any(v.dataset == name for v in parts.views)},
        },
    }
    if sweep is not None:
        protocol["corruptions"] = {"of": "imagenet/val", **sweep.describe()}
    if knn is not None:
        protocol["knn"] = {"reference": "imagenet/train", "k": list(knn.k), "temperature": knn.temperature}
    return protocol
