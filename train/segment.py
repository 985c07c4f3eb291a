"""Train semantic segmentation (UperNet) on an encoder; with no argument, on scenes composed from the bundled data.

    python -m train.segment --encoder runs/pretrain/ckpt.pt --output runs/segment
    python -m train.segment b16_in1k --data ade20k:data

The first takes minutes on two cores. The second is ADE20K as MAE's and BEiT's configurations of mmsegmentation train
it; ``--data masks:DIR`` takes one's own images and masks (docs/segmentation.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from digpt.artifact import Checkpoint
from digpt.data.ade20k import MaskSource, open_masks
from digpt.data.emoji import EmojiSet
from digpt.data.scenes import SUBGROUPS, SceneSet
from digpt.encoder import build_encoder, encoder_config
from digpt.errors import ConfigError
from digpt.next_command import measuring
from digpt.preprocess import Preprocess
from digpt.segment_inference import Mode, SegmentInference
from digpt.segmentation import (
    SegmentConfig,
    Segmenter,
    segment_encoder,
    segmenter_config,
    segmenter_weights,
)
from digpt.sources import load_model
from train.channel_drop import KeyedDropout2d, key_dropout
from train.clock import Clock
from train.config import TrainConfig, main, resolved, say
from train.drop_path import KeyedDropPath, key_drop_path
from train.loader import PhotoBatch
from train.loop import train
from train.mask_loader import MaskTraining
from train.pixel_loss import segment_losses
from train.provenance import parent, provenance
from train.segment_augment import Photometric, SegmentAugment
from train.segment_cost import segment_cost
from train.segment_eval import segment_figures
from train.share import Share
from train.sources import loader, refuse_unused
from train.starts import not_trained_yet
from train.sync_norm import synchronised
from train.task import Evaluation

SCENES = "scenes"  # the miniature's name among the kinds of data


@dataclass(frozen=True)
class SegmentTrainConfig(TrainConfig):
    """UperNet on an encoder as mmsegmentation trains it on ADE20K: layer-wise decay, drop path, polynomial decay.

    ``batch_size`` and ``steps`` count crops; batch norm sees the crops of one micro-batch of all processes.
    """

    output: Path = Path("runs/segment")
    encoder: str = "runs/pretrain/ckpt.pt"  # a checkpoint, timm:NAME, or "random"
    variant: str = "Ti/16"  # shape of the encoder when it is "random"
    depth: int | None = 6  # blocks of a "random" encoder; None: the variant's own
    data: str = SCENES  # scenes composed from the bundled data, ade20k:DIR or masks:DIR
    val_data: str = ""  # where to evaluate; empty: the split "val" of data
    reduce_zero: bool = False  # 0 in the masks of masks:DIR is no class, as ADE20K has it by itself
    crop: int = 128  # side of the training crops in pixels, a multiple of the patch
    scale: tuple[int, int] | None = None  # what images are fitted into, their ratio kept; None: (4 x crop, crop)
    ratio: tuple[float, float] = (0.5, 2.0)  # of a random factor on scale
    photometric: bool = True  # distort the colours
    channels: int = 0  # of UperNet's convolutions; 0: the encoder's width
    aux_channels: int = 256  # of the auxiliary FCN head; 0: none
    dropout: float = 0.1  # share of the channels before each classifier
    blocks: tuple[int, int, int, int] | None = None  # whose outputs are read, from 0; None: quarters of the depth
    layer_decay: float = 0.65  # each block's learning rate, by that of the block after it
    drop_path: float = 0.1  # of the last block; rises linearly from 0
    power: float = 1.0  # of the polynomial by which the learning rate falls
    scenes: int = 4000  # of the miniature's training set
    scene_classes: int = len(SUBGROUPS) + 1  # with the background
    eval_scenes: int = 200  # of each split
    splits: tuple[str, ...] = ("val", "flat")  # of the scenes, to evaluate on
    inference: Mode = "slide"  # windows of the crop's size, or the image at once
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 0.0
    min_lr: float = 0.0
    workers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.layer_decay <= 1 or not 0 <= self.drop_path < 1 or self.power <= 0:
            raise ConfigError("layer_decay lies in (0, 1], drop_path in [0, 1), and power is above 0.")
        if self.sharding == "fsdp2":
            raise ConfigError("Segmentation trains copies of the model: leave --sharding at ddp.")
        if self.batch_size // self.accumulate < 2:
            raise ConfigError("Batch norm needs two crops at least in a micro-batch: raise --batch-size.")

    @property
    def fitted(self) -> tuple[int, int]:
        """The long and the short side that images are fitted into."""
        return self.scale or (4 * self.crop, self.crop)

    def to_dict(self) -> dict[str, Any]:
        """With the scale as it is used, and ``accumulate``: batch norm sees micro-batches, so it changes the run."""
        return {**super().to_dict(), "scale": list(self.fitted), "accumulate": self.accumulate}

    def decay(self, progress: float) -> float:
        """A polynomial, as mmsegmentation's ``PolyLR``."""
        return float((1 - progress) ** self.power)

    def check_given(self, given: frozenset[str]) -> None:
        """Refuse the options of other kinds of data."""
        scenes = ("scenes", "scene_classes", "eval_scenes", "splits", "data_root")
        unused = ("val_data", "reduce_zero", "inference") if self.data == SCENES else scenes
        refuse_unused(given, self.data, *unused)
        if self.encoder != "random":
            for name in sorted({"variant", "depth"} & given):
                raise ConfigError(f"--{name} shapes a random encoder: leave it out with --encoder {self.encoder}.")

    def inference_config(self) -> SegmentInference:
        """How images are evaluated: as ``scale`` fits them, or scenes, which have the crop's size, in one piece."""
        usual = SegmentInference.for_crop(self.crop)
        if self.data == SCENES:
            return replace(usual, mode="whole", scale=None)
        return replace(usual, mode=self.inference, scale=self.fitted)


class SegmentTask:
    """A `Segmenter`, its crops and masks, and what it is measured on."""

    name = "segment"

    def __init__(self, config: SegmentTrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.training, self.validation = mask_sources(config)
        self.encoder_config, encoder, self.preprocess, self.parents = start_segmenter(config)
        self.segment = segment_heads(config, self.encoder_config, self.training.classes)
        mean, std = self.preprocess.mean, self.preprocess.std
        self.module = Segmenter(encoder, self.segment, mean, std)
        encoder.set_grad_checkpointing(config.checkpointing)
        heads: list[nn.Module] = [head for head in (self.module.upernet, self.module.fcn) if head is not None]
        paths, channels = key_drop_path(encoder, config.seed), key_dropout(heads, config.seed)
        self.drops: list[KeyedDropPath | KeyedDropout2d] = [*paths, *channels]
        augment = SegmentAugment(
            config.crop,
            config.fitted,
            config.ratio,
            photometric=Photometric() if config.photometric else None,
            mean=(mean[0], mean[1], mean[2]),
        )
        self.data = MaskTraining(self.training, config.seed, config.batch_size, augment, loader(config))
        self.config = resolved(config, len(self.data))
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Let batch norm see all processes' crops."""
        self._device = device
        synchronised(self.module, device)

    def blocks(self) -> list[nn.Module]:
        return list(self.module.encoder.blocks)

    def batches(self, first: int, share: Share) -> Iterator[list[PhotoBatch]]:
        return self.data.batches(first, share)

    def loss(self, model: nn.Module, batch: PhotoBatch, clock: Clock) -> dict[str, Tensor]:
        with clock.part("loader"):
            batch = batch.to(self._device)
            for drop in self.drops:
                drop.draw(batch.epochs, batch.items, self._device)
        with clock.part("forward"):
            return segment_losses(model(batch.images), batch.labels)

    def backward(self, loss: Tensor, clock: Clock) -> None:
        with clock.part("backward"):
            loss.backward()

    def after_step(self) -> None:
        """Nothing follows the optimiser."""

    def evaluate(self, evaluation: Evaluation) -> dict[str, float]:
        """mIoU, mAcc and aAcc (fractions) of every set to evaluate on: ``val_miou``, ``flat_miou``, ..."""
        figures: dict[str, float] = {}
        for name, source in self.validation.items():
            found = segment_figures(self.module, source, self.config.inference_config(), evaluation)
            figures |= {f"{name}_{key}": value for key, value in found.items()}
        return figures

    def best(self) -> str | None:
        return next((f"{name}_miou" for name in self.validation), None)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """timm's groups: heads at the full rate, each block below at ``layer_decay`` times that of the next."""
        config = self.config
        return param_groups_layer_decay(
            self.module, config.weight_decay, self.module.no_weight_decay(), layer_decay=config.layer_decay
        )

    def flops_per_image(self) -> float:
        return self._flops

    @cached_property
    def _flops(self) -> float:
        return segment_cost(self.encoder_config, self.segment, self.config.precision).total

    def notes(self) -> dict[str, float]:
        return self.data.notes()

    def inputs(self) -> dict[str, str]:
        return {"data": self.data.fingerprint, **{line["role"]: line["fingerprint"] for line in self.parents}}

    def checkpoint(self, figures: dict[str, float], state: dict[str, Tensor]) -> Checkpoint:
        return Checkpoint(
            config=segmenter_config(self.encoder_config, self.segment, self.preprocess),
            weights=segmenter_weights(state),
            provenance=provenance(self.name, self.config, self.data, self.parents, figures),
        )


def segment_heads(config: SegmentTrainConfig, encoder: Mapping[str, Any], classes: Sequence[str]) -> SegmentConfig:
    """The heads over the encoder of timm's arguments ``encoder``.

    Raises:
        ConfigError: blocks that the encoder does not have, or that leave its last one without a gradient.
    """
    changes: dict[str, Any] = {
        "reduce_zero": config.reduce_zero,
        "crop": config.crop,
        "dropout": config.dropout,
        "aux_channels": config.aux_channels,
    }
    if config.channels:
        changes["channels"] = config.channels
    found = SegmentConfig.for_encoder(encoder, classes, **changes)
    if config.blocks is None:
        return found
    last = found.blocks[-1]
    if config.blocks[-1] != last:
        raise ConfigError(
            f"blocks={config.blocks} must end with the encoder's last block, {last}: any after it would not be trained."
        )
    return replace(found, blocks=config.blocks)


def start_segmenter(
    config: SegmentTrainConfig,
) -> tuple[dict[str, Any], VisionTransformer, Preprocess, list[dict[str, Any]]]:
    """timm's arguments, the encoder they and the weights make, its statistics, and its parents.

    Raises:
        ConfigError: the spec names no plain ViT of timm, or one whose patch does not divide the crop into two or more.
    """
    parents = []
    if config.encoder == "random":
        sizes = {} if config.depth is None else {"depth": config.depth}
        options = encoder_config(config.variant, config.crop, **sizes)
        weights, preprocess = build_encoder(options).state_dict(), Preprocess(size=config.crop)
    else:
        if not_trained_yet(config.encoder):
            raise ConfigError(f"--encoder {config.encoder} does not exist: pretrain it first, or name one that does.")
        source = load_model(config.encoder)
        if source.config["architecture"] != "timm" or not isinstance(source.module.encoder, VisionTransformer):
            raise ConfigError(f"{config.encoder} is no plain ViT of timm, which UperNet here needs.")
        options, weights = dict(source.config["encoder"]), dict(source.module.encoder.state_dict())
        preprocess = source.preprocess
        parents = [parent("encoder", source.fingerprint, source.provenance)]
    options, weights = segment_encoder(options, weights, config.crop)
    encoder = timm.create_model(**{**options, "drop_path_rate": config.drop_path})
    assert isinstance(encoder, VisionTransformer)
    if min(encoder.patch_embed.grid_size) < 2:
        raise ConfigError(f"crop={config.crop} is a single patch, and UperNet halves the grid: use {2 * config.crop}.")
    encoder.load_state_dict(weights, strict=True)
    return options, encoder, preprocess, parents


def mask_sources(config: SegmentTrainConfig) -> tuple[MaskSource, dict[str, MaskSource]]:
    """The training set, and by name the sets to evaluate on; opened now, so that a mistake shows before training."""
    if config.data == SCENES:
        emoji = EmojiSet.load(config.data_root)
        options: dict[str, Any] = {"size": config.crop, "n_classes": config.scene_classes}
        count = min(config.scenes, config.limit or config.scenes)
        training = SceneSet(emoji, "train", count=count, **options)
        return training, {name: SceneSet(emoji, name, count=config.eval_scenes, **options) for name in config.splits}
    zero = config.reduce_zero or None
    found = open_masks(config.data, "train", reduce_zero=zero, limit=config.limit)
    spec, whole = config.val_data or config.data, bool(config.val_data)
    return found, {"val": open_masks(spec, "val", reduce_zero=zero, classes=found.classes, whole=whole)}


def run(config: SegmentTrainConfig) -> Path:
    """Train; prints the command to type next; returns the checkpoint's path."""
    path = train(SegmentTask(config))
    say(f"next: {measuring(path, 'segment', config.data, config.val_data)}")
    return path


if __name__ == "__main__":
    raise SystemExit(main("segment", run))
