"""Where a checkpoint comes from: command, recipe, data, seed, commit, and the chain of its parents."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any, Protocol

import timm
import torch

from train.config import TrainConfig


class DataRecord(Protocol):
    """What is recorded of the data."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


def commit() -> str | None:
    """The checkout's commit, with ``+`` when the tree is changed; None outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    root = Path(__file__).resolve().parents[1]

    def ask(*arguments: str) -> str | None:
        done = subprocess.run([git, *arguments], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    head = ask("rev-parse", "HEAD")
    return head and head + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")


def parent(role: str, fingerprint: str, provenance: dict[str, Any]) -> dict[str, Any]:
    """One link of the chain: a parent's role, fingerprint, what its own record tells, and its own parents."""
    record = ("command", "steps", "seconds", "figures", "commit")
    told: dict[str, Any] = {name: provenance[name] for name in record if name in provenance}
    return {"role": role, "fingerprint": fingerprint, **told, "parents": provenance.get("parents", [])}


def provenance(
    command: str, config: TrainConfig, data: DataRecord, parents: list[dict[str, Any]], figures: dict[str, float]
) -> dict[str, Any]:
    """The record stored beside the weights; the loop adds seconds and the time split."""
    return {
        "command": f"python -m train.{command}",
        "config": config.to_dict(),
        "data": {"name": data.name, "fingerprint": data.fingerprint},
        "seed": config.seed,
        "steps": config.steps,
        "parents": parents,
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()},
    }
