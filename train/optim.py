"""Optimiser and schedule: AdamW with weight decay on matrices only, linear warm-up, then a decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn, optim

from train.config import TrainConfig


def decay_groups(module: nn.Module, weight_decay: float, no_decay: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The trainable parameters in two groups; vectors, scalars and the names in ``no_decay`` get no weight decay."""
    exempt = set(no_decay)
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 or name in exempt else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> optim.AdamW:
    """AdamW over parameter groups; a group's ``lr_scale`` (layer-wise decay) multiplies its learning rate."""
    filled = [{"lr_scale": 1.0, **group} for group in groups if group["params"]]
    return optim.AdamW(filled, lr=config.lr, betas=config.betas, fused=_can_fuse(filled))


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    """Whether torch's one-kernel AdamW takes these parameters; on two CPU cores it updates 2 to 6 times as fast."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return devices <= {"cpu", "cuda"}


def set_learning_rate(optimizer: optim.Optimizer, step: int, config: TrainConfig) -> None:
    """Give every group the rate of the 0-based ``step``, times its ``lr_scale``."""
    rate = learning_rate(step, config)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of the 0-based ``step``: linear warm-up to ``lr``, then by the config's ``decay`` to ``min_lr``."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.min_lr + (config.lr - config.min_lr) * config.decay(progress)
