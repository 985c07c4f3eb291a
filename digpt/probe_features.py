"""What linear probes read from an encoder: tokens of its last blocks, as DINOv2's linear evaluation combines them.

>>> block_features(load_model("timm:vit_base_patch16_224"), images)["cls+mean-4"].shape
(8, 3840)

Source: facebookresearch/dinov2, ``dinov2/eval/linear.py``, ``create_linear_input``: the class tokens of the last n
blocks, each through the final norm, first block first; with "+mean" followed by the mean patch token of the last
block. Shapes: B images, C encoder width, N patches, W columns of a stored row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digpt.sources import Model

LAST_BLOCKS = 4


@dataclass(frozen=True)
class _Block:
    """One block's output: ``cls`` ``[B,C]`` or None, ``mean`` ``[B,C]`` over the patch tokens, both normed."""

    cls: Tensor | None
    mean: Tensor


def block_features(model: Model, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Crops uint8 ``[B,H,W,3]`` -> the model's feature sets by name, float32 ``[B,D]`` each.

    - An encoder with a class token: ``cls-1`` (D = C), ``cls-4`` (4C), ``cls+mean-1`` (2C), ``cls+mean-4`` (5C).
    - A transformer without one: ``mean-1`` (C) and ``mean-4`` (4C), means of patch tokens, and ``pooled``, the
      model's own pooled features (those of an attention pool, where it has one).
    - Every other encoder (convolutional, hierarchical, with class-attention blocks): ``pooled`` alone.

    The number in a name is that of the blocks; an encoder of fewer than four gives what it has (``cls-2``). The final
    norm is the model's own: per token, or after pooling where the model norms there (timm's ``fc_norm``, open_clip's
    ``final_ln_after_pool``). Pretraining encoders without a final norm, and open_clip's CoCa towers, whose norm
    belongs to their attention pool, give tokens as they are.
    """
    rows, sets = block_rows(model, images)
    return {name: rows[:, columns] for name, columns in sets.items()}


def block_rows(model: Model, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], dict[str, slice]]:
    """The same sets as columns of one float32 ``[B,W]`` array: overlapping ones are stored once.

    For a class token W is 5C instead of the 12C of the four sets together. ``stored[:, columns]`` of a memmap is a
    view, which `digpt.probe.train_probes` takes. ``W`` and the columns are the same for every batch of a model.
    """
    module = model.module
    with torch.inference_mode():
        normalised = module.normalise(torch.from_numpy(images).to(module.mean.device))
        blocks = _last_blocks(module.encoder, normalised)
        if blocks and all(block.cls is not None for block in blocks):
            pieces = [block.cls for block in blocks if block.cls is not None]
            return _join([*pieces, blocks[-1].mean], _class_token_sets)
        # Models without a class token are read by a pool of their own, which is part of what they learned.
        return _join([*(block.mean for block in blocks), module.features(normalised)], _mean_sets)


def _join(
    pieces: list[Tensor], sets: Callable[[int, int, int], dict[str, slice]]
) -> tuple[NDArray[np.float32], dict[str, slice]]:
    """Pieces, one per block and a last one, as one row; ``sets`` names its columns."""
    rows = torch.cat([piece.float() for piece in pieces], dim=1).cpu().numpy()
    return rows, sets(len(pieces) - 1, pieces[0].shape[1], rows.shape[1])


def _class_token_sets(count: int, width: int, total: int) -> dict[str, slice]:
    """Columns of ``[class token of each block, first block first | mean of the last]``."""
    tokens = count * width
    return {
        "cls-1": slice(tokens - width, tokens),
        f"cls-{count}": slice(0, tokens),
        "cls+mean-1": slice(tokens - width, total),
        f"cls+mean-{count}": slice(0, total),
    }


def _mean_sets(count: int, width: int, total: int) -> dict[str, slice]:
    """Columns of ``[mean of each block, first block first | pooled]``; ``[pooled]`` without blocks."""
    if not count:
        return {"pooled": slice(0, total)}
    means = count * width
    return {"mean-1": slice(means - width, means), f"mean-{count}": slice(0, means), "pooled": slice(means, total)}


def _last_blocks(encoder: Any, normalised: Tensor) -> list[_Block]:
    """The last four blocks of a transformer, first block first; none for an encoder of another kind."""
    encoder = getattr(encoder, "trunk", encoder)  # open_clip's wrapper around a timm model
    if hasattr(encoder, "forward_head"):
        return _timm_blocks(encoder, normalised)
    return _open_clip_blocks(encoder, normalised) if hasattr(encoder, "transformer") else []


def _timm_blocks(encoder: Any, normalised: Tensor) -> list[_Block]:
    prefix = getattr(encoder, "num_prefix_tokens", None)  # class, distillation and register tokens, in this order
    if prefix is None or "return_prefix_tokens" not in signature(encoder.forward_intermediates).parameters:
        return []
    outputs = encoder.forward_intermediates(
        normalised,
        indices=min(LAST_BLOCKS, len(encoder.blocks)),
        return_prefix_tokens=prefix > 0,
        norm=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    after_pool = getattr(encoder, "fc_norm", None) or torch.nn.Identity()
    if not prefix:
        return [_Block(None, after_pool(patches.mean(dim=1))) for patches in outputs]
    has_class = getattr(encoder, "cls_token", None) is not None
    return [
        _Block(after_pool(tokens[:, 0]) if has_class else None, after_pool(patches.mean(dim=1)))
        for patches, tokens in outputs
    ]


def _open_clip_blocks(encoder: Any, normalised: Tensor) -> list[_Block]:
    """open_clip's own vision transformer, which has a class token always but may read its patches instead."""
    attention_pool = encoder.attn_pool is not None
    late = encoder.final_ln_after_pool and not attention_pool
    outputs = encoder.forward_intermediates(
        normalised,
        indices=min(LAST_BLOCKS, len(encoder.transformer.resblocks)),
        normalize_intermediates=not attention_pool and not late,
        intermediates_only=True,
        output_fmt="NLC",
        output_extra_tokens=True,
    )
    after_pool = encoder.ln_post if late else torch.nn.Identity()
    return [
        _Block(after_pool(tokens[:, 0]), after_pool(patches.mean(dim=1)))
        for patches, tokens in zip(outputs["image_intermediates"], outputs["image_intermediates_prefix"], strict=True)
    ]
