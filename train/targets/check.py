"""The teacher contract: what a target must be before hours are spent on predicting it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from digpt.errors import ConfigError
from train.targets.base import Target


@dataclass(frozen=True)
class TeacherReport:
    """Facts of one teacher on one batch of images; ``str()`` gives one line per fact.

    ``position_spread`` and ``image_spread`` are standard deviations of the unit patch tokens over positions and over
    images, relative to 1: near 0 the target is a constant. ``class_patch_cosine`` is the mean cosine between the class
    token and the patch tokens of its image.
    """

    grid: tuple[int, int]
    width: int
    has_class_token: bool
    projected: bool | None
    activation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    token_mean: float
    token_std: float
    patch_norm: float
    class_norm: float
    class_patch_cosine: float
    position_spread: float
    image_spread: float | None

    def __str__(self) -> str:
        yes = {True: "yes", False: "no", None: "unknown"}
        spread = "one image only" if self.image_spread is None else f"{self.image_spread:.4f}"
        lines = [
            f"grid                {self.grid[0]} x {self.grid[1]} tokens of width {self.width}",
            f"class target        {'class token' if self.has_class_token else 'pooled embedding'}",
            f"projection applied  {yes[self.projected]}",
            f"activation          {self.activation}",
            f"normalisation       mean {_numbers(self.mean)}, std {_numbers(self.std)}",
            f"token values        mean {self.token_mean:+.4f}, std {self.token_std:.4f}",
            f"token norms         patch {self.patch_norm:.4f}, class {self.class_norm:.4f}",
            f"class-patch cosine  {self.class_patch_cosine:+.4f}",
            f"spread              over positions {self.position_spread:.4f}, over images {spread}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class PixelReport:
    """Facts of normalised pixels: ``flat`` is the share of patches without contrast, whose target is zero."""

    grid: tuple[int, int]
    width: int
    mean_square: float
    flat: float

    def __str__(self) -> str:
        return (
            f"grid                {self.grid[0]} x {self.grid[1]} patches of {self.width} values\n"
            f"pixel values        mean square {self.mean_square:.4f}, flat patches {self.flat:.1%}"
        )


@dataclass(frozen=True)
class CodeReport:
    """Facts of a tokenizer's codes on some images; ``perplexity`` is how many codes are in use, evenly counted."""

    grid: tuple[int, int]
    width: int
    used: int
    perplexity: float

    def __str__(self) -> str:
        return (
            f"grid                {self.grid[0]} x {self.grid[1]} codes of a codebook of {self.width}\n"
            f"codes in use        {self.used}, perplexity {self.perplexity:.1f}"
        )


TargetReport = TeacherReport | PixelReport | CodeReport


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def check_teacher(target: Target, images01: Tensor, minimum_spread: float = 1e-3) -> TargetReport:
    """Run the target on ``images01`` (float ``[B,3,H,W]`` in [0, 1], best real ones and B >= 2) and describe it.

    Raises:
        ConfigError: images out of range, targets of another shape than promised, not finite, zero, or (nearly) the
            same at every position or for every image.
    """
    if images01.min() < 0 or images01.max() > 1:
        raise ConfigError("The teacher takes images in [0, 1]; these are normalised already or in 0..255.")
    with torch.no_grad():
        values = target(images01)
    _check_shape(target, values, len(images01))
    if target.kind == "codes":
        return _check_codes(target, values)
    if target.kind == "pixels":
        return _check_pixels(target, values)
    return _check_tokens(target, values.float(), images01, minimum_spread)


def _check_codes(target: Target, codes: Tensor) -> CodeReport:
    if codes.dtype != torch.int64 or codes.min() < 0 or codes.max() >= target.width:
        raise ConfigError(f"The tokenizer's codes are not int64 values in 0..{target.width - 1}.")
    share = torch.bincount(codes.flatten(), minlength=target.width).double() / codes.numel()
    used = int((share > 0).sum())
    if used < 2:
        raise ConfigError("The tokenizer gives the same code everywhere: there is nothing to predict.")
    return CodeReport(target.grid, target.width, used, torch.special.entr(share).sum().exp().item())


def _check_pixels(target: Target, pixels: Tensor) -> PixelReport:
    square = pixels.square().mean(-1)
    if not square.isfinite().all():
        raise ConfigError("The pixel targets are not finite: check the images.")
    if square.max() < 1e-3:
        raise ConfigError("Every patch of these images is flat: there is nothing to predict.")
    return PixelReport(target.grid, target.width, square.mean().item(), (square < 1e-3).double().mean().item())


def _check_tokens(target: Target, tokens: Tensor, images01: Tensor, minimum_spread: float) -> TeacherReport:
    if not tokens.isfinite().all():
        raise ConfigError("The teacher's tokens are not finite: check its weights and precision.")
    norms = tokens.norm(dim=-1)
    if norms.min() <= 0:
        raise ConfigError("Some of the teacher's tokens are zero: they have no direction to predict.")
    unit = tokens / norms[..., None]
    patches = unit[:, 1:]
    position_spread = _spread(patches, 1)
    if position_spread < minimum_spread:
        raise ConfigError(f"The teacher's tokens hardly differ between positions (spread {position_spread:.2g}).")
    distinct = len(images01) > 1 and not torch.equal(images01[0], images01[1])
    image_spread = _spread(patches, 0) if distinct else None
    if image_spread is not None and image_spread < minimum_spread:
        raise ConfigError(f"The teacher's tokens hardly differ between images (spread {image_spread:.2g}).")
    mean, std = getattr(target, "statistics", ((), ()))
    return TeacherReport(
        grid=target.grid,
        width=target.width,
        has_class_token=target.has_class_token,
        projected=getattr(target, "projected", None),
        activation=getattr(target, "activation", "unknown"),
        mean=mean,
        std=std,
        token_mean=tokens.mean().item(),
        token_std=tokens.std().item(),
        patch_norm=norms[:, 1:].mean().item(),
        class_norm=norms[:, 0].mean().item(),
        class_patch_cosine=(patches * unit[:, :1]).sum(-1).mean().item(),
        position_spread=position_spread,
        image_spread=image_spread,
    )


def _check_shape(target: Target, values: Tensor, batch: int) -> None:
    count = target.grid[0] * target.grid[1]
    expected: tuple[int, ...] = (batch, count) if target.kind == "codes" else (batch, count, target.width)
    if target.kind == "tokens":
        expected = (batch, 1 + count, target.width)
    if tuple(values.shape) != expected:
        raise ConfigError(f"The teacher returned {tuple(values.shape)} where its grid and width promise {expected}.")


def _spread(unit: Tensor, dim: int) -> float:
    """Root mean squared distance of unit tokens from their mean along ``dim``: 0 for a constant, at most 1."""
    return (unit - unit.mean(dim, keepdim=True)).square().sum(-1).mean().sqrt().item()
