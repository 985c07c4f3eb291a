"""How a model answers a suite's classes: by its linear head, or by the embeddings of their names.

classifier = classifier_of(engine, suite)
arrays = classifier.answer(crops, cell)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.classsets import ClassMatrixCache
from digpt.engine import Engine
from digpt.errors import CapabilityError, near_misses
from digpt.results import ModelRef
from digpt.runtime.base import RuntimeInfo
from evaluate.suite import Cell, KnnView, Suite, View


@dataclass(frozen=True)
class Classifier:
    """What is kept of a model's answers.

    ``columns`` are the head's outputs of the suite's classes ``[C]`` (None: all, in order), ``matrix`` the class matrix
    ``[C, D]`` of a text model. With neither, only neighbours can be asked.
    """

    engine: Engine
    kind: str  # "linear head", "zero-shot" or "" for neither
    n_classes: int
    columns: NDArray[np.int64] | None = None
    matrix: NDArray[np.float32] | None = None
    templates: tuple[str, ...] = ()

    def answer(self, crops: NDArray[np.uint8], cell: Cell) -> dict[str, NDArray[np.float32]]:
        """Crops uint8 ``[B,H,W,3]`` -> ``logits`` ``[B, C]`` and ``embeddings`` (unit rows) as the cell wants them."""
        arrays = {}
        if cell.logits and self.kind == "linear head":
            logits = self.engine.logits(crops, batch_size=len(crops))
            arrays["logits"] = self._chosen(logits)
        if cell.embeddings or (cell.logits and self.kind == "zero-shot"):
            arrays["embeddings"] = self.engine.embed_images(crops, batch_size=len(crops))
        return arrays

    def _chosen(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.columns is not None:
            return np.ascontiguousarray(logits[:, self.columns])
        if logits.shape[1] != self.n_classes:
            raise CapabilityError(
                f"{self.engine.info.name} has {logits.shape[1]:,} outputs without names, the data {self.n_classes:,} "
                "classes: evaluate a model whose head was trained on these classes, or one with a text tower."
            )
        return logits

    def model(self) -> dict[str, Any]:
        """The model as the store's header has it."""
        info = self.engine.info
        ref = replace(ModelRef.of(info, self.kind or None), templates=self.templates)
        zero_shot = (
            {"logit_scale": info.logit_scale, "logit_bias": info.logit_bias} if self.kind == "zero-shot" else None
        )
        return {"ref": asdict(ref), "zero_shot": zero_shot}


def classifier_of(
    engine: Engine, suite: Suite, cache: ClassMatrixCache | None = None, *, prefer_text: bool = False
) -> Classifier:
    """Choose the head where its outputs are the suite's classes, else the text tower.

    Raises:
        CapabilityError: the model has neither for these classes, and something other than neighbours is asked.
    """
    info, classes = engine.info, len(suite.class_names)
    if not any(isinstance(view, View) for view in suite.views):
        return Classifier(engine, "", classes)
    if info.head == "linear" and not (prefer_text and info.has_text):
        return Classifier(engine, "linear head", classes, columns=head_columns(info, suite))
    if info.has_text:
        templates = info.templates if suite.templates is None else suite.templates
        matrix = (
            engine.class_matrix(suite.class_names, templates)
            if cache is None
            else cache.matrix(engine, suite.class_names, templates)
        )
        return Classifier(engine, "zero-shot", classes, matrix=matrix, templates=tuple(templates))
    if any(isinstance(view, KnnView) for view in suite.views):
        return Classifier(engine, "", classes)
    raise CapabilityError(
        f"{info.name} has neither a linear head nor a text tower: measure its features with evaluate.knn or "
        "evaluate.linear_probe, or finetune it first (train.finetune)."
    )


def head_columns(info: RuntimeInfo, suite: Suite) -> NDArray[np.int64] | None:
    """The head's outputs that are the suite's classes, by id or name; None for outputs in the suite's own order.

    That order is believed of a head without labels (whose number of outputs is compared when it answers), and of one
    whose labels are, from the first to the last, the suite's ids, names, or timm's titles. Any other head is matched
    label by label, so each label must stand for one class: ImageNet has two "missile" and two "crane".

    Raises:
        CapabilityError: the head was trained on other classes, or a name that occurs twice does not tell which.
    """
    labels = info.labels
    if labels is None or tuple(labels) in (suite.class_ids, suite.class_names, suite.class_titles):
        return None
    position = {label: column for column, label in enumerate(labels)}
    matching = [names for names in (suite.class_ids, suite.class_names) if names and position.keys() >= set(names)]
    for names in matching:
        if not _twice(names) and not (_twice(labels) & set(names)):
            return np.array([position[name] for name in names], dtype=np.int64)
    if matching:
        name = sorted((_twice(matching[0]) | _twice(labels)) & set(matching[0]))[0]
        raise CapabilityError(
            f"{info.name} names its {len(labels):,} outputs, and {name!r} stands for more than one of them or of the "
            f"classes of {suite.name}: label the head with ids (WordNet ids for ImageNet), which differ."
        )
    missing = next(name for name in suite.class_names if name not in position)
    raise CapabilityError(
        f"{info.name} tells {len(labels):,} classes apart, and {missing!r} of {suite.name} is none of them."
        f"{near_misses(missing, labels)} Give the data it was trained for (--data-root or --data), or ask its "
        "features, which fit any classes: evaluate.knn."
    )


def _twice(names: Sequence[str]) -> set[str]:
    """The names that occur more than once."""
    return {name for name, times in Counter(names).items() if times > 1}


def without_classes(suite: Suite) -> Suite:
    """The part of a suite that a model without head and text tower can answer: neighbours, of whole embeddings."""
    views = tuple(view for view in suite.views if isinstance(view, KnnView))
    used = {name for view in views for name in (view.cell, view.reference)}
    cells = tuple(replace(cell, logits=False) for cell in suite.cells if cell.id in used)
    return replace(suite, views=views, cells=cells)
