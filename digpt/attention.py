"""Where a plain ViT looks: the attention by which the features of a picture are gathered from its patches.

>>> maps = attention_maps(model.encoder, normalised)          # [B, heads, H, W]; None of encoders that are no plain ViT

A class token gathers by its attention in the last block, and an attention pool by its own. Where the patches' tokens
are averaged, it is the mean of their attention in the last block. Fused attention keeps no weights, so they are
computed once more from what it was given.

Shapes: B batch, H x W patch grid, N tokens, Q queries, C encoder width.
"""

from __future__ import annotations

import math
from typing import Any

from open_clip.transformer import VisionTransformer as OpenClipTransformer
from timm.layers import Attention, AttentionPoolLatent
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


def attention_maps(encoder: Any, normalised: Tensor) -> Tensor | None:
    """Normalised ``[B,3,h,w]``, square -> ``[B,heads,H,W]``: the share of each head's attention that a patch has.

    What the shares of a head lack to 1 goes to class and register tokens. ``encoder`` is a ViT of timm's or
    open_clip's, or open_clip's wrapper around timm's; None of anything else.
    """
    encoder = getattr(encoder, "trunk", encoder)
    gathering = _gathering(encoder)
    if gathering is None:
        return None
    attention, queries, prefix = gathering
    given: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    try:
        encoder(normalised)
    finally:
        hook.remove()
    shares = attention_weights(attention, given[0])[:, :, queries, prefix:].mean(dim=2)
    return shares.unflatten(-1, (math.isqrt(shares.shape[-1]), -1))


def attention_weights(attention: Any, tokens: Tensor) -> Tensor:
    """The weights by which an attention, given ``tokens`` ``[B,N,C]``, mixes them: ``[B,heads,Q,N]``, rows of sum 1."""
    if isinstance(attention, nn.MultiheadAttention):
        weights: Tensor = attention(tokens, tokens, tokens, average_attn_weights=False)[1]
        return weights
    heads = (attention.num_heads, attention.head_dim)
    if isinstance(attention, Attention):
        q, k, _ = attention.qkv(tokens).unflatten(-1, (3, *heads)).permute(2, 0, 3, 1, 4)
    else:  # a pool, whose queries are learned
        tokens = tokens if attention.pos_embed is None else tokens + attention.pos_embed
        q = attention.q(attention.latent).unflatten(-1, heads).transpose(1, 2)
        k = attention.kv(tokens).unflatten(-1, (2, *heads))[:, :, 0].transpose(1, 2)
    logits = attention.q_norm(q) * attention.scale @ attention.k_norm(k).transpose(-2, -1)
    return logits.softmax(dim=-1)


def _gathering(encoder: Any) -> tuple[nn.Module, slice, int] | None:
    """The attention of which the pooled features are, its queries that count, and the first of its patch tokens."""
    if type(encoder) is VisionTransformer:
        prefix = int(encoder.num_prefix_tokens)
        pool, attention = encoder.attn_pool, getattr(encoder.blocks[-1], "attn", None)
        if type(pool) is AttentionPoolLatent:
            return pool, slice(1 if pool.pool == "token" else None), prefix if encoder.pool_include_prefix else 0
        averaged = encoder.global_pool == "avg" and not encoder.pool_include_prefix
        if type(attention) is Attention and pool is None and (averaged or encoder.global_pool == "token"):
            return attention, slice(1) if encoder.global_pool == "token" else slice(prefix, None), prefix
    if type(encoder) is OpenClipTransformer and encoder.attn_pool is None and encoder.pool_type in ("tok", "avg"):
        attention = getattr(encoder.transformer.resblocks[-1], "attn", None)
        if type(attention) is nn.MultiheadAttention and attention.batch_first:
            return attention, slice(1) if encoder.pool_type == "tok" else slice(1, None), 1
    return None
