"""Distillation straight on the encoder: FD of every token (paper, Table 9) and KD of the global embedding (Table 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from digpt.encoder import embed_tokens
from train.objective.base import ObjectiveOutput, Paradigm
from train.objective.decoders import DirectHead
from train.objective.losses import GridResize
from train.objective.spaces import TargetSpace


@dataclass(frozen=True)
class FdConfig:
    """Feature distillation has nothing to choose but the initial class token."""

    class_token_std: float = 0.02


@dataclass(frozen=True)
class KdConfig:
    """Knowledge distillation has nothing to choose but the initial class token."""

    class_token_std: float = 0.02


class FdObjective(Paradigm):
    """Whole image, plain attention; patch tokens and the class token each regress the teacher's (``2 - 2*cos``)."""

    def __init__(self, encoder: VisionTransformer, config: FdConfig, space: TargetSpace) -> None:
        super().__init__(encoder, space)
        self.config = config
        self.head = DirectHead(encoder.embed_dim, space.width)
        self.resize = GridResize(encoder.patch_embed.grid_size, (space.grid[0], space.grid[1]))
        self.baseline = space.baseline()

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        permutation: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_predictions: bool = False,
    ) -> ObjectiveOutput:
        patches, class_target = self.space.split(targets)
        assert class_target is not None  # tokens only
        prediction = self.head.pred(embed_tokens(self.encoder, images))  # [B, 1+N, T], class token first
        class_loss = self.space.loss(prediction[:, :1], class_target[:, None])
        per_token = torch.cat([class_loss, self.space.loss(self.resize(prediction[:, 1:]), patches)], dim=1)
        loss, mean = per_token.mean(), torch.cat([class_target[:, None], patches], dim=1).mean((0, 1))
        if self.training:
            self.baseline.update(mean)
        kept = {"fd": prediction} if return_predictions else None
        return ObjectiveOutput(loss, {"fd": loss.detach()}, {"fd": self.baseline(mean)}, predictions=kept)

    def no_weight_decay(self) -> set[str]:
        return {"encoder.cls_token"}


class KdObjective(Paradigm):
    """The student's embedding, projected linearly, regresses the teacher's class token (``2 - 2*cos``).

    The paper names plain knowledge distillation as a baseline without a formula. Our reading: the global embedding
    alone is distilled, where FD distils every token; the student's is the mean of its patch tokens, as everywhere here,
    the teacher's its class token, or its pooled embedding where it has none.
    """

    def __init__(self, encoder: VisionTransformer, config: KdConfig, space: TargetSpace) -> None:
        super().__init__(encoder, space)
        self.config = config
        self.head = DirectHead(encoder.embed_dim, space.width)
        self.baseline = space.baseline()

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        permutation: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_predictions: bool = False,
    ) -> ObjectiveOutput:
        _, class_target = self.space.split(targets)
        assert class_target is not None  # tokens only
        prediction = self.head.pred(embed_tokens(self.encoder, images)[:, 1:].mean(1))  # [B, T]
        loss, mean = self.space.loss(prediction, class_target).mean(), class_target.mean(0)
        if self.training:
            self.baseline.update(mean)
        kept = {"kd": prediction} if return_predictions else None
        return ObjectiveOutput(loss, {"kd": loss.detach()}, {"kd": self.baseline(mean)}, predictions=kept)

    def no_weight_decay(self) -> set[str]:
        return {"encoder.cls_token"}
