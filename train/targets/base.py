"""The seam between a frozen target and an objective: float images in, tokens, pixels or codes out.

Shapes: B batch, N = grid rows x columns patch tokens, T teacher width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from digpt.errors import ConfigError
from train.augment import normalise
from train.objective.spaces import TargetKind


class Target(Protocol):
    """What an objective learns to predict."""

    fingerprint: str  # of what decides the values, for the record of a run
    provenance: dict[str, Any]  # where that came from

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """``nn.Module.to``: every target is a module."""

    @property
    def kind(self) -> TargetKind:
        """``tokens``, ``pixels`` or ``codes``."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens at the student's image size."""

    @property
    def width(self) -> int:
        """Of a prediction: T of teacher tokens, p*p*3 of pixels, the size of the codebook of codes."""

    @property
    def has_class_token(self) -> bool:
        """False where the pooled embedding stands in for the class token, or there is none at all."""

    def __call__(self, images01: Tensor) -> Tensor:
        """float ``[B,3,H,W]`` in [0, 1] -> tokens ``[B, 1+N, T]``, class token first; pixels ``[B, N, p*p*3]``;
        codes int64 ``[B, N]``."""


class VisionTarget(nn.Module, ABC):
    """A frozen vision tower with its own normalisation; always in eval mode, never with gradients.

    Move it to bf16 with ``.to(torch.bfloat16)``: images are normalised in float32 first.
    """

    kind: TargetKind = "tokens"
    grid: tuple[int, int]
    width: int
    has_class_token: bool
    projected: bool
    fingerprint: str = ""  # of the model the tower comes from, and where that came from
    provenance: dict[str, Any] = {}  # noqa: RUF012 - replaced per instance, never changed in place

    def __init__(self, tower: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        self.statistics = (tuple(mean), tuple(std))

    def train(self, mode: bool = True) -> VisionTarget:
        """A teacher stays in eval mode whatever its surroundings do."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images01: Tensor) -> Tensor:
        """float ``[B,3,H,W]`` in [0, 1] -> ``[B, 1+N, T]``, class token first, in the tower's dtype."""
        normalised = normalise(images01.float(), *self.statistics)
        return self.tokens(normalised.to(next(self.tower.parameters()).dtype))

    @abstractmethod
    def tokens(self, normalised: Tensor) -> Tensor:
        """Images in the teacher's own statistics -> ``[B, 1+N, T]``, class token first."""

    @property
    def activation(self) -> str:
        """The activation of the tower's MLPs: ``quick_gelu``, ``gelu``, ``gelu_tanh``, ..."""
        for name, module in self.tower.named_modules():
            if name.rpartition(".")[2] in ("gelu", "act"):  # open_clip's and timm's name of it
                return activation_name(module)
        return "none found"


def activation_name(module: nn.Module) -> str:
    """``QuickGELU()`` -> ``quick_gelu``, ``GELU(approximate="tanh")`` -> ``gelu_tanh``, otherwise the class name."""
    kind = type(module).__name__
    if kind in ("QuickGELU", "QuickGELUActivation"):
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else f"gelu_{module.approximate}"
    return kind.lower()


def sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image size."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def grid_of(image_size: int | tuple[int, int], patch: tuple[int, int], teacher: str) -> tuple[int, int]:
    """The teacher's token grid on the student's crop.

    Raises:
        ConfigError: the crop is not a multiple of the teacher's patch; the message names sizes that are.
    """
    height, width = sides(image_size)
    for side, size in ((height, patch[0]), (width, patch[1])):
        if side % size or side < size:
            low = max(side // size, 1) * size
            raise ConfigError(
                f"{teacher} has patches of {size} px, which do not divide the student's {side} px crop: "
                f"use {low} or {low + size} px, or another teacher."
            )
    return height // patch[0], width // patch[1]
