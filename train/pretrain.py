"""Pretrain a D-iGPT encoder; with no argument, on the bundled data with the bundled teacher.

    python -m train.pretrain --output runs/pretrain

The paradigm (``digpt``, ``fd``, ...) and the target (any model spec as ``--teacher``) are chosen by name.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from digpt.artifact import Checkpoint
from digpt.encoder import build_encoder, embed_tokens, encoder_config
from digpt.errors import ConfigError
from digpt.neighbors import knn_classify
from digpt.preprocess import Preprocess
from train.augment import AugmentConfig
from train.config import TrainConfig, main, plain
from train.data import EmojiTraining
from train.loop import Clock, train
from train.objective import PARADIGMS, DigptConfig, Paradigm, build_paradigm
from train.provenance import parent, provenance
from train.targets import check_teacher, target_from_spec

MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """Encoder, teacher and objective; every size follows from these."""

    output: Path = Path("runs/pretrain")
    teacher: str = "bundled-early-teacher"  # any model spec: ckpt.pt, open_clip:NAME/TAG_OR_FILE, timm:NAME[@FILE]
    paradigm: str = "digpt"
    variant: str = "Ti/16"
    image_size: int = 64
    depth: int = 6
    objective: DigptConfig = field(
        default_factory=lambda: DigptConfig(decoder_width=192, decoder_heads=6, decoder_depth=1)
    )
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    knn: int = 20  # neighbours of the kNN probe


class PretrainTask:
    """One objective around one encoder, a frozen teacher outside of it, and a kNN probe."""

    name = "pretrain"

    def __init__(self, config: PretrainConfig) -> None:
        torch.manual_seed(config.seed)
        if config.paradigm not in PARADIGMS:
            raise ConfigError(f"Unknown paradigm {config.paradigm!r}; valid: {', '.join(PARADIGMS)}.")
        self.config = config
        self.encoder_config = encoder_config(config.variant, config.image_size, depth=config.depth)
        kind = PARADIGMS[config.paradigm][1]
        if kind is not DigptConfig and config.objective != PretrainConfig().objective:
            raise ConfigError(f"The --objective options belong to D-iGPT's paradigms; {config.paradigm} takes none.")
        self.options = options = config.objective if kind is DigptConfig else kind()
        self.data = EmojiTraining(config.seed, config.batch_size, config.augment, config.data_root, config.image_size)
        self.target = target_from_spec(config.teacher, config.image_size)
        self.report = check_teacher(self.target, self.data.split("val")[0][:64])
        encoder = build_encoder(self.encoder_config, options.class_token_std)
        self.module: Paradigm = build_paradigm(
            config.paradigm,
            encoder,
            teacher_grid=self.target.grid,
            teacher_width=self.target.width,
            config=options,
        )
        self._decoder_marks = _BackwardMark(self.module)

    def loss(self, step: int, clock: Clock) -> dict[str, Tensor]:
        with clock.part("loader"):
            batch = self.data.batch(step)
            permutation = batch.permutations(self.config.seed, self.module.clusters)
        with clock.part("teacher"), torch.no_grad():
            targets = self.target(batch.images)
        self._decoder_marks.clock = clock
        with clock.part("encoder"):
            output = self.module((batch.images - MEAN[0]) / STD[0], targets, permutation)
        return {**output.metrics(), "loss": output.loss}

    def backward(self, loss: Tensor, clock: Clock) -> None:
        """Gradients reach the encoder's last block when the decoders are done: that moment splits the time."""
        start = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
        reached = self._decoder_marks.backward_reached or start
        clock.add("decoders", reached - start)
        clock.add("encoder", end - reached)

    def after_step(self) -> None:
        """Nothing follows the optimiser here."""

    @cached_property
    def _probe(self) -> tuple[Tensor, np.ndarray, Tensor, np.ndarray]:
        subgroups = sorted({concept.subgroup for concept in self.data.emoji.concepts})
        number = np.array([subgroups.index(concept.subgroup) for concept in self.data.emoji.concepts])
        reference, reference_concepts = self.data.reference()
        queries, query_concepts = self.data.split("flat")
        return reference, number[reference_concepts.numpy()], queries, number[query_concepts.numpy()]

    def evaluate(self) -> dict[str, float]:
        """kNN over the subgroups on ``flat``, reference Noto and Twemoji, features the mean of the patch tokens."""
        reference, reference_labels, queries, labels = self._probe
        predicted = knn_classify(
            self._features(reference),
            reference_labels,
            self._features(queries),
            k=min(self.config.knn, len(reference)),
            n_classes=int(max(reference_labels.max(), labels.max())) + 1,
        )
        return {"knn_flat": float((predicted == labels).mean())}

    def _features(self, images: Tensor) -> np.ndarray:
        encoder = self.module.encoder
        parts = [embed_tokens(encoder, (part - MEAN[0]) / STD[0])[:, 1:].mean(1) for part in images.split(256)]
        return torch.cat(parts).float().numpy()

    def no_weight_decay(self) -> set[str]:
        return self.module.no_weight_decay()

    def inputs(self) -> dict[str, str]:
        return {"data": self.data.fingerprint, "teacher": self.target.fingerprint}

    def checkpoint(self, figures: dict[str, float]) -> Checkpoint:
        config = self.config
        preprocess = Preprocess(size=config.image_size, mean=MEAN, std=STD)
        objective: dict[str, Any] = {"paradigm": config.paradigm, **plain(dataclasses.asdict(self.options))}
        objective["teacher"] = {"grid": list(self.target.grid), "width": self.target.width}
        return Checkpoint(
            config={
                "architecture": "timm",
                "encoder": self.encoder_config,
                "preprocess": preprocess.to_dict(),
                "pooling": "avg",
                "objective": objective,
            },
            weights={"encoder": self.module.encoder.state_dict(), "decoders": self.module.decoder_state()},
            provenance=provenance(
                self.name,
                config,
                self.data.fingerprint,
                [parent("teacher", self.target.fingerprint, self.target.provenance)],
                figures,
            ),
        )


class _BackwardMark:
    """Books decoder time: forward by hooks on the branches, backward by the moment it leaves them."""

    def __init__(self, module: Paradigm) -> None:
        self.clock: Clock | None = None
        self.backward_reached: float | None = None
        self._started = 0.0
        for name, child in module.named_children():
            if name not in ("encoder", "resize", "baseline"):
                child.register_forward_pre_hook(self._start)
                child.register_forward_hook(self._stop)
        module.encoder.blocks[-1].register_forward_hook(self._mark)

    def _start(self, module: nn.Module, arguments: Any) -> None:
        self._started = time.perf_counter()

    def _stop(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self.clock is not None:
            self.clock.move("encoder", "decoders", time.perf_counter() - self._started)

    def _mark(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        self.backward_reached = None
        if output.requires_grad:
            output.register_hook(self._reach)

    def _reach(self, gradient: Tensor) -> None:
        self.backward_reached = time.perf_counter()


def run(config: PretrainConfig) -> Path:
    """Pretrain; prints what the teacher check found and the commands to type next; returns the checkpoint's path."""
    task = PretrainTask(config)
    print(task.report)
    path = train(task, config)
    print(f"next: python -m evaluate.robustness {path}")
    own = f" --teacher {config.teacher}" if config.teacher.endswith(".pt") else ""  # else the bundled teacher's texts
    print(f"      python -m train.zeroshot --encoder {path}{own}")
    return path


if __name__ == "__main__":
    raise SystemExit(main("pretrain", run))
