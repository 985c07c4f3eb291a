"""The encoder: timm's ``VisionTransformer`` and nothing else, with the table of variants the paper trains.

>>> encoder = build_encoder(encoder_config("B/16", 224))      # pretraining: no final norm, class token
>>> tokens = embed_tokens(encoder, images)                    # [B, 1 + H*W, C], class token first

Shapes: B batch, H x W patch grid, N = H*W patches, C encoder width.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from digpt.errors import ConfigError, near_misses

# variant -> (timm name whose defaults are closest, patch, width, depth, heads); MLP ratio 4 throughout.
VARIANTS: dict[str, tuple[str, int, int, int, int]] = {
    "Ti/8": ("vit_tiny_patch16_224", 8, 192, 12, 3),
    "Ti/16": ("vit_tiny_patch16_224", 16, 192, 12, 3),
    "S/16": ("vit_small_patch16_224", 16, 384, 12, 6),
    "B/16": ("vit_base_patch16_224", 16, 768, 12, 12),
    "L/16": ("vit_large_patch16_224", 16, 1024, 24, 16),
    "L/14": ("vit_large_patch14_224", 14, 1024, 24, 16),
    "H/14": ("vit_huge_patch14_224", 14, 1280, 32, 16),
}


def encoder_config(variant: str, image_size: int | tuple[int, int], **overrides: Any) -> dict[str, Any]:
    """Return the exact ``timm.create_model`` arguments of a pretraining encoder.

    The pretraining encoder has a class token and no final norm; its embedding is the mean of the patch tokens.
    ``overrides`` replace any argument (``depth=6``, ``num_heads=4``, ``drop_path_rate=0.1``, ...).

    Raises:
        ConfigError: unknown variant, or an image size or width that does not divide.
    """
    if variant not in VARIANTS:
        valid = ", ".join(VARIANTS)
        raise ConfigError(f"Unknown encoder variant {variant!r}; valid: {valid}.{near_misses(variant, VARIANTS)}")
    model_name, patch_size, embed_dim, depth, num_heads = VARIANTS[variant]
    config: dict[str, Any] = {
        "model_name": model_name,
        "img_size": image_size,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "num_classes": 0,
        "class_token": True,
        "pos_embed": "learn",
        "global_pool": "avg",
        "final_norm": False,
        "fc_norm": False,
    }
    config.update(overrides)
    _check_divides(config)
    return config


def finetuned_config(config: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    """The same encoder after finetuning or text tuning: mean of the patch tokens, then timm's ``fc_norm``."""
    return {**config, "global_pool": "avg", "final_norm": True, "fc_norm": True, **overrides}


def _check_divides(config: dict[str, Any]) -> None:
    width, heads, patch = config["embed_dim"], config["num_heads"], config["patch_size"]
    if width % heads:
        valid = [h for h in range(1, width + 1) if width % h == 0 and width // h >= 16]
        raise ConfigError(f"num_heads={heads} does not divide embed_dim={width}; valid: {valid}.")
    size = config["img_size"]
    for side in size if isinstance(size, (tuple, list)) else (size,):
        if side % patch or side < patch:
            low = max(side // patch, 1) * patch
            raise ConfigError(f"Image size {side} is not a multiple of patch_size={patch}; try {low} or {low + patch}.")


def build_encoder(config: dict[str, Any], class_token_std: float = 0.02) -> VisionTransformer:
    """Build the encoder of ``config`` with the pretraining initialisation and sine-cosine positions.

    ``timm.create_model(**config)`` builds the same module, so weights move between the two with ``strict=True``.
    """
    encoder = timm.create_model(**config)
    if not isinstance(encoder, VisionTransformer):
        raise ConfigError(f"{config['model_name']!r} is a {type(encoder).__name__}, not timm's VisionTransformer.")
    init_encoder(encoder, class_token_std)
    return encoder


def init_encoder(encoder: VisionTransformer, class_token_std: float = 0.02) -> None:
    """Initialise in place: Xavier-uniform linear layers and patch projection, sine-cosine positions.

    The class token starts normal with ``class_token_std``: 0.02 (fidelity ``fixed``) or 0 (``official``, ``paper``).
    """
    init_linear(encoder)
    projection = encoder.patch_embed.proj
    nn.init.xavier_uniform_(projection.weight.data.flatten(1))
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    with torch.no_grad():
        if encoder.cls_token is not None:
            encoder.cls_token.normal_(std=class_token_std) if class_token_std else encoder.cls_token.zero_()
        if encoder.pos_embed is not None:
            height, width = encoder.patch_embed.grid_size
            table = sincos_2d(encoder.embed_dim, height, width, encoder.pos_embed.shape[1] > height * width)
            encoder.pos_embed.copy_(table[None])


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weight and zero bias for every ``nn.Linear`` below ``module``, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def sincos_2d(dim: int, grid_h: int, grid_w: int, class_token: bool = True) -> Tensor:
    """Fixed 2-D sine-cosine positions, float32 ``[(1 +) grid_h*grid_w, dim]`` in raster order.

    The first half of the width codes x, the second y; each half is all sines then all cosines of
    ``position * 10000^(-i / (dim/4))``. With ``class_token`` an all-zero row comes first (MAE's convention).

    Raises:
        ConfigError: ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise ConfigError(f"Sine-cosine positions need a width that is a multiple of 4, not {dim}.")
    quarter = dim // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    y, x = torch.meshgrid(
        torch.arange(grid_h, dtype=torch.float64), torch.arange(grid_w, dtype=torch.float64), indexing="ij"
    )
    angle_x, angle_y = (axis.reshape(-1, 1) * frequency for axis in (x, y))  # [H*W, dim/4] each
    table = torch.cat([angle_x.sin(), angle_x.cos(), angle_y.sin(), angle_y.cos()], dim=1).float()
    return torch.cat([table.new_zeros(1, dim), table]) if class_token else table


def embed_tokens(encoder: VisionTransformer, images_normalised: Tensor) -> Tensor:
    """Encode whole images, plain attention: ``[B,3,h,w]`` -> tokens ``[B, 1+N, C]``, class token first.

    The tokens of a pretraining encoder are the last block's output; with ``final_norm`` and ``fc_norm`` the norm
    comes after pooling, so they are not normed either.
    """
    return encoder.forward_features(images_normalised)
