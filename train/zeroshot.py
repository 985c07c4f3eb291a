"""Align a D-iGPT encoder with the teacher's text tower, contrastively, to a checkpoint that embeds text too.

    python -m train.zeroshot --encoder runs/pretrain/ckpt.pt --output runs/zeroshot

On the bundled data by default; ``--data wds:SHARDS --teacher openclip-h`` tunes both towers on image-text pairs from
disk (``train.imagetext``). Of the bundled data:

The text tower is frozen (LiT, Zhai et al., 2022), so every image is contrasted with all training concepts. Beside the
true caption the encoder learns the teacher's distribution over them (``--distill 0`` leaves that out).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from digpt.artifact import Checkpoint
from digpt.errors import CapabilityError, ConfigError
from digpt.sources import load_model
from train.augment import AugmentConfig, normalise
from train.clock import Clock
from train.config import TrainConfig, main, resolved, say
from train.contrastive import SIDE_SPLITS, Captions, all_concepts_loss, text_to_image_loss, zero_shot_figures
from train.cost import NOTHING, image_tower_cost, tuning_cost
from train.data import Batch, emoji_training
from train.distributed import gather
from train.imagetext import PairsTask
from train.loop import train
from train.optim import decay_groups
from train.photo_augment import CropConfig
from train.provenance import parent, provenance
from train.share import Share
from train.sources import refuse_unused
from train.starts import start_encoder
from train.task import Evaluation, group


@dataclass(frozen=True)
class ZeroshotConfig(TrainConfig):
    """What is aligned with what."""

    output: Path = Path("runs/zeroshot")
    encoder: str = "runs/pretrain/ckpt.pt"  # a pretraining checkpoint, or "random" for the control without pretraining
    teacher: str = "bundled-teacher"  # whose text tower it is aligned with
    variant: str = "Ti/16"  # shape of the encoder when it is "random"
    image_size: int = 64  # side in pixels
    depth: int | None = 6  # blocks of a "random" encoder; None: the variant's own
    max_logit_scale: float = 100.0  # largest inverse temperature of the contrast
    freeze_text: bool = False  # of pairs from disk; the bundled captions' tower is always frozen
    val_data: str = ""  # pairs on disk to measure retrieval on
    crop: CropConfig = field(default_factory=lambda: CropConfig(scale=(0.9, 1.0), flip=0.0))  # of pairs on disk
    distill: float = 1.0  # weight of the teacher's own distribution over the concepts, beside the true one; 0: without
    splits: tuple[str, ...] = SIDE_SPLITS  # of the bundled set, to evaluate on
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # of the bundled set

    def check_given(self, given: frozenset[str]) -> None:
        """Refuse the options of the other kind of data."""
        bundled, pairs = ("distill", "splits", "augment"), ("freeze_text", "val_data", "crop")
        refuse_unused(given, self.data, *(pairs if self.data == "emoji" else bundled))


class ZeroshotModule(nn.Module):
    """Encoder (mean of the patch tokens, then timm's ``fc_norm``), projection and temperature."""

    def __init__(self, encoder: VisionTransformer, dim: int, logit_scale: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Linear(encoder.embed_dim, dim, bias=False)
        nn.init.normal_(self.projection.weight, std=encoder.embed_dim**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(logit_scale)]))  # FSDP2 shards no scalars

    def forward(self, normalised: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised ``[B,3,S,S]`` -> unit ``[B,D]`` and the logit scale."""
        return F.normalize(self.projection(self.encoder(normalised)).float(), dim=-1), self.logit_scale.exp().squeeze()


class ZeroshotTask:
    """Contrastive tuning of the image side against frozen caption embeddings."""

    name = "zeroshot"

    def __init__(self, config: ZeroshotConfig) -> None:
        torch.manual_seed(config.seed)
        self.data = emoji_training(config, config.augment, config.image_size)
        self.config = resolved(config, len(self.data))
        self.teacher = load_model(config.teacher)
        if self.teacher.text is None or self.teacher.text.tokenizer_json is None:
            raise CapabilityError(f"{config.teacher} has no text tower of our own; train one with train.teacher.")
        self.text = self.teacher.text
        self.parents = [parent("teacher", self.teacher.fingerprint, self.teacher.provenance)]
        start = start_encoder(config.encoder, config.variant, config.image_size, config.depth)
        self.encoder_config, self.preprocess = start.config, start.preprocess
        self.parents += start.parents
        self.captions = Captions(self.data.emoji, self.text.tokenize)
        self.table = self._embed(self.captions.tokens)  # unit [captions, D]
        self.names = self._embed(torch.from_numpy(self.text.tokenize(self.data.emoji.five_style_names())))
        self.module = ZeroshotModule(start.encoder, self.table.shape[1], self.teacher.logit_scale or 14.3)
        self.module.encoder.set_grad_checkpointing(config.checkpointing)

    @torch.no_grad()
    def _embed(self, tokens: Tensor) -> Tensor:
        return torch.cat([F.normalize(self.text.module(part).float(), dim=-1) for part in tokens.split(256)])

    def to(self, device: torch.device) -> None:
        """Move the teacher and the tables of captions."""
        self.captions.to(device)
        self.teacher.module.to(device)
        self.table = self.table.to(device)

    def blocks(self) -> list[nn.Module]:
        return list(self.module.encoder.blocks)

    def batches(self, first: int, share: Share) -> Iterator[list[Batch]]:
        if share.accumulate > 1:
            raise ConfigError("train.zeroshot contrasts within the whole batch: leave accumulate at 1.")
        return self.data.batches(first, share)

    def loss(self, model: nn.Module, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        with clock.part("loader"):
            batch = batch.to(self.table.device)
            rows = self.captions.row[batch.labels]
            # one caption per concept and step, keyed by the step
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + batch.step)
            everyone = torch.arange(self.captions.count, device=rows.device)
            uniform = torch.rand(self.captions.count, generator=generator).to(rows.device)
            texts = self.table[self.captions.draw(everyone, uniform)]
            distinct, inverse = torch.unique(gather(rows), return_inverse=True)
            positive = F.one_hot(inverse, len(distinct)).T.float()
            images = self.normalise(batch.images)
        soft = self._teacher_distribution(batch.images, texts, clock) if self.config.distill else None
        with clock.part("encoder"):
            embedded, scale = model(images)
            to_text = all_concepts_loss(embedded, texts, rows, scale)
            to_image = text_to_image_loss(gather(embedded), texts[distinct], positive, scale)
            contrastive = (to_text + to_image) / 2
            if soft is None:
                return {"loss": contrastive, "scale": scale.detach()}
            distilled = F.cross_entropy(scale * embedded @ texts.T, soft)
        loss = contrastive + self.config.distill * distilled
        return {"loss": loss, "contrastive": contrastive.detach(), "distilled": distilled.detach()}

    @torch.no_grad()
    def _teacher_distribution(self, images: Tensor, texts: Tensor, clock: Clock) -> Tensor:
        """What the teacher makes of images in [0, 1]: probabilities ``[B,C]`` over the concepts' unit texts."""
        with clock.part("teacher"):
            module = self.teacher.module
            embedded = F.normalize(module.embed(module.normalise_float(images)).float(), dim=-1)
            return ((self.teacher.logit_scale or 1.0) * embedded @ texts.T).softmax(dim=1)

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] in the encoder's statistics."""
        return normalise(images, self.preprocess.mean, self.preprocess.std)

    def backward(self, loss: Tensor, clock: Clock) -> None:
        with clock.part("encoder"):
            loss.backward()

    def after_step(self) -> None:
        with torch.no_grad():
            self.module.logit_scale.clamp_(max=math.log(self.config.max_logit_scale))

    @cached_property
    def _splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: self.data.split(name) for name in self.config.splits}

    def evaluate(self, evaluation: Evaluation) -> dict[str, float]:
        """Zero-shot top-1 among the five-style names, per split."""

        def embed(images: Tensor) -> Tensor:
            evaluation.check()
            return self.module(self.normalise(images.to(evaluation.device)))[0].cpu()

        return zero_shot_figures(self.data.emoji, self.names, embed, self._splits.__getitem__, self.config.splits)

    def best(self) -> str:
        return "flat_top1"

    def parameter_groups(self) -> list[dict[str, Any]]:
        exempt = "encoder.cls_token", "encoder.pos_embed", "logit_scale"
        return decay_groups(self.module, self.config.weight_decay, exempt)

    def flops_per_image(self) -> float:
        return self._flops

    @cached_property
    def _flops(self) -> float:
        config = self.config
        tower = image_tower_cost(config.teacher, config.image_size) if config.distill else NOTHING
        return tuning_cost(self.encoder_config, self.table.shape[1], False, tower, config.precision).total

    def notes(self) -> dict[str, float]:
        return self.data.notes()

    def inputs(self) -> dict[str, str]:
        return {"data": self.data.fingerprint, **{parent["role"]: parent["fingerprint"] for parent in self.parents}}

    def checkpoint(self, figures: dict[str, float], state: dict[str, Tensor]) -> Checkpoint:
        text = {**self.teacher.config["text"], "logit_scale": math.exp(state["logit_scale"].item())}
        head = {"type": "projection", "in": self.module.encoder.embed_dim, "out": self.table.shape[1]}
        return Checkpoint(
            config={
                "architecture": "timm",
                "encoder": self.encoder_config,
                "preprocess": self.preprocess.to_dict(),
                "pooling": "avg",
                "head": head,
                "text": text,
                "labels": self.data.emoji.five_style_names(),
                "objective": None,
            },
            weights={
                "encoder": group(state, "encoder"),
                "head": group(state, "projection"),
                "text": self.text.module.state_dict(),
            },
            provenance=provenance(self.name, self.config, self.data, self.parents, figures),
        )


def run(config: ZeroshotConfig) -> Path:
    """Tune; prints the commands to type next; returns the checkpoint's path."""
    path = train(ZeroshotTask(config) if config.data == "emoji" else PairsTask(config))
    say(f"next: python -m evaluate.robustness {path}")
    say(f"      python -m export {path} --to onnx --output {path.parent / 'artifact'}")
    say(f"      python -m serve --model {path}")
    return path


if __name__ == "__main__":
    raise SystemExit(main("zeroshot", run))
