"""The decoders: learned [Gen] / [Dis] queries that read the encoder by cross-attention (paper, section 3.3).

Shapes: B batch, N = (K-1)*S + 1 tokens (class token last), C encoder width, D decoder width, L decoder layers,
T teacher width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from digpt.encoder import init_linear
from digpt.errors import ConfigError
from train.objective.stack import BlockStack, run_block


class CrossAttention(nn.Module):
    """Multi-head attention of queries ``[B,N,D]`` over keys/values ``[B,N,D]`` under a boolean mask ``[N,N]``."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        batch, _, dim = query.shape
        q = self.q(query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, N, D/heads]
        kv = self.kv(memory).reshape(batch, memory.shape[1], 2, self.num_heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(attended.transpose(1, 2).reshape(batch, -1, dim))


class DecoderBlock(nn.Module):
    """Pre-norm self-attention (optional), cross-attention and MLP; query and key/value norms are separate.

    The paper's text describes neither self-attention nor a second key/value norm (``self_attention=False``).
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, eps: float, self_attention: bool) -> None:
        super().__init__()
        if self_attention:
            self.norm1 = nn.LayerNorm(dim, eps=eps)
            self.attn1 = Attention(dim, num_heads=num_heads, qkv_bias=True)
            self.norm2_2: nn.Module = nn.LayerNorm(dim, eps=eps)
        else:
            self.norm2_2 = nn.Identity()
        self.self_attention = self_attention
        self.norm2_1 = nn.LayerNorm(dim, eps=eps)
        self.attn2 = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        if self.self_attention:
            query = query + self.attn1(self.norm1(query), attn_mask=mask)
        query = query + self.attn2(self.norm2_1(query), self.norm2_2(memory), mask)
        return query + self.mlp(self.norm2(query))


class TapProjection(nn.Module):
    """Norm each tapped block output, concatenate, project: taps x ``[B,N,C]`` -> L x ``[B,N,D]``.

    The projection ``[B,N,L*D]`` is read as ``[B,N,D,L]``: the decoder layer is the FASTEST axis. With
    ``shared_norm`` all taps share one LayerNorm under several names, as in the released code.
    """

    def __init__(self, width: int, taps: int, dim: int, layers: int, eps: float, shared_norm: bool) -> None:
        super().__init__()
        first = nn.LayerNorm(width, eps=eps)
        others = [first if shared_norm else nn.LayerNorm(width, eps=eps) for _ in range(taps - 1)]
        self.norms = nn.ModuleList([first, *others])
        self.proj = nn.Linear(taps * width, layers * dim)
        self.layers = layers

    def forward(self, taps: list[Tensor]) -> list[Tensor]:
        normed = [norm(tap) for norm, tap in zip(self.norms, taps, strict=True)]
        return list(self.proj(torch.cat(normed, dim=-1)).unflatten(-1, (-1, self.layers)).unbind(-1))


class LastProjection(nn.Module):
    """The paper's text: one norm and one linear layer on the last block's output, the same for every layer."""

    def __init__(self, width: int, dim: int, layers: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.proj = nn.Linear(width, dim)
        self.layers = layers

    def forward(self, taps: list[Tensor]) -> list[Tensor]:
        return [self.proj(self.norm(taps[-1]))] * self.layers


class Decoder(BlockStack):
    """Queries plus tapped encoder outputs to predictions ``[B,N,T]``, T the width of the targets' space."""

    def __init__(
        self,
        memory: TapProjection | LastProjection,
        dim: int,
        num_heads: int,
        depth: int,
        out_width: int,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        self_attention: bool = True,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"decoder_heads={num_heads} does not divide decoder_width={dim}.")
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        self.memory = memory
        self.blocks = nn.ModuleList(DecoderBlock(dim, num_heads, mlp_ratio, eps, self_attention) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.pred = nn.Linear(dim, out_width)
        init_linear(self)
        nn.init.normal_(self.query, std=0.02)

    def forward(self, taps: list[Tensor], positions: Tensor, mask: Tensor) -> Tensor:
        """``positions`` ``[B, N-1, D]`` of the patches to predict; the class query carries the zero position."""
        query = self.query + F.pad(positions, (0, 0, 0, 1))  # [B, N, D]
        for block, memory in zip(self.blocks, self.memory(taps), strict=True):
            query = run_block(block, query, memory, mask, checkpointing=self.grad_checkpointing)
        return self.pred(self.norm(query))


class DirectHead(nn.Module):
    """Feature distillation straight on the encoder output: one linear layer, no queries (paper, Table 9)."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.pred = nn.Linear(width, out_width)
        init_linear(self)

    def forward(self, taps: list[Tensor], positions: Tensor, mask: Tensor) -> Tensor:
        """The last tap ``[B,N,C]`` -> predictions ``[B,N,T]`` of the same tokens."""
        return self.pred(taps[-1])
