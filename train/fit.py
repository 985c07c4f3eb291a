"""What a step needs of a GPU's memory, the micro-batch that fits, and what a run leaves on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import open_clip

from train.config import TrainConfig
from train.cost import Cost, Frozen

USABLE = 0.9  # of the memory; the rest is for the CUDA context, NCCL, workspaces and fragmentation


@dataclass(frozen=True)
class Gpu:
    """Dense peak FLOP/s of matrix products (bfloat16 tensor cores; float32 without TF32), and bytes of memory."""

    bf16: float
    fp32: float
    memory: float


# NVIDIA's data sheets, SXM parts where there are several; tensor-core figures without sparsity.
GPUS: dict[str, Gpu] = {
    "b200": Gpu(2250e12, 75e12, 180e9),
    "h200": Gpu(989e12, 67e12, 141e9),
    "h100": Gpu(989e12, 67e12, 80e9),
    "a100": Gpu(312e12, 19.5e12, 80e9),
    "a100-40": Gpu(312e12, 19.5e12, 40e9),
    "l40s": Gpu(362e12, 91.6e12, 48e9),
    "l4": Gpu(121e12, 30.3e12, 24e9),
    "a10": Gpu(125e12, 31.2e12, 24e9),
}


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU at the peak of a step."""

    parameters: float
    gradients: float
    moments: float
    copies: float  # bfloat16 and averaged copies of the weights, DDP's buckets, FSDP2's gathered blocks
    teacher: float
    activations: float

    @property
    def total(self) -> float:
        """The sum: an upper bound, since the last gradients appear when the activations are gone."""
        return float(sum(dataclasses.astuple(self)))


def memory(cost: Cost, config: TrainConfig, gpus: int, micro_batch: int, checkpointing: bool) -> Memory:
    """Bytes per GPU with micro-batches of ``micro_batch`` images.

    Weights, gradients and AdamW's two moments are float32, over the GPUs with FSDP2; the teacher is whole everywhere. A
    moving average of the weights (finetuning's ``ema``) is one more float32 copy.
    """
    bf16 = config.precision == "bf16"
    sharded = config.sharding == "fsdp2" and gpus > 1
    shards = gpus if sharded else 1
    parameters = cost.trainable + cost.fixed
    if sharded:  # the block at work and the next one, prefetched
        copies = 2.0 * cost.block_parameters * (2 if bf16 else 4)
    else:
        copies = 2.0 * parameters * bf16 + 4.0 * cost.trainable * (gpus > 1)
    copies += 4.0 * parameters * bool(getattr(config, "ema", 0))
    per_image = cost.checkpointed + cost.block_activations if checkpointing else cost.activations
    return Memory(
        parameters=4.0 * parameters / shards,
        gradients=4.0 * cost.trainable / shards,
        moments=8.0 * cost.trainable / shards,
        copies=copies,
        teacher=(2.0 if bf16 else 4.0) * cost.frozen,
        activations=per_image * micro_batch,
    )


def smallest_accumulate(
    cost: Cost, config: TrainConfig, gpus: int, room: float, checkpointing: bool, most: int | None = None
) -> int | None:
    """The fewest micro-batches per step with which a step fits into ``room`` bytes; None where nothing does."""
    share = config.batch_size // gpus
    for accumulate in range(1, min(share, most or share) + 1):
        if share % accumulate == 0:
            need = memory(cost, config, gpus, share // accumulate, checkpointing).total
            if need <= room:
                return accumulate
    return None


def with_text_tower(cost: Cost, encoder: Mapping[str, Any], text: Frozen, model: str) -> Cost:
    """The cost of tuning the image ``encoder`` (timm's arguments) with open_clip ``model``'s text tower trained, too.

    One caption per image. A block of either tower keeps about as much per token and channel, so the activations of the
    text tower are estimated from the image encoder's largest block; with checkpointing every block keeps its float32
    input. Its FLOPs count among the decoders'.
    """
    tower = open_clip.CLIPTextCfg(**(open_clip.get_model_config(model) or {})["text_cfg"])
    size = encoder["img_size"]
    height, width = (size, size) if isinstance(size, int) else size
    image_tokens = 1 + (height // encoder["patch_size"]) * (width // encoder["patch_size"])
    channels = tower.context_length * tower.width
    block = cost.block_activations * channels / (image_tokens * encoder["embed_dim"])
    return dataclasses.replace(
        cost,
        decoders=cost.decoders + 3 * text.flops,
        recomputed=cost.recomputed + text.flops,
        trainable=cost.trainable + text.parameters,
        activations=cost.activations + tower.layers * block,
        checkpointed=cost.checkpointed + tower.layers * 4.0 * channels,
        block_activations=max(cost.block_activations, block),
    )


def verdict(need: float, room: float, smallest: int | None, written: bool) -> str:
    """Whether ``need`` bytes fit into ``room``, and from how many micro-batches on they do.

    ``written`` says that the recipe itself trains this way, with or without checkpointing.
    """
    if not written:
        return "would never fit" if smallest is None else f"would fit from --accumulate {smallest}"
    if need <= room:
        return "fits as written"
    remedy = "no --accumulate helps" if smallest is None else f"use --accumulate {smallest}"
    return f"does not fit as written: {remedy}"


def disk(cost: Cost, config: TrainConfig, text_parameters: int) -> dict[str, float]:
    """Bytes in the run's folder: the latest checkpoints, best and final one, and the resume state, written twice.

    The decoders stay in the checkpoint. A state is replaced atomically, so for a moment there are two.
    """
    width = 2.0 if config.store == "float16" else 4.0
    checkpoint = width * (cost.trainable + cost.fixed + text_parameters)
    kept = (config.keep_last + 1 if config.keep_last else 0) + 1
    return {
        "checkpoint": checkpoint,
        "checkpoints": checkpoint * kept,
        "resume_state": 2 * (12.0 * cost.trainable + 4.0 * cost.fixed),
    }
