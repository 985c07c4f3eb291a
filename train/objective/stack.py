"""Running repeated blocks by hand: activation checkpointing and the outputs on the way, the same for every paradigm."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from train.objective.clusters import ClusterLayout, visible_patches


class BlockStack(nn.Module):
    """A decoder: ``blocks``, run one by one through :func:`run_block` with its own ``grad_checkpointing`` switch."""

    blocks: nn.ModuleList
    grad_checkpointing: bool = False


def run_block(block: nn.Module, *arguments: Tensor, checkpointing: bool, **options: Any) -> Tensor:
    """Call ``block``; with ``checkpointing`` its activations are recomputed in the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *arguments, use_reentrant=False, **options)
    return block(*arguments, **options)


def run_encoder(
    encoder: VisionTransformer, tokens: Tensor, mask: Tensor | None = None, keep: tuple[int, ...] = ()
) -> list[Tensor]:
    """Run the blocks up to the last of ``keep`` (1-based; empty: the last block) -> outputs of those in ``keep``."""
    keep = keep or (len(encoder.blocks),)
    outputs = []
    for number, block in enumerate(encoder.blocks[: keep[-1]], start=1):
        tokens = run_block(block, tokens, checkpointing=encoder.grad_checkpointing, attn_mask=mask)
        if number in keep:
            outputs.append(tokens)
    return outputs


def embed_visible(encoder: VisionTransformer, images: Tensor, layout: ClusterLayout, visible: Tensor) -> Tensor:
    """Embed the ``visible`` clusters ``[B,M]`` only, with positions -> ``[B, M*S + 1, C]``, class token LAST."""
    projection = encoder.patch_embed.proj
    assert encoder.pos_embed is not None and encoder.cls_token is not None  # checked by Paradigm
    pixels = visible_patches(images, layout, visible)
    tokens = F.linear(pixels, projection.weight.flatten(1), projection.bias)  # [B, M*S, C]
    positions = layout.to_clusters(encoder.pos_embed[:, 1:])[0]  # [K, S, C]
    tokens = tokens + positions[visible].flatten(1, 2)
    class_token = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(images), -1, -1)
    return encoder.pos_drop(torch.cat([tokens, class_token.to(tokens.dtype)], dim=1))
