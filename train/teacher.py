"""Train the teacher, a small contrastive image-text model from open_clip's own classes, on the bundled data.

    python -m train.teacher --output runs/teacher

The loss is CLIP's within the batch, plus both sides' cross-entropy over learned prototypes of all concepts.
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
from open_clip import CustomTextCLIP
from torch import Tensor, nn

from digpt.artifact import Checkpoint
from digpt.errors import ConfigError
from digpt.preprocess import Preprocess
from digpt.text import CompactTokenizer, train_tokenizer
from train.augment import AugmentConfig
from train.clock import Clock
from train.config import TrainConfig, main, resolved, say
from train.contrastive import Captions, Prototypes, all_concepts_loss, text_to_image_loss, zero_shot_figures
from train.data import Batch, emoji_training
from train.loop import train
from train.optim import decay_groups
from train.provenance import provenance
from train.share import Share
from train.task import Evaluation, group

MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class TeacherConfig(TrainConfig):
    """A ViT and a causal text transformer, both small."""

    output: Path = Path("runs/teacher")
    image_size: int = 64  # side in pixels
    trunk: str = "regnetx_002"  # a timm convolutional network; empty: open_clip's VisionTransformer as below
    patch_size: int = 16  # side of a patch in pixels
    width: int = 192  # of the VisionTransformer
    layers: int = 4  # blocks of the VisionTransformer
    head_width: int = 48  # of its attention heads
    embed_dim: int = 192  # of the space that images and texts share
    text_width: int = 192  # of the text transformer
    text_layers: int = 2  # blocks of the text transformer
    text_heads: int = 3  # attention heads of its blocks
    context_length: int = 12  # covers all but the longest captions; attention is paid for every position
    vocab_size: int = 2048  # tokens of the tokenizer that is built from the captions
    max_logit_scale: float = 100.0  # largest inverse temperature of the contrast
    augment: AugmentConfig = field(default_factory=AugmentConfig)


class TeacherModule(nn.Module):
    """The trainable model, and the prototypes that training alone uses."""

    def __init__(self, config: TeacherConfig, vocab_size: int, concepts: int) -> None:
        super().__init__()
        self.clip = CustomTextCLIP(
            config.embed_dim, vision_config(config), text_config(config, vocab_size), init_logit_scale=math.log(14.3)
        )
        self.prototypes = Prototypes(concepts, config.embed_dim)

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images in [0, 1] and tokens ``[U,L]`` -> unit ``[B,D]``, unit ``[U,D]``, unit prototypes, logit scale."""
        embedded = self.embed_images(images), self.embed_texts(tokens)
        return *embedded, self.prototypes(), self.clip.logit_scale.exp()

    def embed_images(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> unit ``[B,D]``."""
        images = ((images - MEAN[0]) / STD[0]).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.clip.encode_image(images).float(), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Tokens ``[U,L]`` -> unit ``[U,D]``."""
        return F.normalize(self.clip.encode_text(tokens).float(), dim=-1)


def vision_config(config: TeacherConfig) -> dict[str, Any]:
    """open_clip's ``CLIPVisionCfg`` fields."""
    if config.trunk:
        trunk = {"timm_model_name": config.trunk, "timm_pool": "avg", "timm_proj": "linear"}
        return {**trunk, "image_size": config.image_size}
    return {
        "layers": config.layers,
        "width": config.width,
        "head_width": config.head_width,
        "patch_size": config.patch_size,
        "image_size": config.image_size,
    }


def text_config(config: TeacherConfig, vocab_size: int) -> dict[str, Any]:
    """open_clip's ``CLIPTextCfg`` fields."""
    return {
        "context_length": config.context_length,
        "vocab_size": vocab_size,
        "width": config.text_width,
        "heads": config.text_heads,
        "layers": config.text_layers,
    }


class TeacherTask:
    """Contrastive training; one batch visits training images, each with a caption of its concept."""

    name = "teacher"

    def __init__(self, config: TeacherConfig) -> None:
        torch.manual_seed(config.seed)
        self.data = emoji_training(config, config.augment, config.image_size)
        self.config = config = resolved(config, len(self.data))
        trained = [caption for c in self.data.emoji.concepts if not c.unseen for caption in c.captions]
        self.tokenizer_json = train_tokenizer(trained, config.vocab_size)
        self.tokenizer = CompactTokenizer(self.tokenizer_json, config.context_length)
        self.captions = Captions(self.data.emoji, self.tokenizer)
        self.module = TeacherModule(config, self.tokenizer.vocab_size, self.captions.count)
        self.module.clip.visual.to(memory_format=torch.channels_last)

    def to(self, device: torch.device) -> None:
        """Nothing lives outside the module but the captions."""
        self.captions.to(device)

    def blocks(self) -> list[nn.Module]:
        """The text tower's; a convolutional trunk has no repeated block worth a shard of its own."""
        return list(self.module.clip.text.transformer.resblocks)

    def batches(self, first: int, share: Share) -> Iterator[list[Batch]]:
        if share.world * share.accumulate > 1:
            raise ConfigError("train.teacher contrasts within the whole batch: run it in one process, accumulate=1.")
        return self.data.batches(first, share)

    def loss(self, model: nn.Module, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        with clock.part("loader"):
            batch = batch.to(self.captions.row.device)
            rows = self.captions.row[batch.labels]
            distinct, inverse = torch.unique(rows, return_inverse=True)
            uniform = batch.draws[:, 0].new_zeros(len(distinct)).index_copy(0, inverse, batch.draws[:, 0])
            tokens = self.captions.tokens[self.captions.draw(distinct, uniform)]
            positive = F.one_hot(inverse, len(distinct)).T.float()  # [U, B]
        with clock.part("encoder"):
            images, texts, concepts, scale = model(batch.images, tokens)
            of_images = all_concepts_loss(images, concepts, rows, scale)
            of_texts = all_concepts_loss(texts, concepts, distinct, scale)
            to_text = all_concepts_loss(images, texts, inverse, scale)  # CLIP's loss, both ways, within the batch
            to_image = text_to_image_loss(images, texts, positive, scale)
        loss = of_images + of_texts + (to_text + to_image) / 2
        return {"loss": loss, "images": of_images.detach(), "texts": of_texts.detach(), "scale": scale.detach()}

    def backward(self, loss: Tensor, clock: Clock) -> None:
        with clock.part("encoder"):
            loss.backward()

    def after_step(self) -> None:
        with torch.no_grad():
            self.module.clip.logit_scale.clamp_(max=math.log(self.config.max_logit_scale))

    @cached_property
    def _splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: self.data.split(name) for name in ("val", "flat", "contrast")}

    def evaluate(self, evaluation: Evaluation) -> dict[str, float]:
        tokens = torch.from_numpy(self.tokenizer(self.data.emoji.five_style_names())).to(evaluation.device)

        def embed(images: Tensor) -> Tensor:
            evaluation.check()
            return self.module.embed_images(images.to(evaluation.device)).cpu()

        return zero_shot_figures(
            self.data.emoji, self.module.embed_texts(tokens).cpu(), embed, self._splits.__getitem__
        )

    def best(self) -> str:
        return "flat_top1"

    def parameter_groups(self) -> list[dict[str, Any]]:
        exempt = (
            "clip.text.positional_embedding",
            "clip.text.token_embedding.weight",
            "clip.visual.positional_embedding",
        )
        return decay_groups(self.module, self.config.weight_decay, exempt)

    def flops_per_image(self) -> float:
        return 0.0

    def notes(self) -> dict[str, float]:
        return self.data.notes()

    def inputs(self) -> dict[str, str]:
        return {"data": self.data.fingerprint}

    def checkpoint(self, figures: dict[str, float], state: dict[str, Tensor]) -> Checkpoint:
        config, scale = self.config, math.exp(state["clip.logit_scale"].item())
        preprocess = Preprocess(size=config.image_size, resize="shortest", mean=MEAN, std=STD)
        return Checkpoint(
            config={
                "architecture": "open_clip",
                "encoder": {"embed_dim": config.embed_dim, "vision_cfg": vision_config(config), "quick_gelu": False},
                "preprocess": preprocess.to_dict(),
                "pooling": "token",
                "head": None,
                "text": {
                    "tower": {**text_config(config, self.tokenizer.vocab_size), "output_dim": config.embed_dim},
                    "tokenizer": self.tokenizer_json,
                    "context_length": config.context_length,
                    "templates": ["{}"],
                    "logit_scale": scale,
                    "logit_bias": None,
                },
                "labels": self.data.emoji.five_style_names(),
                "objective": None,
            },
            weights={"encoder": group(state, "clip.visual"), "text": group(state, "clip.text")},
            provenance=provenance(self.name, config, self.data, [], figures),
        )


def run(config: TeacherConfig) -> Path:
    """Train the teacher; returns the checkpoint's path."""
    path = train(TeacherTask(config))
    say(f"next: python -m train.pretrain --teacher {path}")
    return path


if __name__ == "__main__":
    raise SystemExit(main("teacher", run))
