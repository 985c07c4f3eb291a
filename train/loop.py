"""The training loop: one task after another step, exactly resumable, with the time of every part measured.

A task supplies batches as a function of the step number, so a resumed run sees what the uninterrupted one would have.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import Tensor, nn

from digpt.artifact import Checkpoint, write_checkpoint
from digpt.errors import DigptError
from train.config import TrainConfig
from train.optim import build_optimizer, learning_rate
from train.provenance import commit
from train.state import RunFolder


class Interrupted(DigptError):
    """The run was asked to stop; its state is saved."""


@dataclass
class Clock:
    """Seconds per part of a step. Parts nest: time inside an inner part counts for the inner part alone."""

    seconds: dict[str, float] = field(default_factory=dict)
    _inner: list[float] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time spent inside to ``name``."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.add(name, elapsed - self._inner.pop())
            if self._inner:
                self._inner[-1] += elapsed

    def add(self, name: str, seconds: float) -> None:
        """Book ``seconds`` on ``name``."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def move(self, source: str, target: str, seconds: float) -> None:
        """Rebook ``seconds`` from one part to another."""
        self.add(source, -seconds)
        self.add(target, seconds)


class Task(Protocol):
    """What the loop needs from an experiment."""

    name: str

    @property
    def module(self) -> nn.Module:
        """Everything trainable, and every buffer that must survive a resumption."""

    def loss(self, step: int, clock: Clock) -> dict[str, Tensor]:
        """Compute the losses of one step; ``loss`` carries the gradient, the rest are scalars to log."""

    def backward(self, loss: Tensor, clock: Clock) -> None:
        """Run the backward pass, booking its time."""

    def after_step(self) -> None:
        """Clamp or update what follows the optimiser."""

    def evaluate(self) -> dict[str, float]:
        """Measure; called every ``eval_every`` steps and at the end."""

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that get no weight decay."""

    def inputs(self) -> dict[str, str]:
        """Fingerprints of what the configuration only points at: data, teacher, encoder."""

    def checkpoint(self, figures: dict[str, float]) -> Checkpoint:
        """The finished model; ``figures`` are those of the last evaluation, for its record."""


class Stop:
    """Turns SIGTERM and SIGINT into a flag that the loop reads between steps."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: signals go to whoever is
                break
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def train(task: Task, config: TrainConfig, console: Console | None = None) -> Path:
    """Run ``task`` to ``config.steps`` and write ``ckpt.pt``; resumes when the folder holds a state.

    Returns:
        The path of the checkpoint.

    Raises:
        Interrupted: SIGTERM or SIGINT arrived; the state was saved.
        ConfigError: the folder holds a run with another configuration, data or teacher, or is in use elsewhere.
        DigptError: a gradient is not finite.
        CheckpointError: the resume state is damaged.
    """
    torch.set_num_threads(config.threads)
    inputs = {f"{name} fingerprint": value for name, value in task.inputs().items()}
    document = {"command": task.name, **config.to_dict(), **inputs}
    with RunFolder(config.output, document, config.overwrite) as folder, Stop() as stop:
        return _Run(task, config, folder, console or Console(stderr=True, highlight=False)).to_the_end(stop)


class _Run:
    """One task on its way through one folder."""

    def __init__(self, task: Task, config: TrainConfig, folder: RunFolder, console: Console) -> None:
        self.task, self.config, self.folder, self.console = task, config, folder, console
        self.optimizer = build_optimizer(task.module, config, task.no_weight_decay())
        self.clock, self.first, self.elapsed = Clock(), 0, 0.0
        self.figures: dict[str, float] | None = None
        self.commits: list[str] = []
        state = folder.load()
        if state is not None:
            task.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.first, self.elapsed, self.clock.seconds = state["step"], state["elapsed"], dict(state["seconds"])
            self.figures, self.commits = state["figures"], list(state["commits"])
            console.print(f"resuming {config.output} at step {self.first} of {config.steps}")
        now = commit() or "unknown"
        if now not in self.commits:
            self.commits.append(now)
        self.began = time.perf_counter()

    def to_the_end(self, stop: Stop) -> Path:
        config = self.config
        if self.first == config.steps and (config.output / "ckpt.pt").exists():
            self.console.print(f"{config.output} is finished; --overwrite starts it again", soft_wrap=True)
            return config.output / "ckpt.pt"
        for step in range(self.first, config.steps):
            values = _one_step(self.task, self.optimizer, step, config, self.clock)
            done = step + 1
            last = done == config.steps
            if done % config.log_every == 0 or last:
                self._report(done, values)
            if done % config.eval_every == 0 or last:
                self._evaluate(done)
            if done % config.save_every == 0 or last or stop.requested:
                self._save(done)
            if stop.requested and not last:
                raise Interrupted(f"stopped at step {done}; the same command resumes it from {config.output}.")
        return self._finish()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier sessions included."""
        return self.elapsed + time.perf_counter() - self.began

    def _save(self, step: int) -> None:
        """Save the resume state."""
        state = {"step": step, "elapsed": self.seconds, "seconds": self.clock.seconds}
        state |= {"figures": self.figures, "commits": self.commits}
        weights = {"module": self.task.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.folder.save({**state, **weights})

    def _evaluate(self, done: int) -> None:
        self.task.module.eval()
        with self.clock.part("evaluation"), torch.no_grad():
            self.figures = self.task.evaluate()
        if self.figures:
            self.folder.log({"step": done, **self.figures})
            self.console.print("  " + "  ".join(f"{name} {value:.4g}" for name, value in self.figures.items()))

    def _report(self, done: int, values: dict[str, Tensor]) -> None:
        """Print and log one line."""
        config = self.config
        numbers = {name: float(value.detach()) for name, value in values.items()}
        self.folder.log({"step": done, "lr": learning_rate(done - 1, config), **numbers})
        rate = (done - self.first) * config.batch_size / max(time.perf_counter() - self.began, 1e-9)
        left = _duration((config.steps - done) * config.batch_size / rate)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items() if "step" not in name)
        self.console.print(f"step {done}/{config.steps}  {shown}  {rate:.0f} images/s  ETA {left}", soft_wrap=True)
        steps = {name: value for name, value in numbers.items() if "step" in name}
        for name in sorted(key for key in steps if key.endswith("_loss")):
            short = name.removesuffix("_loss")
            self.console.print(f"    {short}: {steps[name]:.4f} (constant mean {steps[short + '_baseline']:.4f})")

    def _finish(self) -> Path:
        if self.figures is None:  # resumed from the state of the last step
            self._evaluate(self.config.steps)
        self.task.module.eval()
        checkpoint = self.task.checkpoint(self.figures or {})
        split = {name: round(value, 2) for name, value in self.clock.seconds.items()}
        checkpoint.provenance |= {"seconds": round(self.seconds, 1), "time_split": split}
        checkpoint.provenance["commit"] = " then ".join(self.commits)  # of the code as it was when each session began
        path = self.config.output / "ckpt.pt"
        fingerprint = write_checkpoint(path, checkpoint, self.config.store)
        total = sum(split.values()) or 1.0
        parts = ", ".join(f"{name} {value / total:.0%}" for name, value in split.items())
        self.console.print(f"\ntime {_duration(self.seconds)}: {parts}", soft_wrap=True)
        self.console.print(f"wrote {path}  {fingerprint}", soft_wrap=True)
        return path


def _one_step(
    task: Task, optimizer: torch.optim.Optimizer, step: int, config: TrainConfig, clock: Clock
) -> dict[str, Tensor]:
    task.module.train()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        values = task.loss(step, clock)
    optimizer.zero_grad(set_to_none=True)
    task.backward(values["loss"], clock)
    with clock.part("optimiser"):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        values["grad_norm"] = nn.utils.clip_grad_norm_(parameters, config.clip or math.inf)
        if not math.isfinite(values["grad_norm"].item()):
            raise DigptError(
                f"The gradient is not finite at step {step + 1} (loss {values['loss'].item():.4g}): lower --lr or "
                f"lengthen --warmup; the state of the last save is kept in {config.output}."
            )
        optimizer.step()
        task.after_step()
    return values


def _duration(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d}:{int(seconds) % 60:02d}"
