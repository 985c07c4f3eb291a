"""Batch norm over the batches of all processes, so that statistics do not depend on how many processes there are.

torch's own ``SyncBatchNorm`` runs on GPUs only; here is the same arithmetic for CPUs, where processes are tested.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


class _Total(torch.autograd.Function):
    """The sum over all processes; so is its gradient, since every process's loss depends on it."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


def _total(values: Tensor) -> Tensor:
    found: Tensor = _Total.apply(values)
    return found


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose mean and variance in training are those of all processes' batches together.

    Mean and then squared deviations are summed over the processes, with gradients; batches have equal sizes.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """``[B,C,H,W]`` -> the same; in eval mode as the base class."""
        if not self.training:
            return super().forward(maps)
        values = maps.float()
        count = values.numel() // values.shape[1] * torch.distributed.get_world_size()
        mean = _total(values.sum((0, 2, 3))) / count
        variance = _total((values - mean[:, None, None]).square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(maps.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as torch does by ``momentum``."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
            self.num_batches_tracked.add_(1)


def synchronised(module: nn.Module, device: torch.device) -> None:
    """Let every ``nn.BatchNorm2d`` below ``module`` see all processes' batches, in place; nothing with one process.

    Names and values of parameters and buffers stay what they were.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    kind: Any = nn.SyncBatchNorm if device.type == "cuda" else CpuSyncBatchNorm
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                new = kind(child.num_features, child.eps, child.momentum).to(child.weight.device)
                new.load_state_dict(child.state_dict())
                setattr(parent, name, new.train(child.training))
