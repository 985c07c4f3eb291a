"""Masked image modelling, the paper's baselines: MAE (hidden patches never enter the encoder) and EVA (mask tokens do).

Shapes: B batch, N patches, V visible patches, C encoder width, D decoder width, W width of a prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from digpt.encoder import init_linear, sincos_2d
from digpt.errors import ConfigError
from train.objective.base import ObjectiveOutput, Paradigm
from train.objective.clusters import ClusterLayout
from train.objective.losses import GridResize
from train.objective.masks import block_mask
from train.objective.spaces import TargetSpace
from train.objective.stack import BlockStack, embed_visible, run_block, run_encoder


@dataclass(frozen=True)
class MaeConfig:
    """Masked autoencoder; the defaults are the MAE paper's (75 % hidden, decoder of 8 blocks, width 512, 16 heads)."""

    mask_ratio: float = 0.75  # share of the patches that is hidden
    decoder_width: int = 512  # of the decoder
    decoder_heads: int = 16  # attention heads of each block
    decoder_depth: int = 8  # blocks of the decoder
    mlp_ratio: float = 4.0  # hidden width of its MLPs, by decoder_width
    norm_eps: float = 1e-6  # of its layer norms
    class_token_std: float = 0.02  # of the encoder's initial class token

    def __post_init__(self) -> None:
        _check_ratio(self.mask_ratio)
        if self.decoder_width % self.decoder_heads:
            raise ConfigError(f"decoder_heads={self.decoder_heads} does not divide decoder_width={self.decoder_width}.")
        if self.decoder_depth < 1:
            raise ConfigError(f"decoder_depth={self.decoder_depth} must be at least 1.")


@dataclass(frozen=True)
class EvaConfig:
    """Masked feature prediction; EVA hides 40 % in blocks."""

    mask_ratio: float = 0.4  # share of the patches that is hidden
    norm_eps: float = 1e-6  # of the layer norms
    class_token_std: float = 0.02  # of the encoder's initial class token

    def __post_init__(self) -> None:
        _check_ratio(self.mask_ratio)


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio < 1:
        raise ConfigError(f"mask_ratio={ratio} must lie between 0 and 1.")


class MaskedParadigm(Paradigm):
    """Predictions at every patch, a loss at the hidden ones; the permutation of the N patches decides which."""

    def __init__(self, encoder: VisionTransformer, space: TargetSpace, mask_ratio: float) -> None:
        super().__init__(encoder, space)
        grid = encoder.patch_embed.grid_size
        space.check_grid(grid)
        self.grid = (int(grid[0]), int(grid[1]))
        self.visible = int(self.units * (1 - mask_ratio))
        if not 0 < self.visible < self.units:
            raise ConfigError(f"mask_ratio={mask_ratio} leaves {self.visible} of {self.units} patches visible.")
        self.resize = GridResize(self.grid, (space.grid[0], space.grid[1]))
        self.baseline = space.baseline()

    @property
    def units(self) -> int:
        """N, the number of patches."""
        return int(self.encoder.patch_embed.num_patches)

    def _score(
        self, name: str, prediction: Tensor, class_prediction: Tensor | None, hidden: Tensor, targets: Tensor
    ) -> ObjectiveOutput:
        """Mean loss over the hidden tokens of each sample, and its class token if predicted, then over samples.

        On a target grid of another size a token counts by the hidden share of what it is resized from.
        """
        patches, class_target = self.space.split(targets)
        with torch.no_grad():
            weights = self.resize(hidden[..., None].float())[..., 0]  # [B, N_t]
            total = weights.sum(1)
            mean = self.space.summary(patches, weights)  # [B, .]
        losses = (self.space.loss(self.resize(prediction), patches) * weights).sum(1) / total
        if class_prediction is not None and class_target is not None:
            losses = (losses * total + self.space.loss(class_prediction, class_target)) / (total + 1)
            mean = (mean * total[:, None] + class_target) / (total[:, None] + 1)
        if self.training:
            self.baseline.update(mean.mean(0))
        loss = losses.mean()
        return ObjectiveOutput(loss, {name: loss.detach()}, {name: self.baseline(mean).mean()})


class MaeDecoder(BlockStack):
    """Plain ViT blocks over visible tokens and mask tokens: norm, linear to D, positions, blocks, norm, linear to W.

    The first norm is the encoder's last in MAE; here it is the decoder's, since the encoder keeps none.
    """

    positions: Tensor

    def __init__(self, width: int, grid: tuple[int, int], config: MaeConfig, out_width: int) -> None:
        super().__init__()
        dim, eps = config.decoder_width, config.norm_eps
        self.memory_norm = nn.LayerNorm(width, eps=eps)
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.blocks = nn.ModuleList(
            Block(dim, config.decoder_heads, config.mlp_ratio, qkv_bias=True) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.pred = nn.Linear(dim, out_width)
        self.register_buffer("positions", sincos_2d(dim, grid[0], grid[1], class_token=False), persistent=False)
        init_linear(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoded: Tensor, permutation: Tensor) -> Tensor:
        """Encoder output ``[B,V+1,C]`` of the first V patches in the permutation -> ``[B,N+1,W]`` in raster order.

        The class token is last on both sides.
        """
        tokens = self.embed(self.memory_norm(encoded))
        batch, count = permutation.shape
        hidden = self.mask_token.to(tokens.dtype).expand(batch, count - tokens.shape[1] + 1, -1)
        ordered = torch.cat([tokens[:, :-1], hidden], dim=1)  # [B, N, D], in the permutation's order
        samples = torch.arange(batch, device=permutation.device)[:, None]
        patches = ordered[samples, permutation.argsort(dim=1)] + self.positions
        tokens = torch.cat([patches, tokens[:, -1:].to(patches.dtype)], dim=1)
        for block in self.blocks:
            tokens = run_block(block, tokens, checkpointing=self.grad_checkpointing)
        return self.pred(self.norm(tokens))


class MaeObjective(MaskedParadigm):
    """MAE: the encoder sees the first quarter of the permutation, a decoder with mask tokens predicts the rest."""

    def __init__(self, encoder: VisionTransformer, config: MaeConfig, space: TargetSpace) -> None:
        super().__init__(encoder, space, config.mask_ratio)
        self.config = config
        self.layout = ClusterLayout(self.grid, self.grid)  # every patch is a cluster of its own
        self.decoder = MaeDecoder(encoder.embed_dim, self.grid, config, space.width)

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        permutation: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_predictions: bool = False,
    ) -> ObjectiveOutput:
        permutation = self._order(images, permutation, generator)
        visible = permutation[:, : self.visible]
        tokens = run_encoder(self.encoder, embed_visible(self.encoder, images, self.layout, visible))[-1]
        prediction = self.decoder(tokens, permutation)
        hidden = torch.ones_like(permutation, dtype=torch.bool).scatter(1, visible, False)
        output = self._score("mae", prediction[:, :-1], prediction[:, -1], hidden, targets)
        return replace(output, predictions={"mae": prediction}) if return_predictions else output

    def no_weight_decay(self) -> set[str]:
        return {"encoder.cls_token", "decoder.mask_token"}


class EvaObjective(MaskedParadigm):
    """EVA: mask tokens replace blocks of patches in the encoder; norm and linear layer predict the teacher there."""

    def __init__(self, encoder: VisionTransformer, config: EvaConfig, space: TargetSpace) -> None:
        super().__init__(encoder, space, config.mask_ratio)
        self.config = config
        self.mask_token = nn.Parameter(torch.empty(1, 1, encoder.embed_dim))
        self.head = nn.Sequential(
            nn.LayerNorm(encoder.embed_dim, eps=config.norm_eps), nn.Linear(encoder.embed_dim, space.width)
        )
        init_linear(self.head)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        permutation: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_predictions: bool = False,
    ) -> ObjectiveOutput:
        permutation = self._order(images, permutation, generator)
        hidden = block_mask(permutation, self.grid, self.units - self.visible)
        prediction = self.head(run_encoder(self.encoder, self._embed(images, hidden))[-1][:, 1:])  # [B, N, W]
        output = self._score("eva", prediction, None, hidden, targets)
        return replace(output, predictions={"eva": prediction}) if return_predictions else output

    def _embed(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Patches, mask tokens where ``hidden`` ``[B,N]``, positions -> ``[B,1+N,C]``, class token first."""
        encoder = self.encoder
        assert encoder.pos_embed is not None and encoder.cls_token is not None  # checked by Paradigm
        patches = encoder.patch_embed(images)
        patches = torch.where(hidden[..., None], self.mask_token.to(patches.dtype), patches)
        first = encoder.cls_token.expand(len(images), -1, -1).to(patches.dtype)
        return encoder.pos_drop(torch.cat([first, patches], dim=1) + encoder.pos_embed)

    def no_weight_decay(self) -> set[str]:
        return {"encoder.cls_token", "mask_token"}
