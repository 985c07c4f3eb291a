"""Images with masks whose right answers are known, and a model that finds in an image what is painted there; for tests.

    write_ade20k(tmp_path, {"a": (prediction, label)})
    model = painted_model(ADE20K_CLASSES, crop=32)

An image's red channel is the class that `Painted` gives each pixel, so that a test chooses every prediction. Images
whose short side is the crop, and the long one at most four times as much, are not resized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from digpt.data.ade20k import ADE20K_FOLDER
from digpt.results import ModelRef
from digpt.runtime.fake import FakeRuntime
from evaluate.segment_model import CLASSIFIER, SegmentModel

Pixels = NDArray[np.uint8]
Pair = tuple[Pixels, Pixels]  # prediction and label, [H,W]


@dataclass
class Painted:
    """Logits 1 for the class that red names, modulo K, and 0 for all others; ``images`` counts what was asked.

    ``before`` is called with that count at each call, and may raise.
    """

    classes: int
    before: Callable[[int], None] | None = None
    images: int = 0

    def pixel_logits(self, images: Tensor) -> Tensor:
        """uint8 ``[B,H,W,3]`` -> float32 ``[B,K,H,W]``."""
        if self.before is not None:
            self.before(self.images)
        self.images += len(images)
        return F.one_hot(images[..., 0].long() % self.classes, self.classes).permute(0, 3, 1, 2).float()


def painted_model(classes: Sequence[str], crop: int = 32, **ref: Any) -> SegmentModel:
    """A model of `Painted`; ``ref`` replaces fields of its `ModelRef`."""
    known = ModelRef.of(FakeRuntime(text=False).info, CLASSIFIER)
    return SegmentModel(replace(known, **ref), tuple(classes), crop, Painted(len(classes)))


def write_pairs(images: Path, masks: Path, pairs: Mapping[str, Pair]) -> None:
    """Write each pair as ``NAME.png`` in both folders, with the labels as they are.

    Images are not compressed, so that those of one shape have one size in bytes, whatever they show.
    """
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for name, (prediction, label) in pairs.items():
        picture = np.stack([prediction, np.full_like(prediction, 90), np.full_like(prediction, 200)], axis=-1)
        Image.fromarray(picture).save(images / f"{name}.png", compress_level=0)
        Image.fromarray(label).save(masks / f"{name}.png")


def write_ade20k(root: Path, pairs: Mapping[str, Pair], split: str = "validation") -> Path:
    """Write a split in ADE20K's layout, whose files count from 1: 255 becomes 0, all others one more."""
    raw = {name: (shown, (label.astype(np.int64) + 1).astype(np.uint8)) for name, (shown, label) in pairs.items()}
    folder = root / ADE20K_FOLDER
    write_pairs(folder / "images" / split, folder / "annotations" / split, raw)
    return folder


def write_masks(root: Path, pairs: Mapping[str, Pair], classes: Sequence[str], split: str = "val") -> Path:
    """Write a split of ``masks:ROOT``, with its ``classes.txt``."""
    write_pairs(root / "images" / split, root / "masks" / split, pairs)
    (root / "classes.txt").write_text("\n".join(classes), encoding="utf-8")
    return root
