"""open_clip towers around a convolutional timm trunk as teachers: every position of the last feature map, projected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from digpt.errors import ConfigError
from train.targets.base import VisionTarget


def is_convolutional(visual: nn.Module) -> bool:
    """Whether ``visual`` is open_clip's wrapper around a trunk without patch embedding."""
    return isinstance(visual, TimmModel) and not hasattr(visual.trunk, "patch_embed")


class ConvolutionTarget(VisionTarget):
    """Positions of the final feature map ``[B,C,H,W]`` and, as class target, the tower's embedding.

    Each position passes all that follows the pooling (norm, projection) as if it were a map of its own.
    """

    def __init__(
        self, visual: nn.Module, image_size: int | tuple[int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(visual, mean, std)
        trunk: Any = visual.trunk
        head: Any = visual.head
        if "pool" in head._modules or not hasattr(trunk, "forward_head"):
            raise ConfigError("This open_clip tower pools its feature map in the head; it has no tokens of its own.")
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        with torch.no_grad():
            features = trunk.forward_features(next(visual.parameters()).new_zeros(1, 3, *size))
        if features.ndim != 4:
            raise ConfigError(f"A {type(trunk).__name__} gives no feature map; use another teacher.")
        self.grid = (int(features.shape[2]), int(features.shape[3]))
        self.has_class_token = False
        self.projected = len(head) > 0 or trunk.num_classes > 0
        with torch.no_grad():
            self.width = int(self.tokens(features.new_zeros(1, 3, *size)).shape[-1])

    def tokens(self, normalised: Tensor) -> Tensor:
        visual: Any = self.tower
        features = visual.trunk.forward_features(normalised)
        batch, channels, height, width = features.shape
        positions = features.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        pooled, each = (visual.head(visual.trunk.forward_head(maps)) for maps in (features, positions))
        return torch.cat([pooled[:, None], each.view(batch, height * width, -1)], dim=1)
