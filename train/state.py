"""A run's folder: configuration, metrics and the resume state, each written so that a kill at any moment loses little.

The resume state is one file, replaced atomically; ``metrics.jsonl`` is truncated to it on resumption.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import torch

from digpt.artifact import atomic_json, atomic_write
from digpt.errors import CheckpointError, ConfigError

STATE = "resume.pt"


class RunFolder:
    """One training run on disk. ``DIR/config.json``, ``DIR/metrics.jsonl``, ``DIR/resume.pt``, ``DIR/ckpt.pt``."""

    def __init__(self, path: Path, config: dict[str, Any], overwrite: bool) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path)
        self._metrics = path / "metrics.jsonl"
        try:
            self._open(config, overwrite)
        except BaseException:
            self._lock.close()
            raise

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
        self._lock.close()

    def _clear(self) -> None:
        """Remove this project's files only: a mistyped ``--output`` must not delete anything else."""
        for name in (STATE, "metrics.jsonl", "ckpt.pt", "config.json"):  # a state never outlives its configuration
            (self.path / name).unlink(missing_ok=True)

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
            self._metrics.unlink(missing_ok=True)
            return None
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{file} cannot be read ({type(error).__name__}): delete it to start again, or restore a copy."
            ) from error
        self._truncate_metrics(state["step"])
        return state

    def _truncate_metrics(self, step: int) -> None:
        if self._metrics.exists():
            rows = [line for line in self._metrics.read_text().splitlines() if _step_of(line) <= step]
            atomic_write(self._metrics, "".join(f"{line}\n" for line in rows).encode())

    def save(self, state: dict[str, Any]) -> None:
        """Replace the resume state atomically."""
        free = shutil.disk_usage(self.path).free
        if free < 64 * 2**20:
            raise CheckpointError(f"{self.path} has {free >> 20} MiB free: the previous resume state is kept.")
        atomic_write(self.path / STATE, lambda file: torch.save(state, file))

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


def _step_of(line: str) -> float:
    """The step of one metrics line; a line cut short by a kill sorts behind every state."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")
