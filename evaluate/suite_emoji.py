"""The bundled emoji set as a suite: its styles and splits, its unseen concepts, and corruptions of a new style.

What each split holds is said in ``data/emoji/README.md``. Only concepts drawn in all five styles are asked for, so that
every split shares one list of names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.artifact import canonical_json
from digpt.data.emoji import INDEX_NAME, STYLES, TRAIN_STYLES, EmojiImage, EmojiSet
from digpt.errors import ConfigError, DataError, near_misses
from digpt.neighbors import TEMPERATURE
from evaluate.suite import Cell, KnnView, SetBlock, Subset, Suite, View, fingerprint_of
from evaluate.sweep import INTERVAL, Sweep, sweep_cells

DATASET = "emoji"
SPLITS = ("seen", "val", "flat", "contrast", "unseen")
IMAGENET_LIKE = ("seen", "val", "flat")  # what `evaluate.imagenet` asks here
KNN_SPLITS = ("val", "flat", "contrast")
CORRUPTED = "flat"  # a style never trained on, with the most images and room to fall
TOP = (1, 5)


@dataclass(frozen=True)
class Neighbours:
    """kNN over subgroups: k, the vote's temperature, and the training styles whose training images are neighbours."""

    k: tuple[int, ...] = (10, 20)
    temperature: float = TEMPERATURE
    reference: tuple[str, ...] = ("noto", "twemoji")

    def __post_init__(self) -> None:
        for style in self.reference:
            if style not in TRAIN_STYLES:
                valid = ", ".join(TRAIN_STYLES)
                raise ConfigError(
                    f"Reference style {style!r} is no training style; valid: {valid}.{near_misses(style, TRAIN_STYLES)}"
                )
        if not self.reference or not self.k or min(self.k) < 1:
            raise ConfigError("kNN needs at least one reference style, and every k must be at least 1.")
        if not self.temperature > 0:
            raise ConfigError(f"temperature={self.temperature} must be above 0.")


@dataclass(frozen=True)
class EmojiFiles:
    """Images of one split as a cell's source."""

    images: Sequence[EmojiImage]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[bytes, int]:
        image = self.images[index]
        return image.encoded, image.concept


def find_emoji(root: Path | None) -> Path | None:
    """The emoji set at ``root`` or ``root/emoji``; None where there is none. No root is the bundled one."""
    if root is None:
        return None
    return next((path for path in (root, root / DATASET) if (path / INDEX_NAME).is_file()), None)


def emoji_suite(
    data: EmojiSet,
    *,
    splits: Sequence[str] = SPLITS,
    knn: Neighbours | None = None,
    sweep: Sweep | None = None,
    subset: Subset | None = None,
    templates: tuple[str, ...] | None = None,
) -> Suite:
    """Ask for classification of ``splits``, for the neighbours of `KNN_SPLITS`, and for corruptions of `CORRUPTED`.

    Raises:
        ConfigError: k exceeds the reference.
        DataError: a split without images.
    """
    if sweep is not None and CORRUPTED not in splits:
        raise ConfigError(f"Corruptions are those of {CORRUPTED}, which must be among the splits asked for.")
    subset = subset or Subset()
    named = data.five_style_indices().tolist()
    position = {concept: label for label, concept in enumerate(named)}
    unseen = np.array([position[c] for c in named if data.concepts[c].unseen], dtype=np.int64)
    block = SetBlock()
    cells: dict[str, Cell] = {}
    views: list[View | KnnView] = []

    def add_cell(split: str, *, logits: bool, embeddings: bool, whole: bool) -> Cell:
        images = [image for image in data.images(split) if image.concept in position]
        if not images:
            raise DataError(f"The emoji set has no {split} image of a concept drawn in all five styles.")
        keys = [image.key for image in images]
        labels = np.array([position[image.concept] for image in images], dtype=np.int64)
        rows = np.arange(len(images), dtype=np.int64) if whole else subset.choose(keys, labels)
        kept = tuple(keys[row] for row in rows)
        cell = Cell(
            id=f"{DATASET}/{split}",
            source=EmojiFiles(images),
            rows=rows,
            keys=kept,
            fingerprint=fingerprint_of(data.fingerprint, kept),
            logits=logits,
            embeddings=embeddings,
        )
        cells[split] = cell
        block.add(DATASET, split, len(cell), cell.fingerprint)
        return cell

    def shown(cell: Cell) -> list[EmojiImage]:
        assert isinstance(cell.source, EmojiFiles)
        return [cell.source.images[int(row)] for row in cell.rows]

    for split in dict.fromkeys([*splits, *(KNN_SPLITS if knn else ())]):
        embeddings = knn is not None and split in KNN_SPLITS
        cell = add_cell(split, logits=split in splits, embeddings=embeddings, whole=False)
        if split in splits:
            views += _classification(split, cell, shown(cell), position, unseen)
    if sweep is not None:
        source = cells[CORRUPTED]
        base = next(view for view in views if isinstance(view, View) and view.cell == source.id)
        for corrupted, view in sweep_cells(source, base, sweep, seed=subset.seed):
            cells[corrupted.id] = corrupted
            views.append(view)
    if knn is not None:
        reference = _reference_cell(data, knn)
        cells["reference"] = reference
        views += _neighbours(data, knn, cells, reference, shown)
    return Suite(
        name=DATASET,
        class_names=tuple(data.five_style_names()),
        cells=tuple(cells.values()),
        views=tuple(views),
        protocol=_protocol(data, block, splits, knn, sweep, subset, len(unseen)),
        neighbour_names=_subgroups(data),
        templates=templates,
    )


def _subgroups(data: EmojiSet) -> tuple[str, ...]:
    return tuple(sorted({concept.subgroup for concept in data.concepts}))


def _classification(
    split: str, cell: Cell, images: Sequence[EmojiImage], position: dict[int, int], unseen: NDArray[np.int64]
) -> list[View]:
    """The view of a split; ``unseen`` is asked among the unseen names alone, whole and by style."""
    labels = np.array([position[image.concept] for image in images], dtype=np.int64)
    groups = np.array([image.concept for image in images], dtype=np.int64)
    rows = np.arange(len(images), dtype=np.int64)
    classes = unseen if split == "unseen" else None
    found = [View(DATASET, split, cell.id, rows, labels, classes=classes, groups=groups)]
    if split == "unseen":
        for style in STYLES:
            chosen = np.flatnonzero([image.style == style for image in images]).astype(np.int64)
            if len(chosen):  # a small limit may leave a style without any
                name = f"unseen/{style}"
                found.append(View(DATASET, name, cell.id, chosen, labels[chosen], classes, groups[chosen]))
    return found


def _reference_cell(data: EmojiSet, knn: Neighbours) -> Cell:
    """Training images only: ``seen`` holds no unseen concept, no held-out image and no style shift.

    Always whole, with the concepts that are not drawn in all styles: they cannot be named, but have a subgroup.
    """
    images = [image for image in data.images("seen") if image.style in knn.reference]
    if max(knn.k) > len(images):
        raise ConfigError(f"k={max(knn.k)} exceeds the {len(images)} reference images.")
    keys = tuple(image.key for image in images)
    return Cell(
        id=f"{DATASET}/reference",
        source=EmojiFiles(images),
        rows=np.arange(len(images), dtype=np.int64),
        keys=keys,
        fingerprint=fingerprint_of(data.fingerprint, keys),
        logits=False,
        embeddings=True,
    )


def _neighbours(data: EmojiSet, knn: Neighbours, cells: dict[str, Cell], reference: Cell, shown: Any) -> list[KnnView]:
    subgroups = _subgroups(data)

    def labels(images: Iterable[EmojiImage]) -> NDArray[np.int64]:
        return np.array([subgroups.index(data.concepts[image.concept].subgroup) for image in images], dtype=np.int64)

    return [
        KnnView(
            dataset=DATASET,
            split=split,
            cell=cells[split].id,
            rows=np.arange(len(cells[split]), dtype=np.int64),
            labels=labels(shown(cells[split])),
            reference=reference.id,
            reference_rows=np.arange(len(reference), dtype=np.int64),
            reference_labels=labels(shown(reference)),
            ks=knn.k,
            temperature=knn.temperature,
            n_classes=len(subgroups),
            groups=np.array([image.concept for image in shown(cells[split])], dtype=np.int64),
        )
        for split in KNN_SPLITS
    ]


def _protocol(
    data: EmojiSet,
    block: SetBlock,
    splits: Sequence[str],
    knn: Neighbours | None,
    sweep: Sweep | None,
    subset: Subset,
    unseen: int,
) -> dict[str, Any]:
    names = data.five_style_names()
    protocol: dict[str, Any] = {
        "name": DATASET,
        "version": 2,
        "dataset": {"name": DATASET, "fingerprint": data.fingerprint, "concepts": "drawn in all five styles"},
        "sets": block.lines,
        **subset.describe(),
        "preprocess": "the model's own",
        "interval": {**INTERVAL, "groups": "concepts"},
    }
    if splits or sweep:
        protocol["classification"] = {
            "splits": list(splits),
            "names": len(names),
            "names_sha256": hashlib.sha256(canonical_json(names)).hexdigest(),
            "unseen_names": unseen,
            "top": list(TOP),
            "ece_bins": 15,
        }
    if sweep is not None:
        protocol["corruptions"] = {"of": f"{DATASET}/{CORRUPTED}", **sweep.describe()}
    if knn is not None:
        protocol["knn"] = {
            "splits": list(KNN_SPLITS),
            "reference": [f"seen/{style}" for style in knn.reference],
            "labels": "subgroup",
            "classes": len(_subgroups(data)),
            "k": list(knn.k),
            "temperature": knn.temperature,
        }
    return protocol
