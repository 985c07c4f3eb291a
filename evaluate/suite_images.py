"""Your own labelled pictures as a suite: classification of a split, its corruptions, and neighbours in training images.

    suite = images_suite("folder:my-pictures", labels=engine.info.labels)

Specs are those of training (``docs/data.md``): folder:, tar:, wds:, hfds:.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.artifact import canonical_json
from digpt.data.images import ImageSource, open_images
from digpt.errors import ConfigError, DataError, OtherClassesError
from evaluate.suite import Cell, KnnView, SetBlock, Subset, Suite, View, fingerprint_of
from evaluate.suite_emoji import TOP, Neighbours
from evaluate.sweep import INTERVAL, Sweep, sweep_cells

_FEATURES = (
    "Those are the outputs of the model's head. What its features tell apart of other classes is asked by evaluate.knn "
    "and evaluate.linear_probe; train.finetune gives it a head for them."
)
_TRAINED = "Neighbours are training images, so each class needs some."


def images_suite(
    spec: str,
    *,
    labels: Sequence[str] | None = None,
    split: str = "val",
    knn: Neighbours | None = None,
    sweep: Sweep | None = None,
    subset: Subset | None = None,
    templates: tuple[str, ...] | None = None,
) -> Suite:
    """Ask for the classes of a split. ``labels`` are those of a linear head; without, the data name their classes.

    Neighbours vote about the classes of the data, whichever a head tells apart.

    Raises:
        DataError: data that cannot be opened, classes that nothing names, or a label that is none of them.
        ConfigError: k exceeds the training images.
    """
    subset = subset or Subset()
    name = name_of(spec)
    training = None if knn is None else open_images(spec, "train")  # its own classes, whatever a head tells apart
    known = labels if training is None else training.classes
    try:
        source = open_images(spec, split, whole=True, classes=known)
    except OtherClassesError as error:
        raise DataError(f"{error} {_FEATURES if training is None else _TRAINED}") from None
    classes = source.classes or tuple(known or labels or ())  # shards without names are numbered as the head is
    if not classes:
        raise DataError(
            f"{spec} does not name its classes: put the images into a folder per class, or a classes.txt beside the "
            "shards (docs/data.md)."
        )
    block, views = SetBlock(), []
    clean, targets = _cell(name, split, source, len(classes), subset, block, knn is not None)
    cells = {clean.id: clean}
    rows = np.arange(len(clean), dtype=np.int64)
    view = View(name, split, clean.id, rows, targets)
    if knn is None:
        views.append(view)
    if sweep is not None:
        for cell, corrupted in sweep_cells(clean, view, sweep, seed=subset.seed):
            cells[cell.id] = cell
            views.append(corrupted)
    neighbours: list[KnnView] = []
    if knn is not None and training is not None:
        if training.fingerprint == source.fingerprint:
            raise DataError(f"{spec} has no splits, so that training images would be asked: make train/ and {split}/.")
        train, found = _cell(name, "train", training, len(classes), Subset(), block, True)
        if max(knn.k) > len(train):
            raise ConfigError(f"k={max(knn.k)} exceeds the {len(train)} training images; give a smaller --k.")
        cells[train.id] = train
        everything = np.arange(len(train), dtype=np.int64)
        options: dict[str, Any] = {"ks": knn.k, "temperature": knn.temperature, "n_classes": len(classes)}
        neighbours.append(KnnView(name, split, clean.id, rows, targets, train.id, everything, found, **options))
    return Suite(
        name=name,
        class_names=tuple(word.replace("_", " ") for word in classes),
        class_ids=classes,
        cells=tuple(cells.values()),
        views=(*views, *neighbours),
        protocol=_protocol(name, split, classes, block, sweep, knn, subset),
        templates=templates,
    )


def name_of(spec: str) -> str:
    """What results call a data set: the last part of its path."""
    return PurePath(spec.partition(":")[2] or spec).name or spec


def _cell(
    name: str, split: str, source: ImageSource, classes: int, subset: Subset, block: SetBlock, neighbours: bool
) -> tuple[Cell, NDArray[np.int64]]:
    labels = labels_of(source, classes)
    keys = [source.sample_name(index) for index in range(len(source))]
    rows = subset.choose(keys, labels)
    kept = tuple(keys[row] for row in rows)
    fingerprint = fingerprint_of(source.fingerprint, kept)
    block.add(name, split, len(kept), fingerprint)
    cell = Cell(f"{name}/{split}", source, rows, kept, fingerprint, logits=not neighbours, embeddings=neighbours)
    return cell, labels[rows]


def labels_of(source: ImageSource, classes: int) -> NDArray[np.int64]:
    """All labels of a source, int64 ``[N]`` in ``0..classes-1``; read from the samples where only these tell.

    Raises:
        DataError: a sample without label, or with one that is no class; it is named.
    """
    labels = source.labels
    if labels is None:
        labels = np.array([source.label(index) for index in range(len(source))], dtype=np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"{source.sample_name(int(wrong[0]))} has the label {labels[wrong[0]]}, but the {classes:,} classes are "
            f"numbered from 0 to {classes - 1} ({len(wrong):,} such images): correct the labels, or give the model "
            "or classes.txt that they belong to."
        )
    return labels


def _protocol(
    name: str,
    split: str,
    classes: Sequence[str],
    block: SetBlock,
    sweep: Sweep | None,
    knn: Neighbours | None,
    subset: Subset,
) -> dict[str, Any]:
    protocol: dict[str, Any] = {
        "name": "images",
        "version": 1,
        "sets": block.lines,
        **subset.describe(),
        "preprocess": "the model's own",
        "interval": {**INTERVAL, "groups": "images"},
        "classification": {
            "classes": len(classes),
            "classes_sha256": hashlib.sha256(canonical_json(list(classes))).hexdigest(),
            "top": list(TOP),
            "ece_bins": 15,
        },
    }
    if sweep is not None:
        protocol["corruptions"] = {"of": f"{name}/{split}", **sweep.describe()}
    if knn is not None:
        protocol["knn"] = {"reference": f"{name}/train", "k": list(knn.k), "temperature": knn.temperature}
    return protocol
