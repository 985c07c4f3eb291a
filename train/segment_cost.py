"""What one training crop of a segmenter costs, counted like everything else (``train.cost``) with the losses included.

At 512 px the logits of 150 classes, resized to every pixel, are among the largest things that autograd keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from digpt.segmentation import SegmentConfig, Segmenter
from train.cost import NOTHING, PROBE, Cost, counted
from train.pixel_loss import segment_losses


def segment_skeleton(encoder: Mapping[str, Any], segment: SegmentConfig, device: torch.device | str) -> Segmenter:
    """A segmenter with fresh weights in training mode; ``encoder`` is the config of ``segment_encoder``."""
    with torch.device(device):
        vit = timm.create_model(**encoder)
        assert isinstance(vit, VisionTransformer)
        return Segmenter(vit, segment, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).train()


def segment_cost(encoder: Mapping[str, Any], segment: SegmentConfig, precision: str = "bf16") -> Cost:
    """The cost of a crop; pyramid and both heads stand under ``decoders``."""
    module = segment_skeleton(encoder, segment, "meta")
    images = torch.empty(PROBE, 3, segment.crop, segment.crop, device="meta")
    labels = torch.empty(PROBE, segment.crop, segment.crop, dtype=torch.int64, device="meta")

    def forward() -> Tensor:
        return segment_losses(module(images), labels)["loss"]

    checkpointing = module.encoder.set_grad_checkpointing
    return counted(module, list(module.encoder.blocks), forward, checkpointing, NOTHING, 1, precision)
