"""The D-iGPT step as one would write it down at first: what ``benchmarks.train_step`` measures our step against.

Plain torch modules in the order of the objective's description: the whole image is patchified, then regrouped, permuted
and cut; one dense additive float mask for all attention; predictions resized by interpolation; AdamW as torch sets it
up. Parameters carry the names of ``train.objective``, so both steps start from the same weights. Defaults only: random
taps, fidelities and targets other than teacher tokens are not its business.

Shapes: B batch, K clusters of S patches, N = (K-1)*S + 1 tokens (class token last), C encoder width, D decoder width,
T teacher width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from digpt.encoder import sincos_2d


@dataclass(frozen=True)
class StepShape:
    """Sizes of a step; ``taps`` are 1-based encoder blocks, ``clusters`` and ``teacher_grid`` rows and columns."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int
    decoder_depth: int
    teacher_grid: tuple[int, int]
    teacher_width: int
    taps: tuple[int, ...]
    clusters: tuple[int, int] = (2, 2)

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size


def clustered(tokens: Tensor, clusters: tuple[int, int]) -> Tensor:
    """A grid of tokens ``[B,H,W,C]`` -> clusters ``[B,K,S,C]``, raster order in and over clusters."""
    batch, height, width, channels = tokens.shape
    rows, columns = clusters
    split = tokens.reshape(batch, rows, height // rows, columns, width // columns, channels)
    return split.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1, channels)


def permuted(clusters: Tensor, permutation: Tensor) -> Tensor:
    """Reorder ``[B,K,S,C]`` by ``permutation`` ``[B,K]``."""
    return torch.gather(clusters, 1, permutation[:, :, None, None].expand_as(clusters))


def additive_mask(clusters: int, size: int) -> Tensor:
    """Float ``[N,N]``: 0 where a token may attend, minus infinity elsewhere; the class token is of the last cluster."""
    tokens = clusters * size + 1
    mask = torch.full((tokens, tokens), float("-inf"))
    for cluster in range(clusters):
        last = cluster == clusters - 1
        rows = slice(cluster * size, tokens if last else (cluster + 1) * size)
        mask[rows, : tokens if last else (cluster + 1) * size] = 0.0
    return mask


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor) -> Tensor:
    """Multi-head attention of ``[B,N,C]`` tensors under an additive mask."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
    return attended.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        return self.proj(attend(q, k, v, self.heads, mask))


class CrossAttention(nn.Module):
    """Multi-head attention of queries over the encoder's tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        k, v = self.kv(memory).chunk(2, dim=-1)
        return self.proj(attend(self.q(query), k, v, self.heads, mask))


class Mlp(nn.Module):
    """Two layers with a GELU, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class EncoderBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens), mask)
        return tokens + self.mlp(self.norm2(tokens))


class DecoderBlock(nn.Module):
    """Pre-norm self-attention, cross-attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2_1, self.norm2_2, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(4))
        self.attn1 = SelfAttention(width, heads)
        self.attn2 = CrossAttention(width, heads)
        self.mlp = Mlp(width)

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        query = query + self.attn1(self.norm1(query), mask)
        query = query + self.attn2(self.norm2_1(query), self.norm2_2(memory), mask)
        return query + self.mlp(self.norm2(query))


class Memory(nn.Module):
    """Norm every tap, concatenate, project to one key/value input per decoder layer (the fastest axis)."""

    def __init__(self, shape: StepShape) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(shape.width, eps=1e-5) for _ in shape.taps)
        self.proj = nn.Linear(len(shape.taps) * shape.width, shape.decoder_depth * shape.decoder_width)
        self.layers = shape.decoder_depth

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        normed = [norm(tap) for norm, tap in zip(self.norms, taps, strict=True)]
        projected: Tensor = self.proj(torch.cat(normed, dim=-1))
        return projected.unflatten(-1, (-1, self.layers))  # [B, N, D, layers]


class Decoder(nn.Module):
    """Gen or Dis: learned queries at the positions to predict -> teacher tokens ``[B,N,T]``."""

    def __init__(self, shape: StepShape) -> None:
        super().__init__()
        width = shape.decoder_width
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.memory = Memory(shape)
        self.blocks = nn.ModuleList(DecoderBlock(width, shape.decoder_heads) for _ in range(shape.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pred = nn.Linear(width, shape.teacher_width)

    def forward(self, taps: Sequence[Tensor], positions: Tensor, mask: Tensor) -> Tensor:
        class_query = self.query.expand(len(positions), 1, -1)
        query = torch.cat([self.query + positions, class_query], dim=1)
        memory = self.memory(taps)
        for number, block in enumerate(self.blocks):
            query = block(query, memory[..., number], mask)
        predicted: Tensor = self.pred(self.norm(query))
        return predicted


class PatchEmbed(nn.Module):
    """Patches of the whole image: ``[B,3,h,w]`` -> ``[B,H,W,C]``."""

    def __init__(self, shape: StepShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.width, shape.patch_size, shape.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).permute(0, 2, 3, 1)


class Encoder(nn.Module):
    """A plain ViT without a final norm; positions are constants."""

    pos_embed: Tensor

    def __init__(self, shape: StepShape) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(shape)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.register_buffer("pos_embed", sincos_2d(shape.width, shape.grid, shape.grid)[None])
        self.blocks = nn.ModuleList(EncoderBlock(shape.width, shape.heads) for _ in range(shape.depth))


class StraightforwardStep(nn.Module):
    """Images, teacher tokens and cluster orders in, loss out."""

    positions: Tensor
    mask: Tensor

    def __init__(self, shape: StepShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape)
        self.gen, self.dis = Decoder(shape), Decoder(shape)
        rows, columns = shape.clusters
        positions = sincos_2d(shape.decoder_width, shape.grid, shape.grid, class_token=False)
        self.register_buffer("positions", positions.unflatten(0, (shape.grid, -1))[None], persistent=False)
        size = shape.grid**2 // (rows * columns)
        self.register_buffer("mask", additive_mask(rows * columns - 1, size), persistent=False)

    def forward(self, images: Tensor, targets: Tensor, permutation: Tensor) -> Tensor:
        """``[B,3,h,w]``, ``[B, 1+N_t, T]`` (class token first) and int64 ``[B,K]`` -> the scalar loss."""
        shape, clusters = self.shape, self.shape.clusters
        tokens = permuted(clustered(self.encoder.patch_embed(images), clusters), permutation)
        encoder_positions = self.encoder.pos_embed[:, 1:].unflatten(1, (shape.grid, -1)).expand(len(images), -1, -1, -1)
        tokens = tokens + permuted(clustered(encoder_positions, clusters), permutation)
        class_token = (self.encoder.cls_token + self.encoder.pos_embed[:, :1]).expand(len(images), -1, -1)
        tokens = torch.cat([tokens[:, :-1].flatten(1, 2), class_token], dim=1)
        taps = []
        for number, block in enumerate(self.encoder.blocks, start=1):
            tokens = block(tokens, self.mask)
            if number in shape.taps:
                taps.append(tokens)
        positions = permuted(clustered(self.positions.expand(len(images), -1, -1, -1), clusters), permutation)
        teacher = targets[:, 1:].unflatten(1, shape.teacher_grid)
        teacher = permuted(clustered(teacher, clusters), permutation)
        gen = self.gen(taps, positions[:, 1:].flatten(1, 2), self.mask)
        dis = self.dis(taps, positions[:, :-1].flatten(1, 2), self.mask)
        class_target = targets[:, :1]
        return self.branch_loss(gen, teacher[:, 1:], class_target) + self.branch_loss(
            dis, teacher[:, :-1], class_target
        )

    def branch_loss(self, prediction: Tensor, teacher: Tensor, class_target: Tensor) -> Tensor:
        """Mean of ``2 - 2*cos`` over the tokens of ``teacher`` ``[B,K-1,S_t,T]`` and the class token."""
        rows, columns = self.shape.clusters
        source = (self.shape.grid // rows, self.shape.grid // columns)
        target = (self.shape.teacher_grid[0] // rows, self.shape.teacher_grid[1] // columns)
        patches = prediction[:, :-1].unflatten(1, (-1, *source)).flatten(0, 1).permute(0, 3, 1, 2)
        if source != target:
            patches = F.interpolate(patches, size=target, mode="bilinear", align_corners=False)
        patches = patches.flatten(2).transpose(1, 2).unflatten(0, (len(prediction), -1)).flatten(1, 2)
        predicted = torch.cat([patches, prediction[:, -1:]], dim=1)
        wanted = torch.cat([teacher.flatten(1, 2), class_target], dim=1)
        predicted, wanted = F.normalize(predicted.float(), dim=-1), F.normalize(wanted.float(), dim=-1)
        return (2 - 2 * (predicted * wanted).sum(-1)).mean()
