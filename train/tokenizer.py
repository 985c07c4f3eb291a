"""Train a discrete tokenizer, a small convolutional VQ autoencoder, on the bundled data: one code per patch.

    python -m train.tokenizer --output runs/tokenizer

Its codes are a pretraining target: ``python -m train.pretrain --teacher codes:runs/tokenizer/ckpt.pt``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.augment import AugmentConfig
from train.clock import Clock
from train.config import TrainConfig, main, resolved, say
from train.data import Batch, emoji_training
from train.loop import train
from train.optim import decay_groups
from train.provenance import provenance
from train.share import Share
from train.targets.tokenizer_model import TokenizerCheckpoint, VqConfig, VqTokenizer
from train.task import Evaluation


@dataclass(frozen=True)
class TokenizerConfig(TrainConfig):
    """The autoencoder's sizes and its codebook's rules; ``vq.patch_size`` is that of the students to come."""

    output: Path = Path("runs/tokenizer")
    image_size: int = 64  # side in pixels
    vq: VqConfig = field(default_factory=VqConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


class TokenizerTask:
    """Reconstruct images through the codebook."""

    name = "tokenizer"

    def __init__(self, config: TokenizerConfig) -> None:
        torch.manual_seed(config.seed)
        self.data = emoji_training(config, config.augment, config.image_size)
        self.config = resolved(config, len(self.data))
        self.module = VqTokenizer(config.vq, config.seed)

    def to(self, device: torch.device) -> None:
        """Nothing lives outside the module."""

    def blocks(self) -> list[nn.Module]:
        """A small convolutional network has no repeated block worth a shard of its own."""
        return []

    def batches(self, first: int, share: Share) -> Iterator[list[Batch]]:
        return self.data.batches(first, share)

    def loss(self, model: nn.Module, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        with clock.part("loader"):
            images = batch.images.to(self.module.codebook.codes.device, non_blocking=True)
        with clock.part("encoder"):
            losses: dict[str, Tensor] = model(images)
        return losses

    def backward(self, loss: Tensor, clock: Clock) -> None:
        with clock.part("encoder"):
            loss.backward()

    def after_step(self) -> None:
        """The codebook moved with the forward pass."""

    @cached_property
    def _validation(self) -> Tensor:
        return self.data.split("val")[0]

    def evaluate(self, evaluation: Evaluation) -> dict[str, float]:
        """On ``val``: ``val_psnr`` in dB of the reconstruction, ``val_perplexity`` and ``val_codes`` in use."""
        error, codes = 0.0, []
        for part in self._validation.split(128):
            evaluation.check()
            images = part.to(evaluation.device)
            found = self.module.codes(images)
            grid = (images.shape[2] // self.module.patch_size, images.shape[3] // self.module.patch_size)
            drawn = self.module.decode(found, grid).clamp(0, 1)
            error += (drawn - images).square().sum().item()
            codes.append(found.flatten().cpu())
        share = torch.bincount(torch.cat(codes), minlength=self.module.codebook_size).double()
        share /= share.sum()
        return {
            "val_psnr": -10 * math.log10(error / self._validation.numel()),
            "val_perplexity": torch.special.entr(share).sum().exp().item(),
            "val_codes": float((share > 0).sum()),
        }

    def best(self) -> str:
        return "val_psnr"

    def parameter_groups(self) -> list[dict[str, Any]]:
        return decay_groups(self.module, self.config.weight_decay)

    def flops_per_image(self) -> float:
        return 0.0

    def notes(self) -> dict[str, float]:
        return self.data.notes()

    def inputs(self) -> dict[str, str]:
        return {"data": self.data.fingerprint}

    def checkpoint(self, figures: dict[str, float], state: dict[str, Tensor]) -> TokenizerCheckpoint:
        record = provenance(self.name, self.config, self.data, [], figures)
        return TokenizerCheckpoint(self.module.config, state, record)


def run(config: TokenizerConfig) -> Path:
    """Train the tokenizer; returns the path of its file."""
    path = train(TokenizerTask(config))
    say(f"next: python -m train.pretrain --teacher codes:{path}")
    return path


if __name__ == "__main__":
    raise SystemExit(main("tokenizer", run))
