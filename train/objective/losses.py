"""Cosine loss, grid resizing and the constant predictions that a model must beat.

Shapes: B batch, K clusters, S_t teacher tokens per cluster, T teacher width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cosine_loss(prediction: Tensor, target_unit: Tensor) -> Tensor:
    """Per-token ``2 - 2*cos``, ``[..., T]`` -> ``[...]`` in float32; ``target_unit`` is already L2-normalised."""
    prediction = prediction.float()
    dot = (prediction * target_unit).sum(-1)
    return 2 - 2 * dot / torch.linalg.vector_norm(prediction, dim=-1).clamp_min(1e-6)


def resize_matrix(source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Bilinear resizing (corners not aligned) of a flattened grid as a matrix ``[h_t*w_t, h_s*w_s]``, float32."""
    identity = torch.eye(source[0] * source[1]).reshape(1, -1, *source)  # one channel per source cell
    resized = F.interpolate(identity, size=target, mode="bilinear", align_corners=False)
    return resized.flatten(2)[0].T


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A block in which autocast is off; on devices that know none, such as ``meta``, nothing changes."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class GridResize(nn.Module):
    """Resize tokens ``[..., S, T]`` of one grid to ``[..., S_t, T]`` of another, in float32; equal grids pass through.

    A matrix product: unlike the interpolation kernels its backward is deterministic.
    """

    matrix: Tensor | None

    def __init__(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        super().__init__()
        matrix = None if source == target else resize_matrix(source, target)
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.matrix is None:
            return tokens
        with without_autocast(tokens.device):
            return self.matrix.float() @ tokens.float()


class Baseline(nn.Module):
    """Loss of the best constant prediction: a model below this line has learned something about the image.

    It works on summaries, means over tokens in which that loss is linear (``TargetSpace.summary``), and keeps their
    running average (plain for the first 100 training batches, then exponential with weight 0.01) over
    all processes.
    """

    mean: Tensor
    batches: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, batch_mean: Tensor) -> None:
        """Fold the mean summary ``[W]`` of one batch, equally large in every process, into the running mean."""
        self.batches += 1
        mean = batch_mean.to(self.mean.dtype)
        if torch.distributed.is_initialized():
            mean = mean.clone()
            torch.distributed.all_reduce(mean)
            mean /= torch.distributed.get_world_size()
        self.mean.lerp_(mean, (1 / self.batches).clamp_min(0.01))


class MeanBaseline(Baseline):
    """Predict, everywhere, the mean direction of the unit targets.

    The best constant is m = mean(t)/|mean(t)| and its loss is ``2 - 2*mean(cos(t, m))``.
    """

    @torch.no_grad()
    def forward(self, target_unit_mean: Tensor) -> Tensor:
        """``2 - 2*cos`` averaged over tokens, given the mean ``[..., T]`` of their unit targets -> ``[...]``.

        The cosine is linear in the target, so the mean of the targets suffices.
        """
        return 2 - 2 * (target_unit_mean * F.normalize(self.mean, dim=0)).sum(-1)


class VarianceBaseline(Baseline):
    """Predict zero, the mean of every normalised patch: the loss is the mean square, about 1 less for flat patches."""

    @torch.no_grad()
    def forward(self, mean_square: Tensor) -> Tensor:
        """Mean squares ``[..., 1]`` -> ``[...]``."""
        return mean_square[..., 0]


class FrequencyBaseline(Baseline):
    """Predict, everywhere, the running frequency of the codes: on average the loss is its entropy, in nats."""

    @torch.no_grad()
    def forward(self, frequencies: Tensor) -> Tensor:
        """Code frequencies ``[..., V]`` of some tokens -> their cross-entropy ``[...]`` under the running ones.

        A code that training has not met yet counts as seen once in a million tokens.
        """
        return -(frequencies * self.mean.clamp_min(1e-6).log()).sum(-1)
