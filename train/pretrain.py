"""Pretrain a D-iGPT encoder; with no argument, on the bundled data with the bundled teacher.

    python -m train.pretrain --output runs/pretrain

The paradigm (``digpt``, ``fd``, ``mae``, ...) and the target (any model spec as ``--teacher``, ``pixels``,
``codes:FILE``) are chosen by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from digpt.artifact import Checkpoint, read_checkpoint
from digpt.encoder import build_encoder, embed_tokens, encoder_config
from digpt.errors import ConfigError
from digpt.next_command import measuring
from digpt.preprocess import Preprocess
from train.augment import AugmentConfig, normalise
from train.clock import BackwardMark, Clock
from train.config import TrainConfig, main, plain, resolved, say
from train.cost import pretrain_cost
from train.data import Batch, EmojiTraining
from train.loader import PhotoBatch
from train.loop import train
from train.objective import DigptConfig, EvaConfig, MaeConfig, ObjectiveOutput, Paradigm, build_paradigm, paradigm_entry
from train.optim import decay_groups
from train.photo_augment import CropConfig
from train.probe import KnnProbe, emoji_probe
from train.provenance import parent, provenance
from train.share import Share
from train.sources import TrainingData, pretraining_data
from train.targets import Target, check_teacher, target_from_spec
from train.task import Evaluation, group


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """Encoder, target and objective; every size follows from these."""

    output: Path = Path("runs/pretrain")
    teacher: str = "bundled-early-teacher"  # clip-l, openclip-h, ... (train.targets.NAMED); ckpt.pt; pixels; codes:FILE
    paradigm: str = "digpt"  # digpt, gen, gen_fd, fd, kd, mae, eva or igpt (docs/training.md)
    variant: str = "Ti/16"  # shape of the encoder, such as B/16
    image_size: int = 64  # side in pixels
    depth: int | None = 6  # blocks; None: the variant's own
    orders: int = 1  # cluster orders per image and teacher pass; a step then learns from orders x batch_size views
    init: str = ""  # a pretraining checkpoint to go on from, decoders included
    objective: DigptConfig = field(
        default_factory=lambda: DigptConfig(decoder_width=192, decoder_heads=6, decoder_depth=1)
    )
    mae: MaeConfig = field(default_factory=lambda: MaeConfig(decoder_width=192, decoder_heads=6, decoder_depth=2))
    eva: EvaConfig = field(default_factory=EvaConfig)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # the student's statistics
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)  # likewise
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # of the bundled set
    crop: CropConfig = field(default_factory=CropConfig)  # of photographs
    knn: int = 20  # neighbours of the kNN probe; 0: none

    def options(self) -> Any:
        """The configuration of the chosen paradigm."""
        kind = paradigm_entry(self.paradigm).config
        found = {type(value): value for value in (self.objective, self.mae, self.eva)}
        return found[kind] if kind in found else kind()

    def check_given(self, given: frozenset[str]) -> None:
        """Refuse the options of another paradigm."""
        used = paradigm_entry(self.paradigm).config
        for name in ("objective", "mae", "eva"):
            if type(getattr(self, name)) is not used and any(flag.startswith(f"{name}.") for flag in given):
                raise ConfigError(
                    f"The --{name} options do not belong to the paradigm {self.paradigm}: leave them out."
                )

    def encoder(self) -> dict[str, Any]:
        """timm's arguments for the encoder."""
        depth = {} if self.depth is None else {"depth": self.depth}
        return encoder_config(self.variant, self.image_size, **depth)


class PretrainTask:
    """One objective around one encoder, a frozen target outside of it, and a kNN probe."""

    name = "pretrain"

    def __init__(self, config: PretrainConfig, tell: Callable[[str], None] = lambda text: None) -> None:
        """``tell`` is handed what the check of the teacher found, once it is on its device."""
        self._tell = tell
        torch.manual_seed(config.seed)
        if config.orders < 1:
            raise ConfigError(f"orders={config.orders} must be at least 1.")
        self.encoder_config, self.options = config.encoder(), config.options()
        self.data: TrainingData = pretraining_data(config, config.augment, config.crop, config.image_size)
        self.config = config = resolved(config, len(self.data))
        self.target: Target = target_from_spec(config.teacher, config.image_size, self.encoder_config["patch_size"])
        self.module: Paradigm = build_paradigm(
            config.paradigm,
            build_encoder(self.encoder_config, self.options.class_token_std),
            target_kind=self.target.kind,
            teacher_grid=self.target.grid,
            teacher_width=self.target.width,
            config=self.options,
        )
        self.module.set_grad_checkpointing(config.checkpointing)
        self.parents = [parent("teacher", self.target.fingerprint, self.target.provenance)]
        if config.init:
            self._continue_from(config.init)
        self._mark = BackwardMark(_decoders(self.module))
        self._device = torch.device("cpu")

    def _continue_from(self, path: str) -> None:
        """Load encoder and decoders of an earlier pretraining."""
        checkpoint = read_checkpoint(path)
        if "decoders" not in checkpoint.weights:
            raise ConfigError(f"--init {path} has no decoders: give a checkpoint of train.pretrain.")
        try:
            self.module.encoder.load_state_dict(checkpoint.weights["encoder"], strict=True)
            self.module.load_decoder_state(checkpoint.weights["decoders"])
        except RuntimeError as error:
            raise ConfigError(
                f"--init {path} does not fit; choose the variant, image_size, depth and decoders that it was trained "
                f"with ({str(error).splitlines()[-1].strip()})"
            ) from error
        self.parents.append(parent("init", checkpoint.fingerprint, checkpoint.provenance))

    def to(self, device: torch.device) -> None:
        """Move the target and check it there; on a GPU it runs in the precision of the run, compiled with it."""
        self._device = device
        self.target.to(device)
        self._tell(str(check_teacher(self.target, self.data.pictures(64).to(device))))
        if self.config.precision == "bf16" and device.type == "cuda":
            self.target.to(torch.bfloat16)
        if self.config.compile and isinstance(self.target, nn.Module):
            self.target.compile(backend=self.config.compile)

    def blocks(self) -> list[nn.Module]:
        return self.module.blocks()

    def batches(self, first: int, share: Share) -> Iterator[list[Any]]:
        return self.data.batches(first, share)

    def loss(self, model: nn.Module, batch: Batch | PhotoBatch, clock: Clock) -> dict[str, Tensor]:
        config = self.config
        with clock.part("loader"):
            permutation = batch.permutations(config.seed, self.module.units, config.orders)
            if self._device.type == "cuda":
                permutation = permutation.pin_memory()
            permutation, batch = permutation.to(self._device, non_blocking=True), batch.to(self._device)
        with clock.part("teacher"), torch.no_grad():
            targets = self.target(batch.images)
        self._mark.clock = clock
        with clock.part("encoder"):
            images = self.normalise(batch.images)
            if config.orders > 1:  # one pass of the teacher, several orders of the clusters
                images, targets = (part.repeat_interleave(config.orders, 0) for part in (images, targets))
            output: ObjectiveOutput = model(images, targets, permutation)
        return {**output.metrics(), "loss": output.loss}

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] in the student's statistics."""
        return normalise(images, self.config.mean, self.config.std)

    def backward(self, loss: Tensor, clock: Clock) -> None:
        self._mark.backward(loss, clock, before="decoders", after="encoder")

    def after_step(self) -> None:
        """Nothing follows the optimiser here."""

    @cached_property
    def _probe(self) -> KnnProbe | None:
        if not isinstance(self.data, EmojiTraining) or not self.config.knn:
            return None
        return emoji_probe(self.data, self.config.knn)

    def evaluate(self, evaluation: Evaluation) -> dict[str, float]:
        """kNN on the mean of the patch tokens: over the subgroups on ``flat``, reference Noto and Twemoji."""

        def features(images: Tensor) -> Tensor:
            evaluation.check()
            tokens = embed_tokens(self.module.encoder, self.normalise(images.to(evaluation.device)))
            return tokens[:, 1:].mean(1)

        return {} if self._probe is None else {"knn_flat": self._probe.top1(features)}

    def best(self) -> str | None:
        """None: by kNN the last checkpoint of a pretraining is rarely the best, but it is the one that transfers."""
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        return decay_groups(self.module, self.config.weight_decay, self.module.no_weight_decay())

    def flops_per_image(self) -> float:
        return self._flops

    @cached_property
    def _flops(self) -> float:
        config = self.config
        return pretrain_cost(
            config.encoder(), config.teacher, config.paradigm, self.options, config.orders, config.precision
        ).total

    def notes(self) -> dict[str, float]:
        return self.data.notes()

    def inputs(self) -> dict[str, str]:
        return {"data": self.data.fingerprint, **{line["role"]: line["fingerprint"] for line in self.parents}}

    def checkpoint(self, figures: dict[str, float], state: dict[str, Tensor]) -> Checkpoint:
        config = self.config
        preprocess = Preprocess(size=config.image_size, mean=config.mean, std=config.std)
        objective: dict[str, Any] = {"paradigm": config.paradigm, **plain(dataclasses.asdict(self.options))}
        objective["teacher"] = {
            "kind": self.target.kind,
            "grid": list(self.target.grid),
            "width": self.target.width,
        }
        return Checkpoint(
            config={
                "architecture": "timm",
                "encoder": self.encoder_config,
                "preprocess": preprocess.to_dict(),
                "pooling": "avg",
                "objective": objective,
            },
            weights={
                "encoder": group(state, "encoder"),
                "decoders": {name: value for name, value in state.items() if not name.startswith("encoder.")},
            },
            provenance=provenance(self.name, config, self.data, self.parents, figures),
        )


def _decoders(module: Paradigm) -> list[nn.Module]:
    """The parts of an objective that read the encoder's output and are trained."""
    skipped = ("encoder", "resize", "baseline")
    return [
        child
        for name, child in module.named_children()
        if name not in skipped and next(child.parameters(), None) is not None
    ]


def run(config: PretrainConfig) -> Path:
    """Pretrain; prints what the teacher's check found and the commands to type next; returns the checkpoint's path."""
    path = train(PretrainTask(config, say))
    say(f"next: {measuring(path, 'pretrain', config.data)}")
    own = f" --teacher {config.teacher}" if config.teacher.endswith(".pt") else ""  # else the bundled teacher's texts
    say(f"      python -m train.zeroshot --encoder {path}{own}")
    return path


if __name__ == "__main__":
    raise SystemExit(main("pretrain", run))
