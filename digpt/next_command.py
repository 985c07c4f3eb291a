"""Which command measures a model that was just made: a classifier of somebody's pictures is asked about those.

say(f"next: {measuring(path, 'finetune', config.data, config.val_data)}")
console.print(measuring_as_recorded(directory, manifest["source"]["provenance"]))
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BUNDLED = ("emoji", "scenes")
# Who cannot answer what evaluate.robustness asks of the bundled set, or of pictures of one's own.
_OF_BUNDLED = {"segment": "segmentation", "finetune": "knn"}  # finetuned, it tells subgroups apart, not concepts
_OF_OWN = {"segment": "segmentation", "pretrain": "knn"}  # it has neither head nor text tower


def measuring(model: Path, command: str, data: str, val_data: str = "") -> str:
    """The command for ``model``, made by ``train.COMMAND`` from ``data`` (a spec of docs/data.md)."""
    if data in BUNDLED or command not in ("finetune", "pretrain", "segment"):  # pairs have no classes to ask about
        return f"python -m evaluate.{_OF_BUNDLED.get(command, 'robustness')} {shlex.quote(str(model))}"
    evaluator = _OF_OWN.get(command, "robustness")
    spec = data if evaluator == "knn" else val_data or data  # neighbours are training pictures
    return f"python -m evaluate.{evaluator} {shlex.quote(str(model))} --data {shlex.quote(spec)}"


def measuring_as_recorded(model: Path, provenance: Mapping[str, Any]) -> str:
    """The command for ``model`` by the record of its training, which may be of unknown origin, or empty."""
    config = provenance.get("config")
    config = config if isinstance(config, dict) else {}
    data, val_data = (str(config.get(name) or default) for name, default in (("data", BUNDLED[0]), ("val_data", "")))
    return measuring(model, str(provenance.get("command", "")).rpartition(".")[2], data, val_data)
