"""What a checkpoint and an exported artifact are: read, write, verify, migrate, fingerprint. Imports without torch.

>>> write_checkpoint("run/ckpt.pt", Checkpoint(config, {"encoder": encoder.state_dict()}, provenance))
>>> checkpoint = read_checkpoint("run/ckpt.pt")
>>> timm.create_model(**checkpoint.config["encoder"]).load_state_dict(checkpoint.weights["encoder"], strict=True)
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digpt.errors import CheckpointError, near_misses
from digpt.files import atomic_json, atomic_write, canonical_json, file_sha256
from digpt.manifest import MANIFEST_NAME, Manifest, read_manifest, verify_artifact, write_manifest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MANIFEST_NAME",
    "Checkpoint",
    "Manifest",
    "atomic_json",
    "atomic_write",
    "canonical_json",
    "check_config",
    "file_sha256",
    "fingerprint",
    "load_document",
    "migrate",
    "read_checkpoint",
    "read_manifest",
    "require_file",
    "verify_artifact",
    "write_checkpoint",
    "write_manifest",
]

FORMAT = "digpt-checkpoint"
VERSION = 1
GROUPS = ("encoder", "head", "text", "decoders")
INFERENCE_GROUPS = ("encoder", "head", "text")
ARCHITECTURES = ("timm", "open_clip")
_REQUIRED = ("architecture", "encoder", "preprocess", "pooling")
_OPTIONAL = ("head", "text", "labels", "objective")

Weights = dict[str, dict[str, "Tensor"]]


@dataclass
class Checkpoint:
    """One trained model.

    ``config``: ``architecture`` (``timm`` or ``open_clip``), ``encoder`` (for timm: the exact ``timm.create_model``
    arguments), ``preprocess``, ``pooling``, and ``head``, ``text``, ``labels``, ``objective``, each None when absent.
    ``weights``: groups ``encoder``, ``head``, ``text``, ``decoders`` of named float32 tensors; absent groups are
    left out. ``provenance``: command, recipe, data, seed, commit, parents, figures.
    """

    config: dict[str, Any]
    weights: Weights
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_config(self.config)
        unknown = sorted(set(self.weights) - set(GROUPS))
        if unknown:
            raise CheckpointError(f"Unknown weight group {unknown[0]!r}; valid: {', '.join(GROUPS)}.")
        if not self.weights.get("encoder"):
            raise CheckpointError("A checkpoint needs the weight group 'encoder'.")
        self.config = {**dict.fromkeys(_OPTIONAL), **self.config}

    @property
    def fingerprint(self) -> str:
        """``sha256:<64 hex>`` of everything that decides the answers, see ``fingerprint``."""
        return fingerprint(self.weights, self.config)


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError`` when a required key is missing, a key is unknown, or the architecture is."""
    for key in config:
        if key not in (*_REQUIRED, *_OPTIONAL):
            known = near_misses(key, (*_REQUIRED, *_OPTIONAL))
            raise CheckpointError(f"Unknown key {key!r} in the checkpoint's config.{known}")
    missing = [key for key in _REQUIRED if key not in config]
    if missing:
        raise CheckpointError(f"The checkpoint's config lacks {', '.join(missing)}.")
    if config["architecture"] not in ARCHITECTURES:
        valid = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"Unknown architecture {config['architecture']!r} in the checkpoint; valid: {valid}.")


def fingerprint(weights: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]) -> str:
    """Return ``sha256:<64 hex>`` over all inference weights and every setting that changes an answer.

    Hashed are the sorted (name, shape, little-endian float32 bytes) of the groups encoder, head and text (never the
    decoders), then the canonical JSON of preprocessing, pooling, labels, logit scale and bias, and of what the
    weights alone do not say: the encoder's arguments (heads, activation), tokenizer and prompt templates.
    """
    import numpy as np

    digest = hashlib.sha256()
    named = {f"{group}.{name}": t for group in INFERENCE_GROUPS for name, t in (weights.get(group) or {}).items()}
    for name in sorted(named):
        array = named[name].detach().cpu().float().numpy()
        digest.update(f"{name}{list(array.shape)}".encode())
        digest.update(np.ascontiguousarray(array, dtype="<f4").data)
    keys = ("architecture", "encoder", "preprocess", "pooling", "head", "text", "labels")
    digest.update(canonical_json({key: config.get(key) for key in keys}))
    return f"sha256:{digest.hexdigest()}"


# ---------------------------------------------------------------------------------------------------------- writing


def write_checkpoint(path: str | Path, checkpoint: Checkpoint, dtype: str | None = None) -> str:
    """Write atomically and return the fingerprint of what was stored.

    ``dtype="float16"`` (or ``"bfloat16"``) stores the floating-point weights in half precision; reading gives
    float32 again, and the fingerprint is that of the rounded values.
    """
    import torch

    stored_as = getattr(torch, dtype) if dtype else None

    def stored(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu().contiguous()
        tensor = tensor.to(stored_as) if stored_as and tensor.is_floating_point() else tensor
        return tensor.clone()  # a view would drag its whole storage into the file

    weights = {group: {name: stored(t) for name, t in named.items()} for group, named in checkpoint.weights.items()}
    config = json.loads(canonical_json(checkpoint.config))  # plain types only: tuples become lists
    result = fingerprint(weights, config)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "config": config,
        "weights": weights,
        "provenance": json.loads(canonical_json(checkpoint.provenance)),
    }
    atomic_write(path, lambda file: torch.save(document, file))
    return result


# ---------------------------------------------------------------------------------------------------------- reading


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read, migrate and check a checkpoint; every weight comes back as float32 (integers stay integers).

    Raises:
        CheckpointError: not found, half-written, damaged, of another program, or of a newer version.
    """
    path = Path(path)
    document = load_document(path)
    _check_content(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a digpt checkpoint. Weights of other libraries load as timm:NAME@{path.name} or "
            f"open_clip:NAME/{path.name}."
        )
    document = migrate(document, path)
    for key, kind in (("config", dict), ("weights", dict), ("provenance", dict)):
        if not isinstance(document.get(key), kind):
            raise CheckpointError(f"{path} lacks {key!r}: it was not written by digpt, or was edited. Train it again.")
    weights = {
        group: {name: t.float() if t.is_floating_point() else t for name, t in named.items()}
        for group, named in document["weights"].items()
    }
    try:
        return Checkpoint(document["config"], weights, document["provenance"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_document(path: Path, allowed: tuple[Any, ...] = ()) -> Any:
    """``torch.load(weights_only=True)`` with every failure as a ``CheckpointError`` sentence.

    ``allowed`` lists further types that may be unpickled.
    """
    import torch

    require_file(path)
    if path.stat().st_size == 0 or (_starts_as_zip(path) and not zipfile.is_zipfile(path)):
        raise CheckpointError(
            f"{path} is incomplete ({path.stat().st_size:,} bytes): writing or copying it was interrupted. "
            "Copy it again, or run the training command again with the same --output to resume."
        )
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is not a checkpoint of plain tensors, and nothing else is unpickled. Save the state_dict alone."
        ) from None
    except Exception as error:  # damaged files raise nearly everything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged ({reason}). Copy it again or train it again.") from None


def _check_content(path: Path) -> None:
    """Compare every weight with the checksum stored beside it, which ``torch.load`` does not look at."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged (checksum of {damaged}). Copy it again or train it again.")


def require_file(path: Path) -> None:
    """Raise ``CheckpointError`` unless ``path`` is a file, naming close file names beside it."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; give the checkpoint file in it, such as {path / 'ckpt.pt'}.")
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(f"No such file: {path}.{near_misses(path.name, siblings)}")


def _starts_as_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


# -------------------------------------------------------------------------------------------------------- migration


def migrate(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """Bring a document of any older version to ``VERSION``; refuse a newer one with a sentence."""
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise CheckpointError(f"{path} states no version: it was not written by digpt, or was edited.")
    if version > VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {version}; this digpt reads up to {VERSION}. Upgrade digpt to read it."
        )
    while version < VERSION:
        if version not in MIGRATIONS:
            raise CheckpointError(f"{path} has checkpoint version {version}, which no migration covers.")
        document = MIGRATIONS[version](document)
        version += 1
    return {**document, "version": VERSION}


def _migrate_0(document: dict[str, Any]) -> dict[str, Any]:
    """Version 0 (before release): one flat ``state_dict`` with group prefixes, no provenance, ``image_size`` only."""
    config = dict(document["config"])
    size = config.pop("image_size", None)
    if size is not None:
        half = [0.5, 0.5, 0.5]
        config["preprocess"] = {"size": size, "resize": "shortest", "mean": half, "std": half}
    config.setdefault("architecture", "timm")
    config.setdefault("pooling", "avg")
    weights: Weights = {}
    for name, tensor in document["state_dict"].items():
        group, _, rest = name.partition(".")
        weights.setdefault(group, {})[rest] = tensor
    return {"format": FORMAT, "version": 1, "config": config, "weights": weights, "provenance": {}}


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {0: _migrate_0}
