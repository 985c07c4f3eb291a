"""Images with masks as a suite: ADE20K, folders of image and mask files, or the miniature's scenes; and the protocol.

suite, inference = mask_suite(model, MaskData("ade20k:data/ADEChallengeData2016"))
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.data.ade20k import ADE20K_COUNTS, IGNORED, MaskSource, open_masks
from digpt.data.emoji import EmojiSet
from digpt.data.scenes import SUBGROUPS, SceneSet
from digpt.data.splits import spellings
from digpt.files import canonical_json
from digpt.segment_inference import MULTI_SCALE, Mode, SegmentInference
from evaluate.mask_data import MaskData
from evaluate.segment_model import SegmentModel, refuse_other_classes
from evaluate.suite import Cell, MaskView, SetBlock, Suite, fingerprint_of
from evaluate.sweep import INTERVAL

SHARD = 32  # images: slide inference takes seconds for each
SCENE_SPLITS, SCENES, SCENE_SEED = ("val", "flat", "contrast"), 200, 0  # of the miniature; so many scenes per split


@dataclass(frozen=True)
class Views:
    """How each image is looked at; ``mode`` None slides windows over images, and takes the scenes whole."""

    mode: Mode | None = None
    multi_scale: bool = False
    flip: bool = False

    def inference(self, crop: int, scenes: bool) -> SegmentInference:
        """The protocol of a model of ``crop`` pixels; the scenes have the crop's size and stay as they are."""
        usual = SegmentInference.for_crop(crop)
        return replace(
            usual,
            mode=self.mode or ("whole" if scenes else "slide"),
            scale=None if scenes else usual.scale,
            ratios=MULTI_SCALE if self.multi_scale else (1.0,),
            flip=self.flip,
        )


@dataclass(frozen=True)
class MaskImages:
    """Images with masks as a cell's source."""

    masks: MaskSource

    def __len__(self) -> int:
        return len(self.masks)

    def read(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """The image alone, uint8 ``[H,W,3]``; what stands for its label is 0."""
        return self.masks.pixels(index)[0], 0


def mask_suite(model: SegmentModel, data: MaskData, views: Views | None = None) -> tuple[Suite, SegmentInference]:
    """What is asked, and how images are segmented.

    Raises:
        DataError: data that cannot be opened.
        CapabilityError: the model was trained on other classes.
    """
    name, sources = _sources(model, data)
    for source in sources.values():
        refuse_other_classes(model, source.classes, source.name)
    scenes = data.spec is None
    inference = (views or Views()).inference(model.crop, scenes)
    inference = replace(inference, batch=min(inference.batch, model.max_batch or inference.batch))
    block, cells = SetBlock(), []
    for split, source in sources.items():
        keys = [source.sample_name(index) for index in range(len(source))]
        rows = data.subset.choose(keys, np.zeros(len(keys), np.int64))
        kept = tuple(keys[row] for row in rows)
        fingerprint = fingerprint_of(source.fingerprint, kept)
        block.add(name, split, len(kept), fingerprint)
        cells.append(Cell(f"{name}/{split}", MaskImages(source), rows, kept, fingerprint, logits=False))
    first = next(iter(sources.values()))
    protocol = {
        "name": _kind(data),
        "version": 1,
        "sets": block.lines,
        **data.subset.describe(),
        "interval": {**INTERVAL, "groups": "images"},
        "segmentation": _described(inference, first),
    }
    if scenes:
        protocol["scenes"] = {"size": model.crop, "count": SCENES, "seed": SCENE_SEED}
    suite = Suite(
        name=name,
        class_names=model.classes,
        cells=tuple(cells),
        views=tuple(MaskView(name, split, f"{name}/{split}") for split in sources),
        protocol=protocol,
        notes=tuple(_notes(data, sources)),
        shard=SHARD,
    )
    return suite, inference


def _kind(data: MaskData) -> str:
    return "scenes" if data.spec is None else data.spec.partition(":")[0]


def _sources(model: SegmentModel, data: MaskData) -> tuple[str, dict[str, MaskSource]]:
    """The name of the data set and its splits."""
    if data.spec is None:
        known = max(2, min(len(model.classes), len(SUBGROUPS) + 1))  # a model of fewer classes knows the first of them
        emoji, splits = EmojiSet.load(), SCENE_SPLITS if data.split is None else (data.split,)
        options: dict[str, Any] = {"size": model.crop, "count": SCENES, "seed": SCENE_SEED, "n_classes": known}
        return "scenes", {split: SceneSet(emoji, split, **options) for split in splits}
    kind, _, path = data.spec.partition(":")
    split = data.split or "val"
    if kind == "ade20k":
        split = next((name for name in ADE20K_COUNTS if split in spellings(name)), split)
        return kind, {split: open_masks(data.spec, split)}
    # Masks without a list of names have the model's, in its order.
    unnamed = None if (Path(path) / "classes.txt").is_file() else model.classes
    zero = model.reduce_zero if data.reduce_zero is None else data.reduce_zero
    name = PurePath(path).name or kind
    return name, {split: open_masks(data.spec, split, reduce_zero=zero, whole=True, classes=unnamed)}


def _described(inference: SegmentInference, source: MaskSource) -> dict[str, Any]:
    """JSON values for the protocol: all of the inference that changes figures, and of the labels."""
    return {
        "classes": len(source.classes),
        "classes_sha256": hashlib.sha256(canonical_json(list(source.classes))).hexdigest(),
        "reduce_zero": source.reduce_zero,
        "ignored": IGNORED,
        "inference": inference.mode,
        # By the model's crop, so that models of different crops are asked the same and can be compared.
        "stride": "341/512 of the crop" if inference.mode == "slide" else None,
        "scale": None if inference.scale is None else "(4 x crop, crop)",
        "ratios": list(inference.ratios),
        "flip": inference.flip,
        "miou": "intersections and unions summed over the set, then the mean over classes with a union",
    }


def _notes(data: MaskData, sources: dict[str, MaskSource]) -> Sequence[str]:
    """What is unusual about the data, in words."""
    if _kind(data) != "ade20k":
        return ()
    return [
        f"{source.name} holds {len(source):,} images instead of {ADE20K_COUNTS[split]:,}: the figures do not compare "
        "with published ones"
        for split, source in sources.items()
        if len(source) != ADE20K_COUNTS[split]
    ]
