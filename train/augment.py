"""Augmentation of sprites with alpha, vectorised over the batch; every draw comes from keyed uniforms.

Shapes: B batch, S image side. Input RGBA in [0, 1]; output RGB in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

DRAWS = 28  # uniforms one sample consumes


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths and probabilities. Horizontal flips default to off: a left arrow is not a right arrow."""

    scale: tuple[float, float] = (0.75, 1.12)
    aspect: float = 0.12
    rotate: float = 12.0
    shear: float = 0.1
    shift: float = 0.1
    flip: float = 0.0
    background: float = 0.35
    color: float = 0.5
    hue: float = 0.5
    gray: float = 0.12
    invert: float = 0.03
    line_art: float = 0.22
    posterize: float = 0.08
    blur: float = 0.06


def augment(rgba: Tensor, draws: Tensor, config: AugmentConfig, chunk: int = 32) -> Tensor:
    """Warp, restyle and compose a batch.

    Args:
        rgba: uint8 ``[B,4,S,S]``, straight (not premultiplied) alpha.
        draws: float32 ``[B,DRAWS]`` uniforms in [0, 1).
        chunk: images per pass; small enough that the intermediates stay in the processor's cache.

    Returns:
        float32 ``[B,3,S,S]`` in [0, 1].
    """
    parts = zip(rgba.split(chunk), draws.split(chunk), strict=True)
    return torch.cat([_augment(images.float() / 255, uniforms, config) for images, uniforms in parts])


def _augment(rgba: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    rgba[:, :3] *= rgba[:, 3:]  # premultiplied, so that transparent pixels bleed no colour
    warped = _warp(rgba, draws, config)
    color, alpha = _jitter(warped, draws, config), warped[:, 3:]
    lines = draws[:, 17] < config.line_art
    if lines.any():
        ink = line_art(color[lines] + (1 - alpha[lines]), alpha[lines], draws[lines, 18:22])
        color[lines], alpha[lines] = (draws[lines, 22:25, None, None] * 0.35) * ink, ink
    image = color.add_((1 - alpha) * _background(draws, config, rgba.shape[-1]))
    inverted = draws[:, 25] < config.invert
    image[inverted] = 1 - image[inverted]
    soft = draws[:, 26] < config.blur
    if soft.any():
        image[soft] = F.avg_pool2d(F.pad(image[soft], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return image.clamp_(0, 1)


def compose_on_white(rgba: Tensor) -> Tensor:
    """RGBA ``[B,4,S,S]`` in [0, 1] -> RGB over white, as the decoder does it at inference."""
    return rgba[:, :3] * rgba[:, 3:] + (1 - rgba[:, 3:])


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _warp(image: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Random scale, aspect, rotation, shear, shift and flip in one bilinear sampling."""
    scale = _between(draws[:, 0], *config.scale)
    aspect = torch.exp(_between(draws[:, 1], -config.aspect, config.aspect))
    angle = _between(draws[:, 2], -config.rotate, config.rotate) * (math.pi / 180)
    shear = _between(draws[:, 3], -config.shear, config.shear)
    sign = torch.where(draws[:, 6] < config.flip, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    x_scale, y_scale = sign / (scale * aspect), aspect / scale  # output -> input coordinates
    top = torch.stack([cos * x_scale, (shear * cos - sin) * x_scale, _between(draws[:, 4], -1, 1) * config.shift], 1)
    low = torch.stack([sin * y_scale, (shear * sin + cos) * y_scale, _between(draws[:, 5], -1, 1) * config.shift], 1)
    grid = F.affine_grid(torch.stack([top, low], dim=1), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _jitter(warped: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Saturation, hue, contrast and brightness as one 3 x 4 matrix per image on premultiplied RGBA, then posterise."""
    active = (draws[:, 7] < config.color).float()
    saturation = 1 + active * _between(draws[:, 8], -0.6, 0.6)
    saturation = torch.where(draws[:, 9] < config.gray, torch.zeros_like(saturation), saturation)
    contrast = 1 + active * _between(draws[:, 10], -0.4, 0.5)
    brightness = active * _between(draws[:, 11], -0.2, 0.2)
    turn = active * draws[:, 12] * config.hue * (draws[:, 13] < 0.5)
    eye = torch.eye(3, dtype=warped.dtype, device=warped.device)
    luma = eye.new_tensor([0.299, 0.587, 0.114]).expand(3, 3)
    matrix = luma + (eye - luma) * saturation[:, None, None]
    # mixing the channels cyclically stands in for a change of hue
    mix = eye * (1 - turn)[:, None, None] + eye.roll(1, dims=1) * turn[:, None, None]
    matrix = torch.bmm(mix, matrix) * contrast[:, None, None]
    offset = (0.5 + brightness - 0.5 * contrast)[:, None, None].expand(-1, 3, 1)
    color = torch.bmm(torch.cat([matrix, offset], dim=2), warped.flatten(2)).view_as(warped[:, :3])
    flat = draws[:, 15] < config.posterize
    if flat.any():
        levels = torch.floor(_between(draws[flat, 14], 2, 6))[:, None, None, None]
        color[flat] = torch.round(color[flat] * levels) / levels
    return torch.minimum(color.clamp_(min=0), warped[:, 3:])


def line_art(image: Tensor, alpha: Tensor, draws: Tensor) -> Tensor:
    """Draw dark ink where a picture has edges or is dark: ``[B,3,S,S]`` over white -> ink ``[B,1,S,S]`` in [0, 1].

    Edges are the morphological gradient (dilation minus erosion) of colour and alpha; thresholds are drawn per image.
    """
    planes = torch.cat([image, alpha], dim=1)
    spread = F.max_pool2d(planes, 3, 1, 1) + F.max_pool2d(-planes, 3, 1, 1)
    edge = spread.amax(dim=1, keepdim=True)
    u = draws[:, :, None, None]
    edge = torch.sigmoid((edge - _between(u[:, 0:1], 0.1, 0.4)) * 16)
    thick = F.max_pool2d(edge, 3, 1, 1)
    edge = edge + (thick - edge) * (u[:, 1:2] < 0.4)
    dark = torch.sigmoid((_between(u[:, 2:3], 0.05, 0.6) - image.mean(dim=1, keepdim=True)) * 20)
    # with dark areas filled, their edges are drawn as light lines as often as not, as an engraver would
    filled = torch.maximum(edge, dark)
    carved = torch.maximum(dark * (1 - edge), edge * (alpha < 0.99))
    choice = u[:, 3:4]
    return torch.where(choice < 0.35, edge, torch.where(choice < 0.7, filled, carved))


def _background(draws: Tensor, config: AugmentConfig, side: int) -> Tensor:
    """White, or a random colour with a random linear gradient, ``[B,3,S,S]``."""
    u = draws[:, :, None, None]
    ramp = torch.linspace(-0.8, 0.8, side, device=draws.device, dtype=draws.dtype)
    slope = ramp.view(1, 1, 1, side) * (u[:, 16:17] - 0.5) + ramp.view(1, 1, side, 1) * (u[:, 14:15] - 0.5)
    plain = (u[:, 19:22] + slope).clamp_(0, 1)
    return torch.where(u[:, 27:28] < config.background, plain, plain.new_ones(()))
