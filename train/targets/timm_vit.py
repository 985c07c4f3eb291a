"""Any timm vision transformer as a teacher (DINO, DINOv2, SigLIP, AIMv2, EVA, own checkpoints)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from digpt.errors import ConfigError
from train.targets.base import VisionTarget, grid_of


class TimmVitTarget(VisionTarget):
    """Patch tokens after the final norm, prefix and register tokens removed; in front the class target.

    The class target is what the model itself pools: its class token, or the pooled embedding where it has none (or was
    finetuned without it). ``projection`` (a joint image-text space, say) applies to every token.
    """

    def __init__(
        self,
        model: Any,
        image_size: int | tuple[int, int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        projection: nn.Module | None = None,
    ) -> None:
        data = getattr(model, "pretrained_cfg", None) or {}
        super().__init__(model, mean or data["mean"], std or data["std"])
        self.projection = nn.Identity() if projection is None else projection.eval().requires_grad_(False)
        self.grid = resize_timm(model, image_size)
        self.has_class_token = getattr(model, "global_pool", "") == "token"
        self.projected = projection is not None
        self.width = int(getattr(projection, "out_features", model.num_features))

    def tokens(self, normalised: Tensor) -> Tensor:
        features, pooled = timm_tokens(self.tower, normalised)
        return self.projection(torch.cat([pooled[:, None], features], dim=1))


def resize_timm(model: Any, image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Set a timm ViT to the student's crop, interpolating its positions, in place -> its token grid.

    Raises:
        ConfigError: not a plain ViT, or the crop is not a multiple of its patch.
    """
    kind: str = type(model).__name__
    embed: Any = getattr(model, "patch_embed", None)
    if not hasattr(embed, "patch_size") or not hasattr(model, "num_prefix_tokens"):
        raise ConfigError(f"A {kind} has no grid of patch tokens; a teacher must be a vision transformer.")
    patch = embed.patch_size
    grid = grid_of(image_size, (patch[0], patch[1]), f"The teacher {kind}")
    if tuple(embed.grid_size) != grid:
        if not hasattr(model, "set_input_size"):
            raise ConfigError(f"timm cannot interpolate the positions of a {kind} from {embed.grid_size} to {grid}.")
        model.set_input_size((grid[0] * patch[0], grid[1] * patch[1]))
    return grid


def timm_tokens(model: Any, normalised: Tensor) -> tuple[Tensor, Tensor]:
    """Patch tokens ``[B,N,C]`` after the final norm (wherever timm keeps it) and the pooled embedding ``[B,C]``."""
    features = model.forward_features(normalised)
    pooled = model.forward_head(features, pre_logits=True)
    if pooled.ndim == 3:  # global_pool="": timm returns all tokens
        pooled = pooled[:, 0] if model.num_prefix_tokens else pooled.mean(1)
    patches = features[:, model.num_prefix_tokens :]
    return getattr(model, "fc_norm", nn.Identity())(patches), pooled
