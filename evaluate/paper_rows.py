"""Published rows that stand beside one's own: Tables 1, 2 and 4 of the D-iGPT paper, and figures of others.

Values are percent as printed, never rounded again. A value of None is a dash in the paper; a key that is absent could
not be read from the text version of the paper (three mIoU of Table 1) or does not apply. The paper is not consistent
about BEiT-B (84.0 in Table 1, 83.2 in Table 2); both stand as printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BASE, LARGE = "Base-size models (ViT-B)", "Large-size models (ViT-L)"


@dataclass(frozen=True)
class Published:
    """One row. ``details`` are its columns of text, ``values`` percent by column."""

    name: str
    group: str = ""
    details: tuple[str, ...] = ()
    values: Mapping[str, float | None] = field(default_factory=dict)


def _table_1(group: str, name: str, epochs: int, teacher: str, top1: float, *miou: float | None) -> Published:
    values: dict[str, float | None] = {"imagenet": top1}
    if miou:
        values["ade20k"] = miou[0]
    return Published(name, group, (str(epochs), teacher), values)


def _table_2(group: str, name: str, *values: float) -> Published:
    return Published(name, group, values=dict(zip(TABLE_2_COLUMNS, values, strict=True)))


def _zero_shot(name: str, model: str, data: str, samples: str, top1: float) -> Published:
    return Published(name, details=(model, data, samples), values={"imagenet": top1})


TABLE_1 = (
    _table_1(BASE, "DeiT", 300, "Label", 81.2, 47.2),
    _table_1(BASE, "SdAE", 300, "EMA", 84.1, 48.6),
    _table_1(BASE, "PeCo", 300, "VQGAN", 84.1, 46.7),
    _table_1(BASE, "TinyMIM", 300, "MAE", 85.0, 52.2),
    _table_1(BASE, "FD", 300, "CLIP", 84.8, None),
    _table_1(BASE, "BEiTv2", 300, "CLIP+VQGAN", 85.0, 52.7),
    _table_1(BASE, "BEiT", 800, "DALLE", 84.0),
    _table_1(BASE, "MAE", 1600, "Pixel", 83.6, 48.1),
    _table_1(BASE, "Randsac", 1600, "Pixel", 83.7),
    _table_1(BASE, "PeCo", 800, "VQGAN", 84.5, 48.5),
    _table_1(BASE, "data2vec", 800, "EMA", 84.2, None),
    _table_1(BASE, "SIM", 1600, "EMA", 83.8, None),
    _table_1(BASE, "iBOT", 1600, "EMA", 84.0, None),
    _table_1(BASE, "MaskFeat", 1600, "HOG", 84.0, None),
    _table_1(BASE, "BEiTv2", 1600, "CLIP+VQGAN", 85.5, 53.1),
    _table_1(BASE, "DeepMIM", 1600, "CLIP", 85.6, 53.1),
    _table_1(BASE, "MILAN", 1600, "CLIP", 85.6, None),
    _table_1(BASE, "EVA", 800, "CLIP", 85.5, 53.3),
    _table_1(BASE, "D-iGPT", 300, "CLIP", 86.2, 53.8),
    _table_1(LARGE, "BEiTv2", 300, "CLIP+VQGAN", 86.6, 55.0),
    _table_1(LARGE, "BEiT", 800, "DALLE", 85.2),
    _table_1(LARGE, "MAE", 1600, "Pixel", 85.9, 53.6),
    _table_1(LARGE, "PeCo", 800, "VQGAN", 86.5, None),
    _table_1(LARGE, "iBOT", 1600, "EMA", 84.8, None),
    _table_1(LARGE, "MaskFeat", 1600, "HOG", 85.7, None),
    _table_1(LARGE, "BEiTv2", 1600, "CLIP+VQGAN", 87.3, 56.7),
    _table_1(LARGE, "MILAN", 1600, "CLIP", 86.8, None),
    _table_1(LARGE, "D-iGPT", 300, "CLIP", 87.8, 57.3),
)

# "paper-c" is the paper's IN-Corruption column, whose quantity it does not name: evaluate.tables says what is known.
TABLE_2_COLUMNS = (
    "imagenet",
    "imagenet-v2",
    "imagenet-real",
    "imagenet-a",
    "imagenet-r",
    "paper-c",
    "imagenet-sketch",
)
TABLE_2 = (
    _table_2(BASE, "DeiT", 81.2, 70.6, 86.7, 27.9, 45.4, 36.8, 32.3),
    _table_2(BASE, "TinyMIM", 85.0, 75.3, 88.7, 43.0, 54.6, 32.7, 41.0),
    _table_2(BASE, "MAE", 83.6, 72.9, 88.1, 33.6, 50.0, 37.8, 36.4),
    _table_2(BASE, "BEiT", 83.2, 71.8, 87.9, 32.8, 49.6, 38.7, 35.1),
    _table_2(BASE, "iBOT", 84.0, 73.0, 88.2, 33.0, 51.2, 36.9, 38.7),
    _table_2(BASE, "BEiTv2", 85.5, 76.2, 89.2, 54.0, 61.7, 30.9, 45.9),
    _table_2(BASE, "D-iGPT", 86.2, 76.4, 89.6, 56.3, 64.3, 29.9, 48.5),
    _table_2(LARGE, "MAE", 85.9, 76.5, 89.4, 56.3, 61.0, 31.1, 45.6),
    _table_2(LARGE, "BEiT", 85.2, 75.1, 88.8, 55.4, 59.8, 32.0, 43.8),
    _table_2(LARGE, "iBOT", 84.8, 74.4, 87.9, 53.9, 57.1, 34.1, 42.6),
    _table_2(LARGE, "BEiTv2", 87.3, 78.3, 90.0, 68.6, 70.3, 25.4, 53.7),
    _table_2(LARGE, "D-iGPT", 87.8, 79.6, 90.4, 73.0, 80.5, 24.7, 60.3),
)
# mCE: Hendrycks and Dietterich 2019 (AlexNet by definition, ResNet-50); facebookresearch/mae, README (ViT-B).
PUBLISHED_2 = (
    Published("AlexNet (mCE's unit)", values={"mce": 100.0}),
    Published("ResNet-50 (Hendrycks and Dietterich)", values={"mce": 76.7}),
    Published("MAE ViT-B (its own repository)", values={"mce": 51.7}),
)

TABLE_4 = (
    _zero_shot("CLIPA", "ViT-L/16", "LAION-400M", "128M", 69.3),
    _zero_shot("D-iGPT", "ViT-L/16", "LAION-400M", "128M", 71.6),
    _zero_shot("OpenClip", "ViT-L/14", "LAION-400M", "1B", 75.3),
    _zero_shot("D-iGPT", "ViT-L/14", "LAION-400M", "1B", 77.1),
)
# mlfoundations/open_clip, docs/openclip_results.csv; samples seen are those of the weights' names and CLIP's paper.
PUBLISHED_4 = (
    _zero_shot("CLIP openai", "ViT-B/32", "WIT-400M", "13B", 63.32),
    _zero_shot("CLIP openai", "ViT-B/16", "WIT-400M", "13B", 68.34),
    _zero_shot("CLIP openai", "ViT-L/14", "WIT-400M", "13B", 75.54),
    _zero_shot("OpenCLIP laion400m_e32", "ViT-L/14", "LAION-400M", "13B", 72.77),
    _zero_shot("OpenCLIP laion2b_s32b_b82k", "ViT-L/14", "LAION-2B", "32B", 75.25),
)
