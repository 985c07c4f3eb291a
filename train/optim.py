"""Optimiser and schedule: AdamW with weight decay on matrices only, linear warm-up, cosine decay."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn, optim

from train.config import TrainConfig


def build_optimizer(module: nn.Module, config: TrainConfig, no_decay: Iterable[str] = ()) -> optim.AdamW:
    """AdamW over the trainable parameters; vectors, scalars and the names in ``no_decay`` get no weight decay."""
    exempt = set(no_decay)
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 or name in exempt else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return optim.AdamW(groups, lr=config.lr, betas=config.betas)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of the 0-based ``step``: linear warm-up to ``lr``, then a cosine to ``min_lr``."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
