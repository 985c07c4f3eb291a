"""How fast this machine's device takes a recipe's step: real modules, fresh weights, random images, no data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from digpt.encoder import build_encoder, finetuned_config
from digpt.segmentation import SegmentConfig
from train.config import TrainConfig
from train.cost import Cost, Tuned, measured_peak, pretrain_modules, utilisation
from train.optim import build_optimizer, decay_groups
from train.pixel_loss import segment_losses
from train.segment_cost import segment_skeleton

SECONDS, EXPECTED = 1.0, 0.3  # a measured step has the images that take about so long at such a share of the peak
ON_CUDA = 64  # images at most, to fit
STEPS = 3  # after one to warm up; the fastest counts


@dataclass(frozen=True)
class MeasuredStep:
    """``peak`` is that of a matrix product on ``device``, in FLOP/s; ``share`` of it is what the step reached."""

    device: str
    peak: float
    share: float


def measured_pretraining(config: Any, cost: Cost, micro_batch: int) -> MeasuredStep:
    """Time teacher, forward, backward and AdamW of ``config`` (a ``train.pretrain.PretrainConfig``).

    A step has ``micro_batch`` images, or fewer where these would take long.
    """
    device = _device(config)
    objective, target = pretrain_modules(
        config.encoder(), config.teacher, config.paradigm, config.options(), str(device)
    )
    if config.precision == "bf16" and device.type == "cuda":
        target.to(torch.bfloat16)
    objective.set_grad_checkpointing(config.checkpointing)
    peak = _peak(device, config)
    images = _images(device, objective.encoder.patch_embed.img_size, peak, cost.total, micro_batch)
    order = torch.rand(len(images) * config.orders, objective.units, device=device).argsort(1)

    def loss() -> Tensor:
        with torch.no_grad():
            targets = target(images)
        repeated, targets = (part.repeat_interleave(config.orders, 0) for part in (images, targets))
        return objective(repeated, targets, order).loss

    seconds = _seconds(objective, objective.blocks(), loss, config, device)
    return MeasuredStep(_name(device), peak, utilisation(cost.total, len(images) / seconds, peak))


def measured_tuning(
    encoder: Mapping[str, Any], outputs: int, config: TrainConfig, cost: Cost, micro_batch: int
) -> MeasuredStep:
    """Time forward, backward and AdamW of the encoder and its head; what is frozen beside them is left out."""
    device = _device(config)
    with device:
        module = Tuned(build_encoder(finetuned_config(dict(encoder))), outputs, bias=True).train()
    module.encoder.set_grad_checkpointing(config.checkpointing)
    peak, flops = _peak(device, config), cost.encoder + cost.decoders
    images = _images(device, module.encoder.patch_embed.img_size, peak, flops, micro_batch)
    blocks = list(module.encoder.blocks)
    seconds = _seconds(module, blocks, lambda: module(images).float().square().mean(), config, device)
    return MeasuredStep(_name(device), peak, utilisation(flops, len(images) / seconds, peak))


def measured_segmenting(
    encoder: Mapping[str, Any], segment: SegmentConfig, config: TrainConfig, cost: Cost, micro_batch: int
) -> MeasuredStep:
    """Time forward, backward and AdamW of a segmenter on crops with random labels, two at least (for batch norm)."""
    device = _device(config)
    module = segment_skeleton(encoder, segment, device)
    module.encoder.set_grad_checkpointing(config.checkpointing)
    peak = _peak(device, config)
    images = _images(device, (segment.crop, segment.crop), peak, cost.total, micro_batch)
    images = images.repeat(2 // len(images) or 1, 1, 1, 1)
    labels = torch.randint(segment.n_classes, (len(images), segment.crop, segment.crop), device=device)
    blocks = list(module.encoder.blocks)
    seconds = _seconds(module, blocks, lambda: segment_losses(module(images), labels)["loss"], config, device)
    return MeasuredStep(_name(device), peak, utilisation(cost.total, len(images) / seconds, peak))


def _peak(device: torch.device, config: TrainConfig) -> float:
    return measured_peak(device, torch.bfloat16 if config.precision == "bf16" else torch.float32)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def _device(config: TrainConfig) -> torch.device:
    if config.device == "auto" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    torch.set_num_threads(config.threads)
    return torch.device("cpu")


def _images(device: torch.device, size: tuple[int, int], peak: float, flops: float, micro_batch: int) -> Tensor:
    count = max(1, min(micro_batch, int(SECONDS * EXPECTED * peak / flops)))
    return torch.rand(min(count, ON_CUDA) if device.type == "cuda" else count, 3, *size, device=device)


def _seconds(
    module: nn.Module, blocks: list[nn.Module], loss: Callable[[], Tensor], config: TrainConfig, device: torch.device
) -> float:
    """Seconds of the fastest of a few whole steps."""
    if config.compile:
        for block in blocks:
            block.compile(backend=config.compile)
    optimizer = build_optimizer(decay_groups(module, config.weight_decay), config)
    best = float("inf")
    for number in range(STEPS + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            value = loss()
        value.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:  # the first step allocates, compiles and picks its kernels
            best = min(best, time.perf_counter() - start)
    return best
