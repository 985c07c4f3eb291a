"""Finetune an encoder on labelled images, to a checkpoint that classifies; with no argument, on the bundled data.

    python -m train.finetune --encoder runs/pretrain/ckpt.pt --output runs/finetune

``--data folder:DIR`` takes one's own images: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg (docs/data.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from timm.loss import SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from digpt.artifact import Checkpoint
from digpt.data.images import ImageSource, open_images
from digpt.errors import ConfigError, DataError
from digpt.next_command import measuring
from digpt.preprocess import Preprocess
from train.augment import AugmentConfig, normalise
from train.clock import Clock
from train.config import TrainConfig, main, resolved, say
from train.cost import tuning_cost
from train.drop_path import KeyedDropPath, key_drop_path
from train.loader import PhotoBatch, evaluation_batches
from train.loop import train
from train.photo_augment import FinetuneAugment
from train.provenance import provenance
from train.share import Share
from train.sources import EmojiClasses, PhotoClasses, finetuning_data, refuse_unused
from train.starts import start_encoder
from train.task import Evaluation

Protocol = Literal["shortest", "squash"]


def measured(preprocess: Preprocess, resize: Protocol, crop_pct: float) -> Preprocess:
    """``preprocess`` by one of the protocols that figures are measured with.

    ``shortest`` keeps ``crop_pct`` of the shorter side, as everybody does; ``squash`` takes the whole image, as the
    authors do.
    """
    return dataclasses.replace(preprocess, resize=resize, crop_pct=1.0 if resize == "squash" else crop_pct)


@dataclass(frozen=True)
class FinetuneConfig(TrainConfig):
    """MAE's finetuning, which is the paper's: layer-wise decay, drop path, RandAugment, mixing, erasing, smoothing."""

    output: Path = Path("runs/finetune")
    encoder: str = "runs/pretrain/ckpt.pt"  # a checkpoint of ours or of the authors, or "random"
    variant: str = "Ti/16"  # shape of the encoder when it is "random"
    image_size: int = 64  # side in pixels
    depth: int | None = 6  # blocks of a "random" encoder; None: the variant's own
    classes: int = 0  # their number, where the data do not tell; else 0
    val_data: str = ""  # where to evaluate; empty: the split "val" of data
    layer_decay: float = 0.65  # each block's learning rate, by that of the block after it
    drop_path: float = 0.1  # of the last block; rises linearly from 0
    ema: float = 0.0  # decay of a moving average of the weights, which is then evaluated and kept; 0: none
    head_std: float = 2e-5  # of the initial weights of the head
    crop_pct: float = 0.875  # of the shorter side in evaluation; squash takes the whole image
    resize: Protocol = "shortest"  # which of the two measured protocols the checkpoint serves with
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # of the bundled set, before mixing
    splits: tuple[str, ...] = ("flat", "val")  # of the bundled set, to evaluate on
    photo: FinetuneAugment = field(default_factory=FinetuneAugment)  # its mixing and smoothing hold for both

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.layer_decay <= 1 or not 0 <= self.drop_path < 1 or not 0 <= self.ema < 1:
            raise ConfigError("layer_decay lies in (0, 1], drop_path and ema lie in [0, 1).")

    def check_given(self, given: frozenset[str]) -> None:
        """Refuse the options of the other kind of data."""
        refuse_unused(given, self.data, *(("val_data",) if self.data == "emoji" else ("augment", "splits")))


class FinetuneTask:
    """A timm ViT with timm's classifier: mean of the patch tokens, norm, linear head; nothing masked."""

    name = "finetune"

    def __init__(self, config: FinetuneConfig) -> None:
        torch.manual_seed(config.seed)
        start = start_encoder(
            config.encoder, config.variant, config.image_size, config.depth, drop_path_rate=config.drop_path
        )
        self.encoder_config, self.parents = start.config, start.parents
        self.preprocess = measured(start.preprocess, config.resize, config.crop_pct)
        self.tune = dataclasses.replace(config.photo, mean=start.preprocess.mean, std=start.preprocess.std)
        self.data = finetuning_data(config, config.augment, self.tune, config.image_size, config.classes)
        # opened now, so that a mistake shows before training and not after it
        self._validation = None if isinstance(self.data, EmojiClasses) else _validation(config, self.data)
        self.config = config = resolved(config, len(self.data))
        self.module: VisionTransformer = start.encoder
        self.module.reset_classifier(len(self.data.classes))
        assert isinstance(self.module.head, nn.Linear)
        nn.init.trunc_normal_(self.module.head.weight, std=config.head_std)
        nn.init.zeros_(self.module.head.bias)
        self.module.set_grad_checkpointing(config.checkpointing)
        self.drops: list[KeyedDropPath] = key_drop_path(self.module, config.seed)
        self.ema: ModelEmaV3 | None = None
        if config.ema:
            if config.sharding == "fsdp2":
                raise ConfigError("--ema averages whole models: use --sharding ddp with it.")
            self.ema = ModelEmaV3(self.module, decay=config.ema)
        self._loss = SoftTargetCrossEntropy()
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Move the moving average."""
        self._device = device
        if self.ema is not None:
            self.ema.to(device)

    def blocks(self) -> list[nn.Module]:
        return list(self.module.blocks)

    def batches(self, first: int, share: Share) -> Iterator[list[PhotoBatch]]:
        return self.data.batches(first, share)

    def loss(self, model: nn.Module, batch: PhotoBatch, clock: Clock) -> dict[str, Tensor]:
        with clock.part("loader"):
            batch = batch.to(self._device)
            for drop in self.drops:
                drop.draw(batch.epochs, batch.items, self._device)
        with clock.part("encoder"):
            logits = model(batch.images).float()
            assert batch.targets is not None  # mixing and smoothing always give soft labels
            loss: Tensor = self._loss(logits, batch.targets)
        return {"loss": loss}

    def backward(self, loss: Tensor, clock: Clock) -> None:
        with clock.part("encoder"):
            loss.backward()

    def after_step(self) -> None:
        """Move the average towards the new weights."""
        if self.ema is not None:
            self.ema.update(self.module)

    def own_state(self) -> dict[str, Tensor]:
        """The moving average, for the resume state."""
        return {} if self.ema is None else self.ema.module.state_dict()

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`own_state`."""
        if self.ema is not None:
            self.ema.module.load_state_dict(state)

    # ------------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, evaluation: Evaluation) -> dict[str, float]:
        """Top-1 fraction: on the bundled set per split, over the subgroups; on pictures by both resize protocols."""
        model = self.module if self.ema is None else self.ema.module
        if isinstance(self.data, EmojiClasses):
            return {f"{name}_top1": self._split_top1(self.data, model, name, evaluation) for name in self.config.splits}
        top1 = {name: self._photo_top1(model, name, evaluation) for name in get_args(Protocol)}
        figures = {f"val_top1_{name}": value for name, value in top1.items()}
        return {"val_top1": top1[self.config.resize], **figures}

    def _split_top1(self, data: EmojiClasses, model: nn.Module, split: str, evaluation: Evaluation) -> float:
        images, labels = data.split(split)
        found = []
        for part in images.split(256):
            evaluation.check()
            found.append(model(self._normalise(part.to(evaluation.device))).argmax(1).cpu())
        return (torch.cat(found) == labels).float().mean().item()

    def _photo_top1(self, model: nn.Module, resize: Protocol, evaluation: Evaluation) -> float:
        config, counts = self.config, torch.zeros(2, dtype=torch.float64, device=evaluation.device)
        preprocess = measured(self.preprocess, resize, config.crop_pct)
        assert self._validation is not None
        for pixels, labels in evaluation_batches(self._validation, preprocess, 64, evaluation.share, config.workers):
            evaluation.check()
            images = pixels.to(evaluation.device).permute(0, 3, 1, 2) / 255
            right = (model(self._normalise(images)).argmax(1).cpu() == labels).sum()
            counts += torch.tensor([right.item(), len(labels)], device=counts.device)
        right, count = evaluation.total(counts).tolist()
        return float(right / count)

    def _normalise(self, images: Tensor) -> Tensor:
        return normalise(images, self.tune.mean, self.tune.std)

    def best(self) -> str:
        return "flat_top1" if isinstance(self.data, EmojiClasses) else "val_top1"

    # ------------------------------------------------------------------------------------------------- the record

    def parameter_groups(self) -> list[dict[str, Any]]:
        """timm's groups: the head at the full rate, each block below at ``layer_decay`` times that of the next."""
        config = self.config
        return param_groups_layer_decay(
            self.module, config.weight_decay, self.module.no_weight_decay(), layer_decay=config.layer_decay
        )

    def flops_per_image(self) -> float:
        return self._flops

    @cached_property
    def _flops(self) -> float:
        return tuning_cost(self.encoder_config, len(self.data.classes), precision=self.config.precision).total

    def notes(self) -> dict[str, float]:
        return self.data.notes()

    def inputs(self) -> dict[str, str]:
        return {"data": self.data.fingerprint, **{line["role"]: line["fingerprint"] for line in self.parents}}

    def checkpoint(self, figures: dict[str, float], state: dict[str, Tensor]) -> Checkpoint:
        if self.ema is not None:
            state = {name: value.cpu() for name, value in self.ema.module.state_dict().items()}
        head = {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
        return Checkpoint(
            config={
                "architecture": "timm",
                "encoder": self.encoder_config,
                "preprocess": self.preprocess.to_dict(),
                "pooling": "avg",
                "head": {"type": "linear", "in": self.module.embed_dim, "out": len(self.data.classes)},
                "labels": list(self.data.classes),
                "objective": None,
            },
            weights={
                "encoder": {name: value for name, value in state.items() if not name.startswith("head.")},
                "head": head,
            },
            provenance=provenance(self.name, self.config, self.data, self.parents, figures),
        )


def _validation(config: FinetuneConfig, data: PhotoClasses) -> ImageSource:
    """The pictures to evaluate on, their labels numbered as in training even where a class is missing."""
    spec, classes = config.val_data or config.data, data.classes if data.named else None
    try:
        found = open_images(spec, split="val", whole=bool(config.val_data), classes=classes, cache=config.output)
    except DataError as error:
        hint = "" if config.val_data else " Or name other pictures to evaluate on, with --val-data."
        raise DataError(f"{error}{hint}") from None
    if found.classes is not None and len(found.classes) != len(data.classes):
        raise DataError(
            f"{found.name} names {len(found.classes)} classes, but the training data, which name none, were said to "
            f"have {len(data.classes)}."
        )
    return found


def run(config: FinetuneConfig) -> Path:
    """Finetune; prints the commands to type next; returns the checkpoint's path."""
    path = train(FinetuneTask(config))
    say(f"next: {measuring(path, 'finetune', config.data, config.val_data)}")
    say(f"      python -m serve --model {path}")
    return path


if __name__ == "__main__":
    raise SystemExit(main("finetune", run))
