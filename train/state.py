"""A run's folder: configuration, metrics, the resume state and checkpoints, written so that a kill loses little.

The resume state is one file, replaced atomically; ``metrics.jsonl`` is truncated to it on resumption. Only the main
process writes; the others open the folder with ``main=False`` and read (all must see the same file system).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from digpt.artifact import Checkpoint, atomic_json, atomic_write, write_checkpoint
from digpt.errors import CheckpointError, ConfigError
from train.task import OwnFormat

STATE = "resume.pt"


class RunFolder:
    """One training run on disk: ``config.json``, ``metrics.jsonl``, ``resume.pt``, ``ckpt.pt``, ``best.pt``,
    ``checkpoints/step_N.pt``, ``report.html`` and, after a gradient that was not finite, ``failure.json``.
    """

    def __init__(self, path: Path, config: dict[str, Any], overwrite: bool, main: bool = True) -> None:
        self.path, self.main = path, main
        self._metrics = path / "metrics.jsonl"
        if not main:
            self._lock: BinaryIO | None = None
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output {path} cannot be a directory: {error.strerror}.") from error
        self._lock = _lock(path)
        try:
            self._open(config, overwrite)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the folder."""
        if self._lock is not None:
            self._lock.close()

    def _open(self, config: dict[str, Any], overwrite: bool) -> None:
        if overwrite:
            self._clear()
        stored = self.path / "config.json"
        if stored.exists():
            self._refuse_other(json.loads(stored.read_text()), config)
        elif (self.path / STATE).exists():
            raise ConfigError(f"{self.path} holds a {STATE} without its config.json; start again with --overwrite.")
        atomic_json(stored, config)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _clear(self) -> None:
        """Remove this project's files only: a mistyped ``--output`` must not delete anything else."""
        for name in (STATE, "metrics.jsonl", "ckpt.pt", "best.pt", "failure.json", "report.html"):
            (self.path / name).unlink(missing_ok=True)
        for file in self.snapshots():
            file.unlink()
        (self.path / "config.json").unlink(missing_ok=True)  # last: a state never outlives its configuration

    def _refuse_other(self, stored: dict[str, Any], config: dict[str, Any]) -> None:
        differing = sorted(key for key in stored.keys() | config.keys() if stored.get(key) != config.get(key))
        if differing:
            fields = ", ".join(f"{key} ({stored.get(key)!r} there, {config.get(key)!r} now)" for key in differing)
            raise ConfigError(
                f"{self.path} holds a run with another configuration: {fields}. "
                "Resume it with the same fields, choose another --output, or start again with --overwrite."
            )

    def load(self) -> dict[str, Any] | None:
        """Return the resume state, or None for a fresh run; metrics after it are dropped."""
        file = self.path / STATE
        if not file.exists():
            if self.main:
                self._metrics.unlink(missing_ok=True)
            return None
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{file} cannot be read ({type(error).__name__}): delete it to start again, or restore a copy."
            ) from error
        if self.main and self._metrics.exists():
            os.truncate(self._metrics, min(state["metrics_bytes"], self._metrics.stat().st_size))
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the resume state atomically.

        Raises:
            CheckpointError: no room, or another failure of the disk; the previous state is kept.
        """
        state = {**state, "metrics_bytes": self._metrics.stat().st_size if self._metrics.exists() else 0}
        self._write(self.path / STATE, lambda: atomic_write(self.path / STATE, lambda file: torch.save(state, file)))

    def write_checkpoint(self, name: str, checkpoint: Checkpoint | OwnFormat, store: str) -> str:
        """Write ``name`` below the folder; return the fingerprint. Errors are those of :meth:`save`."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(checkpoint, Checkpoint):
            return self._write(path, lambda: write_checkpoint(path, checkpoint, store))
        return self._write(path, lambda: checkpoint.write(path, store))

    def _write(self, path: Path, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            free = shutil.disk_usage(self.path).free
            raise CheckpointError(
                f"{path} could not be written ({str(error).splitlines()[0]}; {free >> 20} MiB free): what was saved "
                "before is kept. Make room, then give the same command again."
            ) from error

    def snapshots(self) -> list[Path]:
        """The kept checkpoints of earlier evaluations, oldest first."""
        return sorted((self.path / "checkpoints").glob("step_*.pt"))

    def prune(self, keep: int, after: int) -> None:
        """Remove all but the newest ``keep`` checkpoints, and those of a lost future beyond step ``after``."""
        kept = [file for file in self.snapshots() if int(file.stem.removeprefix("step_")) <= after]
        for file in set(self.snapshots()) - set(kept[len(kept) - keep :] if keep else ()):
            file.unlink(missing_ok=True)

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _lock(path: Path) -> BinaryIO:
    """Hold the folder for this process: two runs writing one state would spoil both. The system frees it at exit."""
    file = open(path / ".lock", "wb")  # noqa: SIM115 - held until the run ends
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(
            f"Another process is training in {path}: wait for it, stop it, or choose another --output."
        ) from None
    return file
