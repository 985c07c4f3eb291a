"""What is known of a model without loading it: an artifact directory's manifest, or what a checkpoint records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from digpt.artifact import read_checkpoint
from digpt.manifest import MANIFEST_NAME
from digpt.results import ResultsDocument
from digpt.runtime.artifact import verify_sealed
from digpt.sources import checkpoint_path, model_name

UNKNOWN_LICENSE = "unknown"  # the hub's word for it
PIPELINES = {  # what a model does -> the hub's name of the task
    "upernet": "image-segmentation",
    "linear": "image-classification",
    "text": "zero-shot-image-classification",
    "": "image-feature-extraction",
}


@dataclass(frozen=True)
class Facts:
    """What is known of a model without loading it.

    ``spec`` is how commands name it, ``engines`` a manifest's; ``manifest`` is empty for a checkpoint.
    """

    spec: str
    name: str
    fingerprint: str
    preprocess: Mapping[str, Any]
    provenance: Mapping[str, Any]
    files: Mapping[str, int]
    head: str | None = None
    labels: Sequence[str] | None = None
    has_text: bool = False
    shape: str = ""
    source: str = ""
    engines: Mapping[str, Mapping[str, Any]] | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The spec for readers elsewhere, to whom the folders above say nothing."""
        path = Path(self.spec)
        return path.name if path.exists() else self.spec

    @property
    def evaluation(self) -> str:
        """The command that measures it."""
        other = "robustness" if self.head == "linear" or self.has_text else "knn"
        return "segmentation" if self.head == "upernet" else other

    @property
    def pipeline(self) -> str:
        """The hub's name of what it does best."""
        return PIPELINES[self.head or ("text" if self.has_text else "")]


def facts_of(spec: str) -> Facts:
    """The facts of an artifact directory, whose fields and files are compared with their hashes, or of a checkpoint.

    Raises:
        SpecError, CheckpointError: neither, or damaged.
    """
    if not (Path(spec) / MANIFEST_NAME).is_file():
        return _checkpoint_facts(spec)
    manifest = verify_sealed(Path(spec))
    return Facts(
        spec=spec,
        name=manifest["name"],
        fingerprint=manifest["fingerprint"],
        preprocess=manifest["preprocess"],
        provenance=manifest["source"].get("provenance") or {},
        files={name: entry["bytes"] for name, entry in manifest["files"].items()},
        head=manifest.get("head"),
        labels=manifest.get("labels"),
        has_text=bool(manifest.get("text")),
        source=manifest["source"]["spec"],
        engines=manifest.get("engines") or {},
        manifest=manifest,
    )


def _checkpoint_facts(spec: str) -> Facts:
    path = checkpoint_path(spec)
    checkpoint = read_checkpoint(path)
    config, head = checkpoint.config, checkpoint.config["head"] or {}
    return Facts(
        spec=spec,
        name=model_name(spec),
        fingerprint=checkpoint.fingerprint,
        preprocess=config["preprocess"],
        provenance=checkpoint.provenance,
        files={path.name: path.stat().st_size},
        head=head.get("type") if head.get("type") in ("linear", "upernet") else None,
        labels=config["labels"],
        has_text=bool(config["text"]),
        shape=_shape(config),
    )


def _shape(config: Mapping[str, Any]) -> str:
    encoder = config["encoder"]
    if not {"embed_dim", "depth", "patch_size"} <= set(encoder):
        return ""
    shape = f"ViT of width {encoder['embed_dim']}, {encoder['depth']} blocks, patch {encoder['patch_size']}"
    return f"{shape} at {config['preprocess']['size']} px"


def limits_of(facts: Facts, documents: Sequence[ResultsDocument]) -> list[str]:
    """What the results do not cover and the model cannot do, a sentence each."""
    sets = list(dict.fromkeys(result.dataset for document in documents for result in document.results))
    lines = [
        f"Measured on {', '.join(sets)}; how it fares on other images was not measured here."
        if sets
        else "Nothing of it was measured for this card."
    ]
    if any(document.protocol.get("limit") or document.protocol.get("preview") for document in documents):
        lines.append("Some figures are of a seeded subset of the images.")
    if facts.has_text or facts.head == "linear":
        lines.append("Scores are among the class names given: a wrong but nearest name still gets a high one.")
    if not facts.has_text and facts.head is None:
        lines.append("It has neither a text tower nor a head: alone it does not classify.")
    if facts.engines:
        lines.append("An engine answers as torch float32 within what the table of engines says, not to the bit.")
    return lines


def licence_text(license: str) -> str:
    """What may be said of the weights' licence."""
    if license == UNKNOWN_LICENSE:
        return "Not stated. The training data may carry licences of their own."
    return f"Weights: {license}. The training data may carry licences of their own."
