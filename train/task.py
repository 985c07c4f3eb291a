"""What the training loop needs from an experiment, and the way it is asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from digpt.artifact import Checkpoint
from train.clock import Clock
from train.config import Interrupted, TrainConfig
from train.share import Share


class Stop:
    """Turns SIGTERM and SIGINT into a flag that the loop reads between steps."""

    def __init__(self) -> None:
        self.requested = False
        self.number = signal.SIGTERM  # which of the two it was
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: signals go to whoever is
                break
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested, self.number = True, signal.Signals(number)

    def check(self) -> None:
        """Raise Interrupted when a signal has arrived; an evaluation calls this between its batches."""
        if self.requested:
            raise Interrupted(
                "stopped while evaluating; the state was saved before: the same command resumes it.", self.number
            )

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Evaluation(Protocol):
    """What an evaluation gets beside the task's own module."""

    share: Share
    device: torch.device

    def check(self) -> None:
        """Raise Interrupted when the run was asked to stop."""

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""


@runtime_checkable
class OwnFormat(Protocol):
    """What a task writes that is no encoder: a tokenizer."""

    provenance: dict[str, Any]

    def write(self, path: Path, dtype: str) -> str:
        """Write atomically, in a file format of its own; returns the fingerprint."""


@runtime_checkable
class OwnState(Protocol):
    """What a task must save beside its module to be resumed: a moving average."""

    def own_state(self) -> dict[str, Tensor]: ...

    def load_own_state(self, state: dict[str, Tensor]) -> None: ...


class Task(Protocol):
    """One experiment. ``config`` is resolved: its steps, warm-up and learning rate are those of the run."""

    name: str

    @property
    def config(self) -> TrainConfig: ...

    @property
    def module(self) -> nn.Module:
        """Everything trainable, and every buffer that must survive a resumption."""

    def to(self, device: torch.device) -> None:
        """Move what is not part of ``module`` (teacher, tables) to the device."""

    def blocks(self) -> list[nn.Module]:
        """The repeated transformer blocks, which are compiled and sharded one by one."""

    def batches(self, first: int, share: Share) -> Iterator[list[Any]]:
        """Yield, for each step from ``first`` on, this process's micro-batches."""

    def loss(self, model: nn.Module, batch: Any, clock: Clock) -> dict[str, Tensor]:
        """Compute the losses of one micro-batch with ``model`` (``module``, possibly wrapped for several processes).

        ``loss`` carries the gradient, the rest are scalars to log. Every process must call ``model`` equally often.
        """

    def backward(self, loss: Tensor, clock: Clock) -> None:
        """Run the backward pass, booking its time."""

    def after_step(self) -> None:
        """Clamp or update what follows the optimiser."""

    def evaluate(self, evaluation: Evaluation) -> dict[str, float]:
        """Measure; called every ``eval_every`` steps and at the end, with equal results in every process."""

    def best(self) -> str | None:
        """The figure (higher is better) by which ``best.pt`` is kept."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups: ``params``, ``weight_decay`` and, where it differs, ``lr_scale``."""

    def inputs(self) -> dict[str, str]:
        """Fingerprints of what the configuration only points at: data, teacher, encoder."""

    def flops_per_image(self) -> float:
        """Floating-point operations of one training image (forward, backward, teacher); 0 where not counted."""

    def notes(self) -> dict[str, float]:
        """Counters to log and report, such as samples that could not be read."""

    def checkpoint(self, figures: dict[str, float], state: dict[str, Tensor]) -> Checkpoint | OwnFormat:
        """The model as it is now; ``figures`` are those of the last evaluation, ``state`` the whole module's."""


def group(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries of a state dict below ``prefix.``, without it."""
    start = prefix + "."
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
