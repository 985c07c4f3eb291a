"""Reads the checkpoints the D-iGPT authors released (``.pth``): pretrained ones with decoders, and finetuned ones.

Nothing in such a file says how the encoder is built, so its shapes do. Names are timm's except for the decoders
(``ar_*`` Gen, ``kd_*`` Dis), which are kept as they are in the group ``decoders``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo
from torch import Tensor

from digpt.artifact import FORMAT, Checkpoint, load_document, read_checkpoint
from digpt.errors import CheckpointError
from digpt.preprocess import Preprocess

_DECODER_PREFIXES = ("ar_", "kd_", "decoder_", "mask")
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # ViT-Ti, S, B, L, H
_TIMM_NAMES = {
    192: "vit_tiny_patch16_224",
    384: "vit_small_patch16_224",
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
    1280: "vit_huge_patch14_224",
}
_IMAGENET_SUBSETS = {1000: "imagenet-1k", 21841: "imagenet-22k"}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_authors(path: Path) -> Checkpoint:
    """Read a released ``.pth``; ``argparse.Namespace`` is the only Python type that is unpickled.

    Raises:
        CheckpointError: not their layout, damaged, or a width whose number of heads is unknown.
    """
    document = load_document(path, allowed=(argparse.Namespace,))
    if isinstance(document, dict) and document.get("format") == FORMAT:
        return read_checkpoint(path)
    return authors_checkpoint(document, path)


def authors_checkpoint(document: Any, path: Path) -> Checkpoint:
    """Convert the content of a released file (``{"model": state_dict, ...}`` or a bare state_dict)."""
    state = document.get("model", document) if isinstance(document, dict) else None
    required = ("patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.0.attn.qkv.weight")
    if not isinstance(state, dict) or any(name not in state for name in required):
        raise CheckpointError(
            f"{path} has not the layout of the D-iGPT authors' checkpoints ({', '.join(required)}). "
            f"Weights of timm load as timm:NAME@{path.name}."
        )
    weights: dict[str, dict[str, Tensor]] = {"encoder": {}, "head": {}, "decoders": {}}
    for name, tensor in state.items():
        if name.startswith("head."):
            weights["head"][name.removeprefix("head.")] = tensor.float()
        else:
            group = "decoders" if name.startswith(_DECODER_PREFIXES) else "encoder"
            weights[group][name] = tensor.float()
    encoder = _encoder_config(weights["encoder"], path)
    head = weights["head"].get("weight")
    labels = None if head is None else _labels(int(head.shape[0]))
    config = {
        "architecture": "timm",
        "encoder": encoder,
        "preprocess": _preprocess(encoder["img_size"]).to_dict(),
        "pooling": encoder["global_pool"],
        "head": None if head is None else {"type": "linear", "in": encoder["embed_dim"], "out": int(head.shape[0])},
        "labels": labels,
        "objective": {"paradigm": "digpt", "fidelity": "official"} if weights["decoders"] else None,
    }
    present = {group: named for group, named in weights.items() if named}
    return Checkpoint(config, present, {"source": "authors' release", "file": path.name})


def _encoder_config(encoder: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """The ``timm.create_model`` arguments, from the shapes."""
    width, _, patch, _ = encoder["patch_embed.proj.weight"].shape
    if width not in _HEADS and width % 64:
        raise CheckpointError(f"{path}: the number of attention heads is unknown for width {width}.")
    side = math.isqrt(encoder["pos_embed"].shape[1] - 1)
    if side * side != encoder["pos_embed"].shape[1] - 1:
        raise CheckpointError(f"{path}: {encoder['pos_embed'].shape[1] - 1} positions are no square grid.")
    fc_norm, norm = "fc_norm.weight" in encoder, "norm.weight" in encoder
    return {
        "model_name": _TIMM_NAMES.get(width, _TIMM_NAMES[768]),
        "img_size": side * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": 1 + max(int(name.split(".")[1]) for name in encoder if name.startswith("blocks.")),
        "num_heads": _HEADS.get(width, width // 64),
        "num_classes": 0,
        "qkv_bias": "blocks.0.attn.qkv.bias" in encoder,
        # A pretraining encoder has no norm at the end; with `norm` the class token is read, else patches are averaged.
        "global_pool": "token" if norm else "avg",
        "final_norm": norm or fc_norm,
        "fc_norm": fc_norm,
    }


def _labels(count: int) -> list[str] | None:
    if count not in _IMAGENET_SUBSETS:
        return None
    info = ImageNetInfo(_IMAGENET_SUBSETS[count])
    return [info.index_to_description(index) for index in range(count)]


def _preprocess(size: int) -> Preprocess:
    """ImageNet statistics and the usual 256/224 crop, read as torchvision's ``ImageFolder`` reads images."""
    return Preprocess(size=size, crop_pct=224 / 256, mean=_MEAN, std=_STD, alpha="drop", exif=False)
