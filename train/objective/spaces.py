"""What is predicted: teacher tokens, pixels or discrete codes, each with its loss and its constant baseline.

Shapes: B batch, N target positions (grid rows x columns), W width of a prediction, W_t that of a target (W for tokens
and pixels, 1 for codes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from digpt.errors import ConfigError, near_misses
from train.objective.losses import Baseline, FrequencyBaseline, MeanBaseline, VarianceBaseline, cosine_loss

TargetKind = Literal["tokens", "pixels", "codes"]


@dataclass(frozen=True)
class TargetSpace:
    """The space of targets: ``kind``, ``grid`` (rows, columns) and ``width``.

    | kind | width | a target | loss of a token |
    |---|---|---|---|
    | tokens | T | teacher tokens with the class token first, L2-normalised here | ``2 - 2*cos`` |
    | pixels | p*p*3 | normalised pixels of a patch (MAE, section 3) | mean squared error |
    | codes | V, codes in the codebook | int64 in 0..V-1 | cross-entropy, nats |
    """

    kind: TargetKind
    grid: tuple[int, int]
    width: int

    def __post_init__(self) -> None:
        kinds = get_args(TargetKind)
        if self.kind not in kinds:
            raise ConfigError(
                f"Unknown target kind {self.kind!r}; valid: {', '.join(kinds)}.{near_misses(self.kind, kinds)}"
            )

    @property
    def count(self) -> int:
        """N, positions of the grid."""
        return self.grid[0] * self.grid[1]

    @property
    def has_class(self) -> bool:
        """Whether targets carry a class token."""
        return self.kind == "tokens"

    def check_grid(self, patch_grid: tuple[int, int]) -> None:
        """Raise ConfigError unless predictions on ``patch_grid`` can be compared with these targets."""
        if self.kind != "tokens" and tuple(self.grid) != tuple(patch_grid):
            raise ConfigError(
                f"Targets of kind {self.kind!r} must lie on the patch grid {patch_grid[0]}x{patch_grid[1]}, not on "
                f"{self.grid[0]}x{self.grid[1]}: only teacher tokens can be resized."
            )

    @torch.no_grad()
    def split(self, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Check a batch of targets -> patches ``[B,N,W_t]`` ready for :meth:`loss` and the class target ``[B,W_t]``.

        Raises:
            ConfigError: another shape than promised.
        """
        if self.kind == "tokens":
            self._check(targets, (1 + self.count, self.width), "[1 + tokens, width]")
            unit = F.normalize(targets.float(), dim=-1)
            return unit[:, 1:], unit[:, 0]
        if self.kind == "pixels":
            self._check(targets, (self.count, self.width), "[patches, p*p*3]")
            return targets.float(), None
        self._check(targets, (self.count,), "[patches]")
        if targets.dtype != torch.int64:
            raise ConfigError(f"Codes must be int64, not {targets.dtype}.")
        return targets[..., None], None

    def _check(self, targets: Tensor, expected: tuple[int, ...], meaning: str) -> None:
        if tuple(targets.shape[1:]) != expected:
            raise ConfigError(f"Targets {tuple(targets.shape[1:])} are not {meaning} = {expected}.")

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of every token in float32: ``[..., W]`` and ``[..., W_t]`` -> ``[...]``."""
        if self.kind == "tokens":
            return cosine_loss(prediction, target)
        if self.kind == "pixels":
            return (prediction.float() - target).square().mean(-1)
        logits, codes = prediction.float().flatten(0, -2), target.flatten()
        return F.cross_entropy(logits, codes, reduction="none").view(target.shape[:-1])

    @torch.no_grad()
    def summary(self, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean over the tokens of ``[..., S, W_t]``, weighted by ``[..., S]``, of what :meth:`baseline` needs.

        Returns ``[..., T]`` unit targets, ``[..., 1]`` mean squares, or ``[..., V]`` code frequencies.
        """
        if self.kind == "codes":
            weights = torch.ones_like(target[..., 0], dtype=torch.float32) if weights is None else weights
            counts = weights.new_zeros(*target.shape[:-2], self.width).scatter_add_(-1, target[..., 0], weights)
            return counts / weights.sum(-1, keepdim=True)
        values = target if self.kind == "tokens" else target.square().mean(-1, keepdim=True)
        if weights is None:
            return values.mean(-2)
        return (weights[..., None] * values).sum(-2) / weights.sum(-1, keepdim=True)

    def baseline(self) -> Baseline:
        """A fresh constant prediction for this kind."""
        if self.kind == "tokens":
            return MeanBaseline(self.width)
        return VarianceBaseline(1) if self.kind == "pixels" else FrequencyBaseline(self.width)
