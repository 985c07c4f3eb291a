"""Feature distillation, FD (paper, Table 9): the encoder's output, projected linearly, onto the teacher's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from digpt.encoder import embed_tokens
from digpt.errors import ConfigError
from train.objective.base import ObjectiveOutput, Paradigm, TargetKind
from train.objective.decoders import DirectHead
from train.objective.losses import GridResize, MeanBaseline, cosine_loss


@dataclass(frozen=True)
class FdConfig:
    """Feature distillation has nothing to choose but the initial class token."""

    class_token_std: float = 0.02


class FdObjective(Paradigm):
    """Whole image, plain attention; patch tokens and the class token each regress the teacher's (``2 - 2*cos``)."""

    target: ClassVar[TargetKind] = "tokens"

    def __init__(
        self, encoder: VisionTransformer, config: FdConfig, teacher_grid: tuple[int, int], teacher_width: int
    ) -> None:
        super().__init__(encoder)
        self.config = config
        self.tokens = teacher_grid[0] * teacher_grid[1]
        self.teacher_width = teacher_width
        self.head = DirectHead(encoder.embed_dim, teacher_width)
        self.resize = GridResize(encoder.patch_embed.grid_size, (teacher_grid[0], teacher_grid[1]))
        self.baseline = MeanBaseline(teacher_width)

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        permutation: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_predictions: bool = False,
    ) -> ObjectiveOutput:
        if tuple(targets.shape[1:]) != (self.tokens + 1, self.teacher_width):
            raise ConfigError(f"Targets {tuple(targets.shape[1:])} are not {(self.tokens + 1, self.teacher_width)}.")
        prediction = self.head.pred(embed_tokens(self.encoder, images))  # [B, 1+N, T], class token first
        unit = F.normalize(targets.float(), dim=-1)
        patches = cosine_loss(self.resize(prediction[:, 1:]), unit[:, 1:])
        per_token = torch.cat([cosine_loss(prediction[:, :1], unit[:, :1]), patches], dim=1)  # [B, 1+N_t]
        loss, mean = per_token.mean(), unit.mean((0, 1))
        if self.training:
            self.baseline.update(mean)
        kept = {"fd": prediction} if return_predictions else None
        return ObjectiveOutput(loss, {"fd": loss.detach()}, {"fd": self.baseline(mean)}, predictions=kept)

    def no_weight_decay(self) -> set[str]:
        return {"encoder.cls_token"}
