"""The training loop: one task after another step, exactly resumable, with the time of every part measured.

A task supplies batches as a function of the step number, so a resumed run sees what the uninterrupted one would have,
and any number of processes sees the same samples (``train.share``).
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from digpt.artifact import atomic_json
from digpt.errors import DigptError
from train.clock import Clock
from train.config import Interrupted
from train.cost import measured_peak
from train.distributed import Processes
from train.optim import build_optimizer, learning_rate, set_learning_rate
from train.provenance import commit
from train.report import write_report
from train.state import RunFolder
from train.task import OwnState, Stop, Task

__all__ = ["Clock", "Interrupted", "train"]


def train(task: Task, console: Console | None = None) -> Path:
    """Run ``task`` to its last step and write ``ckpt.pt``; resumes when the folder holds a state.

    Returns:
        The path of the checkpoint.

    Raises:
        Interrupted: SIGTERM or SIGINT arrived; the state was saved.
        ConfigError: the folder holds a run with another configuration, data or teacher, or is in use elsewhere.
        DigptError: a gradient is not finite.
        CheckpointError: the resume state is damaged, or the disk is full.
    """
    config = task.config
    processes = Processes(config)
    inputs = {f"{name} fingerprint": value for name, value in task.inputs().items()}
    document = {"command": task.name, **config.to_dict(), **inputs}
    with RunFolder(config.output, document, config.overwrite, processes.main) as folder, Stop() as stop:
        processes.wait()  # nobody reads the folder before the main process has checked and cleared it
        processes.start_trackers(document)
        try:
            quiet = console or Console(stderr=True, highlight=False, quiet=not processes.main)
            return _Run(task, processes, folder, quiet, stop).to_the_end()
        finally:
            processes.finish()


class _Run:
    """One task on its way through one folder."""

    def __init__(self, task: Task, processes: Processes, folder: RunFolder, console: Console, stop: Stop) -> None:
        self.task, self.config, self.processes, self.folder = task, task.config, processes, folder
        self.console, self.stop = console, stop
        self.share, self.device = processes.share, processes.device
        task.to(processes.device)
        self.model = processes.wrap(task.module, task.blocks())
        self.optimizer = build_optimizer(task.parameter_groups(), self.config)
        self.clock, self.done, self.elapsed = Clock(), 0, 0.0
        if processes.device.type == "cuda":
            self.clock.synchronise, self.clock.stride = torch.cuda.synchronize, self.config.log_every
        self.figures: dict[str, float] | None = None
        self.best = -math.inf
        self.skipped: list[int] = []  # steps whose gradient was not finite
        self.commits: list[str] = []
        self.unevaluated = False  # an evaluation is due at this very step
        self.stopping = False  # some process was asked to stop
        self.began, self.first = time.perf_counter(), 0
        self.notes: dict[str, float] = {}  # the task's, of earlier sessions
        state = folder.load()
        if state is not None:
            self._restore(state)
            self.notes = dict(state["notes"])
            console.print(f"resuming {self.config.output} at step {self.done} of {self.config.steps}")
        now = commit() or "unknown"
        if now not in self.commits:
            self.commits.append(now)
        self.uncounted = False  # the task cannot tell its FLOPs
        self.peak = 0.0  # FLOP/s of a matrix product on this device, measured when the first line is due

    def to_the_end(self) -> Path:
        config = self.config
        if self.done == config.steps and not self.unevaluated and (config.output / "ckpt.pt").exists():
            self.console.print(f"{config.output} is finished; --overwrite starts it again", soft_wrap=True)
            return config.output / "ckpt.pt"
        while self.done < config.steps or self.unevaluated:
            if self.unevaluated:
                self._evaluate()
            self._steps()
        return self._finish()

    def _steps(self) -> None:
        """Step on to the end, or until a reload makes the batches start elsewhere."""
        config = self.config
        batches = self.task.batches(self.done, self.share)
        try:
            while self.done < config.steps:
                if self._step(batches):
                    return
                last = self.done == config.steps
                self.unevaluated = self.done % config.eval_every == 0 or last
                if (self.stopping or (self.share.world == 1 and self.stop.requested)) and not last:
                    self._save()
                    told = f"stopped at step {self.done}; the same command resumes it from {config.output}."
                    raise Interrupted(told, self.stop.number)
                if self.unevaluated or self.done % config.save_every == 0:
                    self._save()  # before an evaluation, which may be long and is repeated if it is killed
                if self.unevaluated:
                    self._evaluate()
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()  # loader processes end here

    def _step(self, batches: Any) -> bool:
        """One step; returns whether the run went back to its last saved state instead."""
        config, step = self.config, self.done
        self.clock.active = self.clock.synchronise is None or (step + 1) % config.log_every == 0
        with self.clock.part("loader"):
            micro_batches = next(batches)
        if step in self.skipped:
            self.done += 1
            return False
        self.task.module.train()
        set_learning_rate(self.optimizer, step, config)
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, Tensor] = {}
        for number, batch in enumerate(micro_batches, start=1):
            with self.processes.accumulating(self.model, last=number == len(micro_batches)):
                with self.processes.autocast():
                    part = self.task.loss(self.model, batch, self.clock)
                self.task.backward(part["loss"] / len(micro_batches), self.clock)
            for name, value in part.items():
                mean = value.detach() / len(micro_batches)
                values[name] = values[name] + mean if name in values else mean
        with self.clock.part("optimiser"):
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            size = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            norm, stopping = self.processes.agree(_whole(size), self.stop.requested)
            self.stopping = stopping > 0
            if not math.isfinite(norm):
                return self._not_finite(values, norm)
            if config.clip:
                nn.utils.clip_grads_with_norm_(parameters, config.clip, size)
            self.optimizer.step()
            self.task.after_step()
        self.done += 1
        if self.done % config.log_every == 0 or self.done == config.steps:
            self._report({**values, "grad_norm": torch.tensor(norm)})
        return False

    # ------------------------------------------------------------------------------------------------ not finite

    def _not_finite(self, values: dict[str, Tensor], norm: float) -> bool:
        """Stop with a report, skip the step, or go back to the last saved state and skip it when it comes again."""
        config, step = self.config, self.done
        losses = {name: str(value) for name, value in self.processes.mean(values).items()}
        names = _parameters_not_finite(self.task.module)
        self.skipped.append(step)
        stopping = config.nonfinite == "stop" or len(self.skipped) > config.nonfinite_limit
        report = {"step": step + 1, "losses": losses, "grad_norm": str(norm), "lr": learning_rate(step, config)}
        report |= {"parameters": names, "skipped_steps": [number + 1 for number in self.skipped]}
        report["policy"] = config.nonfinite
        if self.processes.main:
            atomic_json(config.output / "failure.json", report)
        if stopping:
            raise DigptError(
                f"The gradient is not finite at step {step + 1} (loss {values['loss'].item():.4g}): go on from the "
                f"last save with --nonfinite skip or reload and a --nonfinite-limit, or start anew in another --output "
                f"with a lower --lr or a longer --warmup. Details: {config.output / 'failure.json'}."
            )
        self.console.print(f"step {step + 1}: the gradient is not finite; {config.nonfinite}", soft_wrap=True)
        if config.nonfinite == "skip":
            self._event("skipped")
            self.done += 1
            return False
        self.processes.wait()
        state = self.folder.load()
        if state is None:
            raise DigptError(f"The gradient is not finite at step {step + 1}, and nothing is saved yet to reload.")
        skipped = self.skipped
        self._restore(state)
        self.skipped = skipped
        self._event("reloaded", f"from step {self.done}, leaving out {[number + 1 for number in skipped]}")
        return True

    def _event(self, kind: str, detail: str = "") -> None:
        if self.processes.main:
            self.folder.log({"step": self.done + 1, "event": kind, "detail": detail})

    # ----------------------------------------------------------------------------------------- states and figures

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier sessions included."""
        return self.elapsed + time.perf_counter() - self.began

    def _save(self) -> None:
        """Save the resume state."""
        weights = self.processes.state(self.model, self.optimizer)
        names = ("done", "figures", "best", "skipped", "commits", "unevaluated")
        state = {name: getattr(self, name) for name in names}
        state |= {"elapsed": self.seconds, "seconds": self.clock.seconds, "notes": self._notes()}
        state["own"] = self.task.own_state() if isinstance(self.task, OwnState) else {}
        if self.processes.main:
            self.folder.save({**state, **weights})
        self.processes.wait()

    def _restore(self, state: dict[str, Any]) -> None:
        self.processes.load(self.model, self.optimizer, state)
        if isinstance(self.task, OwnState):
            self.task.load_own_state(state["own"])
        self.done, self.elapsed, self.clock.seconds = state["done"], state["elapsed"], dict(state["seconds"])
        self.figures, self.best, self.unevaluated = state["figures"], state["best"], state["unevaluated"]
        self.skipped, self.commits = list(state["skipped"]), list(state["commits"])
        self.began, self.first = time.perf_counter(), self.done
        if self.processes.main:
            self.folder.prune(self.config.keep_last, self.done)

    def check(self) -> None:
        """Raise Interrupted when the run was asked to stop (``Evaluation``)."""
        self.stop.check()

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes (``Evaluation``)."""
        return self.processes.total(values)

    def _evaluate(self) -> None:
        """Measure, keep this checkpoint and the best one, and bring the report up to date."""
        self.task.module.eval()
        self.clock.active = True
        with self.clock.part("evaluation", every=True), torch.no_grad(), self.processes.whole(self.model):
            self.figures = self.task.evaluate(self)
        self.unevaluated = False
        if self.figures:
            self._log({"step": self.done, **self.figures})
            self.console.print("  " + "  ".join(f"{name} {value:.4g}" for name, value in self.figures.items()))
        if self.config.keep_last:
            self._keep()
        self._write_report()

    def _keep(self) -> None:
        """The last K checkpoints and the best one."""
        name = self.task.best()
        value = (self.figures or {}).get(name) if name else None
        best, last = value is not None and value > self.best, self.done == self.config.steps
        if last and not best:
            return  # the last checkpoint is ckpt.pt
        state = self.processes.state(self.model, self.optimizer)["module"]
        if self.processes.main:
            checkpoint = self.task.checkpoint(self.figures or {}, state)
            checkpoint.provenance |= {"step": self.done, "commit": " then ".join(self.commits)}
            if not last:
                self.folder.write_checkpoint(f"checkpoints/step_{self.done:08d}.pt", checkpoint, self.config.store)
                self.folder.prune(self.config.keep_last, self.done)
            if best:
                self.folder.write_checkpoint("best.pt", checkpoint, self.config.store)
        if best and value is not None:
            self.best = value

    def _report(self, values: dict[str, Tensor]) -> None:
        """Print and log one line."""
        config, done = self.config, self.done
        numbers = self.processes.mean(values)
        rate = (done - self.first) * config.batch_size / max(time.perf_counter() - self.began, 1e-9)
        row: dict[str, Any] = {
            "step": done,
            "lr": learning_rate(done - 1, config),
            **numbers,
            "images_per_second": rate,
        }
        total = sum(self.clock.seconds.values()) or 1.0
        row["time_split"] = {name: round(value / total, 4) for name, value in self.clock.seconds.items()}
        utilisation = self._utilisation(rate)
        if utilisation:
            row["utilisation"] = utilisation
        row |= self._notes()
        self._log(row)
        left = duration((config.steps - done) * config.batch_size / rate)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items() if "step" not in name)
        busy = f"  {utilisation:.0%} of the measured peak" if utilisation else ""
        line = f"step {done}/{config.steps}  {shown}  {rate:.0f} images/s{busy}  ETA {left}"
        self.console.print(line, soft_wrap=True)
        for name in sorted(key for key in numbers if "step" in key and key.endswith("_loss")):
            short = name.removesuffix("_loss")
            baseline = numbers.get(f"{short}_baseline")
            beside = "" if baseline is None else f" (constant prediction {baseline:.4f})"
            self.console.print(f"    {short}: {numbers[name]:.4f}{beside}")

    def _utilisation(self, rate: float) -> float:
        """Share of the peak that a large matrix product reaches on these devices."""
        try:
            flops = self.task.flops_per_image()
        except DigptError as error:  # a figure to look at must not end a run
            if not self.uncounted:
                self.console.print(f"utilisation is not known: {error}", soft_wrap=True)
            flops, self.uncounted = 0.0, True
        if not flops:
            return 0.0
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        self.peak = self.peak or measured_peak(self.device, dtype)
        return rate * flops / (self.peak * self.share.world)

    def _notes(self) -> dict[str, float]:
        """The task's counters over all processes and sessions."""
        notes = dict(self.notes)
        for part in self.processes.gathered(self.task.notes()):
            for name, value in part.items():
                notes[name] = notes.get(name, 0.0) + value
        return notes

    def _log(self, row: dict[str, Any]) -> None:
        if self.processes.main:
            self.folder.log(row)
        flat = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}
        self.processes.track(flat, step=self.done)

    def _write_report(self) -> None:
        if not self.processes.main:
            return
        try:
            write_report(self.config.output)
        except Exception as error:  # a page must never end a run of days
            self.console.print(f"report.html was not written: {type(error).__name__}: {error}", soft_wrap=True)

    def _finish(self) -> Path:
        self.task.module.eval()
        path = self.config.output / "ckpt.pt"
        state, notes = self.processes.state(self.model, self.optimizer)["module"], self._notes()
        if self.processes.main:
            checkpoint = self.task.checkpoint(self.figures or {}, state)
            total = sum(self.clock.seconds.values()) or 1.0
            split = {name: round(value / total * self.seconds, 2) for name, value in self.clock.seconds.items()}
            checkpoint.provenance |= {"seconds": round(self.seconds, 1), "time_split": split}
            # of the code as it was when each session began
            checkpoint.provenance["commit"] = " then ".join(self.commits)
            checkpoint.provenance |= {"processes": self.share.world, "notes": notes}
            fingerprint = self.folder.write_checkpoint("ckpt.pt", checkpoint, self.config.store)
            self._write_report()
            parts = ", ".join(f"{name} {value / self.seconds:.0%}" for name, value in split.items())
            self.console.print(f"\ntime {duration(self.seconds)}: {parts}", soft_wrap=True)
            self.console.print(f"wrote {path}  {fingerprint}", soft_wrap=True)
        self._save()
        return path


def _whole(value: Tensor) -> Tensor:
    """A scalar that may be spread over the processes."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _parameters_not_finite(module: nn.Module, limit: int = 20) -> list[str]:
    """Names of parameters whose gradient in this process is not finite."""
    named = ((name, p.grad) for name, p in module.named_parameters() if p.grad is not None)
    return [name for name, gradient in named if not bool(gradient.isfinite().all())][:limit]


def duration(seconds: float) -> str:
    """``3725`` -> ``1:02:05``."""
    return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d}:{int(seconds) % 60:02d}"
