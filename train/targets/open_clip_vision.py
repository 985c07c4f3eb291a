"""Any open_clip vision tower as a teacher, the main recipe's (OpenCLIP ViT-H/14; paper, section 4).

open_clip's own ``output_tokens=True`` returns tokens that are NOT projected; the objective wants every token after the
final norm AND the output projection, so that patch and class tokens live in one space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU, VisionTransformer
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from digpt.errors import ConfigError
from train.targets.base import VisionTarget, grid_of
from train.targets.timm_vit import resize_timm, timm_tokens


class OpenClipTarget(VisionTarget):
    """open_clip's ``model.visual``, a plain vision transformer or a wrapped timm trunk.

    Mean and std default to those open_clip recorded on the tower. Positions are interpolated in place when
    ``image_size`` (the student's crop) is not the tower's own.
    """

    def __init__(
        self,
        visual: Any,
        image_size: int | tuple[int, int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        quick_gelu: bool = False,
    ) -> None:
        super().__init__(visual, mean or visual.image_mean, std or visual.image_std)
        if isinstance(visual, TimmModel):
            self.wrapped = True
            if "pool" in visual.head._modules:
                raise ConfigError("This open_clip tower pools a feature map in its head; it has no patch tokens.")
            self.grid = resize_timm(visual.trunk, image_size)
            self.has_class_token = visual.trunk.global_pool == "token"
            self.projected = len(visual.head) > 0 or isinstance(visual.trunk.head, nn.Linear)
        elif isinstance(visual, VisionTransformer):
            self.wrapped = False
            if visual.attn_pool is not None:
                raise ConfigError("This open_clip tower ends in an attentional pooler; its tokens are not patches.")
            self.grid = _resize(visual, image_size)
            self.has_class_token = visual.pool_type != "avg"
            self.projected = visual.proj is not None
        else:
            raise ConfigError(f"A {type(visual).__name__} tower has no patch tokens; use a vision transformer.")
        if quick_gelu:
            use_quick_gelu(visual)
        with torch.no_grad():  # the width of what actually comes out
            pixels = [side * size for side, size in zip(self.grid, _patch_size(visual), strict=True)]
            self.width = int(self.tokens(next(visual.parameters()).new_zeros(1, 3, *pixels)).shape[-1])

    def tokens(self, normalised: Tensor) -> Tensor:
        visual: Any = self.tower
        return _wrapped_tokens(visual, normalised) if self.wrapped else _plain_tokens(visual, normalised)


def use_quick_gelu(visual: nn.Module) -> None:
    """Replace the MLP activations by QuickGELU, in place.

    Needed for the ``openai`` weights under a name without ``-quickgelu``: open_clip only warns about them.
    """
    for module in visual.modules():
        if isinstance(getattr(module, "gelu", None), nn.GELU):
            module.gelu = QuickGELU()


def _patch_size(visual: Any) -> tuple[int, int]:
    size = visual.trunk.patch_embed.patch_size if isinstance(visual, TimmModel) else visual.patch_size
    return size[0], size[1]


def _resize(visual: Any, image_size: int | tuple[int, int]) -> tuple[int, int]:
    grid = grid_of(image_size, _patch_size(visual), "The open_clip teacher")
    if tuple(visual.grid_size) != grid:
        table = visual.positional_embedding.detach()[None]
        resized = resample_abs_pos_embed(table, list(grid), list(visual.grid_size), num_prefix_tokens=1)
        visual.positional_embedding = nn.Parameter(resized[0], requires_grad=False)
        visual.grid_size = grid
        visual.image_size = tuple(cells * size for cells, size in zip(grid, _patch_size(visual), strict=True))
    return grid


def _plain_tokens(visual: Any, normalised: Tensor) -> Tensor:
    """Embed, encode, norm and project every token of open_clip's ``VisionTransformer`` -> ``[B, 1+N, T]``."""
    patches = visual.conv1(normalised).flatten(2).transpose(1, 2)
    first = visual.class_embedding.expand(len(patches), 1, -1).to(patches.dtype)
    tokens = torch.cat([first, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
    tokens = visual.transformer(visual.ln_pre(tokens))
    normed = visual.ln_post(tokens)
    if visual.pool_type == "avg":
        mean = tokens[:, 1:].mean(1) if visual.final_ln_after_pool else normed[:, 1:].mean(1)
        pooled = visual.ln_post(mean) if visual.final_ln_after_pool else mean
        normed = torch.cat([pooled[:, None], normed[:, 1:]], dim=1)
    return normed if visual.proj is None else normed @ visual.proj


def _wrapped_tokens(visual: Any, normalised: Tensor) -> Tensor:
    """The same for a timm trunk; a trunk without a class token gives its pooled embedding (SigLIP)."""
    patches, pooled = timm_tokens(visual.trunk, normalised)
    tokens = torch.cat([pooled[:, None], patches], dim=1)
    return visual.head(visual.trunk.head(tokens))
