"""Augmentation of sprites with alpha, vectorised over the batch; every draw comes from keyed uniforms.

Shapes: B batch, S image side. Input RGBA in [0, 1]; output RGB in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)
_KNOTS = 4  # of a random tone curve
_BENDS = 4  # control points of the elastic warp, per axis
DRAWS = 36 + 3 * _KNOTS + 2 * _BENDS**2  # uniforms one sample consumes


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths and probabilities. Horizontal flips default to off: a left arrow is not a right arrow."""

    scale: tuple[float, float] = (0.75, 1.12)  # smallest and largest size of the picture, 1: as it is
    aspect: float = 0.12  # largest logarithm of width by height
    rotate: float = 12.0  # largest angle in degrees
    shear: float = 0.1  # largest shear
    shift: float = 0.1  # largest shift, in half image sides
    elastic: float = 0.08  # largest displacement of a control point, in half image sides
    flip: float = 0.0  # probability of a mirror image
    background: float = 0.35  # probability of a background other than white
    tone: float = 0.12  # share of pictures whose channels pass through random curves: shape stays, colours do not
    color: float = 0.5  # probability of other colours
    hue: float = 0.5  # largest share of a turn of hue
    gray: float = 0.12  # probability of no colour
    invert: float = 0.03  # probability of a negative
    line_art: float = 0.28  # probability of ink lines instead of the picture
    posterize: float = 0.08  # probability of few levels of brightness
    blur: float = 0.06  # probability of a soft image


class _Draws:
    """Hands out a sample's uniforms in a fixed order, so that no two transformations share one."""

    def __init__(self, uniforms: Tensor) -> None:
        self._uniforms, self._next = uniforms, 0

    def take(self, count: int) -> Tensor:
        """The next ``count`` uniforms, ``[B,count]``."""
        self._next += count
        return self._uniforms[:, self._next - count : self._next]

    def one(self) -> Tensor:
        """The next uniform, ``[B]``."""
        return self.take(1)[:, 0]


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
    return torch.cat([_augment(images.float() / 255, _Draws(uniforms), config) for images, uniforms in parts])


def _augment(rgba: Tensor, draws: _Draws, config: AugmentConfig) -> Tensor:
    rgba[:, :3] *= rgba[:, 3:]  # premultiplied, so that transparent pixels bleed no colour
    warped = _warp(rgba, draws, config)
    alpha = warped[:, 3:]
    color = _tone(_jitter(warped, draws, config), alpha, draws, config)
    lines, strokes, ink_color = draws.one() < config.line_art, draws.take(6), draws.take(3) * 0.35
    if lines.any():
        ink = line_art(color[lines] + (1 - alpha[lines]), alpha[lines], strokes[lines])
        color[lines], alpha[lines] = ink_color[lines, :, None, None] * ink, ink
    image = color.add_((1 - alpha) * _background(draws, config, rgba.shape[-1]))
    inverted = draws.one() < config.invert
    image[inverted] = 1 - image[inverted]
    soft = draws.one() < config.blur
    if soft.any():
        image[soft] = F.avg_pool2d(F.pad(image[soft], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return image.clamp_(0, 1)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images ``[B,3,S,S]`` in [0, 1] in an encoder's statistics."""
    # filled on the device: a copy from the host would make it wait for all work that is queued
    center, spread = (
        torch.stack([torch.full((1, 1), value, device=images.device) for value in values]) for values in (mean, std)
    )
    return (images - center) / spread


def compose_on_white(rgba: Tensor) -> Tensor:
    """RGBA ``[B,4,S,S]`` in [0, 1] -> RGB over white, as the decoder does it at inference."""
    return rgba[:, :3] * rgba[:, 3:] + (1 - rgba[:, 3:])


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _warp(image: Tensor, draws: _Draws, config: AugmentConfig) -> Tensor:
    """Random scale, aspect, rotation, shear, shift, flip and smooth bending in one bilinear sampling."""
    scale = _between(draws.one(), *config.scale)
    aspect = torch.exp(_between(draws.one(), -config.aspect, config.aspect))
    angle = _between(draws.one(), -config.rotate, config.rotate) * (math.pi / 180)
    shear = _between(draws.one(), -config.shear, config.shear)
    shift_x, shift_y = (_between(draws.one(), -config.shift, config.shift) for _ in range(2))
    sign = torch.where(draws.one() < config.flip, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    x_scale, y_scale = sign / (scale * aspect), aspect / scale  # output -> input coordinates
    top = torch.stack([cos * x_scale, (shear * cos - sin) * x_scale, shift_x], 1)
    low = torch.stack([sin * y_scale, (shear * sin + cos) * y_scale, shift_y], 1)
    grid = F.affine_grid(torch.stack([top, low], dim=1), list(image.shape), align_corners=False)
    strength = draws.one()[:, None, None, None] * config.elastic
    bends = (draws.take(2 * _BENDS**2).view(-1, 2, _BENDS, _BENDS) * 2 - 1) * strength
    grid = grid + F.interpolate(bends, image.shape[-2:], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _jitter(warped: Tensor, draws: _Draws, config: AugmentConfig) -> Tensor:
    """Saturation, hue, contrast and brightness as one 3 x 4 matrix per image on premultiplied RGBA, then posterise."""
    active = (draws.one() < config.color).float()
    saturation = 1 + active * _between(draws.one(), -0.6, 0.6)
    saturation = torch.where(draws.one() < config.gray, torch.zeros_like(saturation), saturation)
    contrast = 1 + active * _between(draws.one(), -0.4, 0.5)
    brightness = active * _between(draws.one(), -0.2, 0.2)
    turn = active * draws.one() * config.hue * (draws.one() < 0.5)
    eye = torch.eye(3, dtype=warped.dtype, device=warped.device)
    luma = eye.new_tensor(_LUMA).expand(3, 3)
    matrix = luma + (eye - luma) * saturation[:, None, None]
    # mixing the channels cyclically stands in for a change of hue
    mix = eye * (1 - turn)[:, None, None] + eye.roll(1, dims=1) * turn[:, None, None]
    matrix = torch.bmm(mix, matrix) * contrast[:, None, None]
    offset = (0.5 + brightness - 0.5 * contrast)[:, None, None].expand(-1, 3, 1)
    color = torch.bmm(torch.cat([matrix, offset], dim=2), warped.flatten(2)).view_as(warped[:, :3])
    flat, levels = draws.one() < config.posterize, torch.floor(_between(draws.one(), 2, 6))
    if flat.any():
        steps = levels[flat, None, None, None]
        color[flat] = torch.round(color[flat] * steps) / steps
    return torch.minimum(color.clamp_(min=0), warped[:, 3:])


def _tone(color: Tensor, alpha: Tensor, draws: _Draws, config: AugmentConfig) -> Tensor:
    """Pass each channel of premultiplied ``color`` through a random piecewise linear curve, in a share of pictures."""
    chosen, knots = draws.one() < config.tone, draws.take(3 * _KNOTS)
    if chosen.any():
        straight = (color[chosen] / alpha[chosen].clamp(min=1e-3)).clamp_(0, 1) * (_KNOTS - 1)
        heights = knots[chosen].view(-1, 3, _KNOTS)
        below = straight.floor().clamp_(max=_KNOTS - 2)
        at = below.long().flatten(2)
        low, high = (heights.gather(2, at + step).view_as(straight) for step in (0, 1))
        color[chosen] = torch.lerp(low, high, straight - below) * alpha[chosen]
    return color


def line_art(image: Tensor, alpha: Tensor, draws: Tensor) -> Tensor:
    """Draw dark ink where a picture has edges or is dark: ``[B,3,S,S]`` over white -> ink ``[B,1,S,S]`` in [0, 1].

    Edges are the morphological gradient (dilation minus erosion) of colour and alpha, thin or thick; what is filled is
    what is dark or, as often, a random band of brightness. ``draws [B,6]`` decides.
    """
    planes = torch.cat([image, alpha], dim=1)
    spread = F.max_pool2d(planes, 3, 1, 1) + F.max_pool2d(-planes, 3, 1, 1)
    u = draws[:, :, None, None]
    edge = torch.sigmoid((spread.amax(dim=1, keepdim=True) - _between(u[:, 0:1], 0.12, 0.45)) * 40)
    thick = F.max_pool2d(edge, 3, 1, 1)
    edge = edge + (thick - edge) * (u[:, 1:2] < 0.5)
    light = (image * image.new_tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    below = _between(u[:, 2:3], 0.05, 0.6) - light
    band = _between(u[:, 2:3], 0.05, 0.3) - (light - u[:, 5:6]).abs()
    dark = torch.sigmoid(torch.where(u[:, 4:5] < 0.5, below, band) * 20) * alpha
    # with dark areas filled, their edges are drawn as light lines as often as not, as an engraver would
    filled = torch.maximum(edge, dark)
    carved = torch.maximum(dark * (1 - edge), edge * (alpha < 0.99))
    choice = u[:, 3:4]
    return torch.where(choice < 0.35, edge, torch.where(choice < 0.7, filled, carved))


def _background(draws: _Draws, config: AugmentConfig, side: int) -> Tensor:
    """White, or a random colour with a random linear gradient, ``[B,3,S,S]``."""
    plain, across, down, tint = (draws.take(n)[:, :, None, None] for n in (1, 1, 1, 3))
    ramp = torch.linspace(-0.8, 0.8, side, device=tint.device, dtype=tint.dtype)
    slope = ramp.view(1, 1, 1, side) * (across - 0.5) + ramp.view(1, 1, side, 1) * (down - 0.5)
    return torch.where(plain < config.background, (tint + slope).clamp_(0, 1), tint.new_ones(()))
