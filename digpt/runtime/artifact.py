"""What every runtime of an exported artifact shares: verified files, the manifest as RuntimeInfo, golden embeddings.

An artifact directory holds one or more engines (``manifest["engines"]``, by backend) of one model, beside the golden
images and the tokenizer they share. ``manifest["backend"]`` names the engine that runs when none is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digpt.abstain import AbstainRule
from digpt.errors import BackendError, CheckpointError
from digpt.files import atomic_json, canonical_json
from digpt.manifest import (
    MANIFEST_NAME,
    MANIFEST_VERSION,
    Manifest,
    engine_hash,
    read_manifest,
    verify_artifact,
    write_manifest,
)
from digpt.preprocess import Preprocess
from digpt.runtime.base import Golden, RuntimeInfo
from digpt.runtime.clip_tokenizer import ClipTokenizer
from digpt.runtime.golden import read_golden
from digpt.text import CompactTokenizer, Tokenizer

SEAL = "sha256"  # the manifest's field that holds the hashes of all others
# What decides an answer. Each engine carries these values within itself: a manifest of another export is noticed.
IDENTITY = ("fingerprint", "dim", "preprocess", "pooling", "labels", "head", "text")


@dataclass(frozen=True)
class Artifact:
    """One engine of an artifact directory whose files are what was exported. ``engine`` is its manifest entry."""

    directory: Path
    manifest: Manifest
    backend: str
    engine: dict[str, Any]
    golden: Golden

    @property
    def image(self) -> Path:
        """The file of the image tower."""
        return self.directory / self.engine["image"]

    @property
    def text(self) -> Path | None:
        """The file of the text tower, None where there is none."""
        return self.directory / self.engine["text"] if self.engine["text"] else None

    @property
    def segment(self) -> Path | None:
        """The file of the segmenter, None where there is none (or the artifact is older than segmenters)."""
        return self.directory / self.engine["segment"] if self.engine.get("segment") else None

    def info(self, *, providers: Sequence[str], threads: int | None, versions: dict[str, str]) -> RuntimeInfo:
        """The manifest as RuntimeInfo, with what only the live backend knows."""
        manifest, text = self.manifest, self.manifest.get("text") or {}
        labels = manifest.get("labels")
        return RuntimeInfo(
            name=manifest["name"],
            spec=str(self.directory),
            backend=self.backend,
            precision=self.engine["precision"],
            fingerprint=manifest["fingerprint"],
            engine=engine_hash(manifest, self.backend),
            dim=manifest["dim"],
            preprocess=Preprocess.from_dict(manifest["preprocess"]),
            has_text=bool(text),
            labels=tuple(labels) if labels else None,
            logit_scale=text.get("logit_scale"),
            logit_bias=text.get("logit_bias"),
            templates=tuple(text.get("templates") or ("{}",)),
            head=manifest.get("head"),
            segment_crop=manifest.get("segment_crop"),
            segment_reduce_zero=bool(manifest.get("segment_reduce_zero")),
            patch_tokens="patch_tokens" in self.engine["outputs"],
            abstain=AbstainRule.from_dict(abstain) if (abstain := manifest.get("abstain")) else None,
            threads=threads,
            providers=tuple(providers),
            versions=versions,
        )

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text tower; it needs no torch.

        Raises:
            CheckpointError: a kind of tokenizer that this version does not know.
        """
        entry = self.manifest["text"]["tokenizer"]
        if entry["kind"] not in TOKENIZERS:
            raise CheckpointError(
                f"{self.directory} has a tokenizer of kind {entry['kind']!r}; valid: {', '.join(TOKENIZERS)}. "
                "It was exported by a newer digpt; upgrade."
            )
        json_str = (self.directory / entry["file"]).read_text(encoding="utf-8")
        return TOKENIZERS[entry["kind"]](json_str, entry["context_length"])


TOKENIZERS: dict[str, Callable[[str, int], Tokenizer]] = {"compact": CompactTokenizer, "clip": ClipTokenizer}


def identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest that decides answers, as JSON values."""
    return {key: manifest.get(key) for key in IDENTITY}


def seal_manifest(directory: Path, manifest: Mapping[str, Any]) -> Manifest:
    """Write ``manifest`` with the hash of every file and of each of its own fields; return what was written."""
    complete = write_manifest(directory, manifest)
    sealed = {**complete, SEAL: _field_hashes(complete)}
    atomic_json(directory / MANIFEST_NAME, sealed)
    return sealed


def open_artifact(directory: Path, backend: str) -> Artifact:
    """Verify the manifest and every file of ``directory``, and return its ``backend`` engine.

    Raises:
        CheckpointError: a field or file is missing or changed (named), or the format is older or newer than ours.
        BackendError: the artifact has no engine for this backend.
    """
    manifest = verify_sealed(directory)
    engine = manifest["engines"].get(backend)
    if engine is None:
        raise BackendError(f"{directory} holds no {backend} engine; it holds: {', '.join(manifest['engines'])}.")
    _check_named_files(manifest, engine, directory)
    golden, tolerance = directory / manifest["golden"]["file"], engine["tolerance"]
    return Artifact(
        directory, manifest, backend, engine, read_golden(golden, tolerance["cosine"], tolerance["relative_error"])
    )


def verify_sealed(directory: Path) -> Manifest:
    """Verify every field of the manifest and every file of ``directory``.

    Raises:
        CheckpointError: a field or file is missing or changed (named), or the format is older or newer than ours.
    """
    manifest = read_manifest(directory)
    if manifest["version"] < MANIFEST_VERSION:
        raise CheckpointError(
            f"{directory} has the older artifact format {manifest['version']}; this digpt reads {MANIFEST_VERSION}. "
            "Export the checkpoint again: python -m export CKPT --to onnx --output DIR"
        )
    _check_seal(manifest, directory)
    verify_artifact(directory)
    return manifest


def _check_named_files(manifest: Manifest, engine: Mapping[str, Any], directory: Path) -> None:
    """Raise CheckpointError, naming the file, if one that will be opened is not among those that were verified."""
    named = {"image engine": engine.get("image"), "golden file": manifest["golden"].get("file")}
    if engine.get("text") is not None:
        named["text engine"] = engine["text"]
    if manifest.get("head") == "upernet":
        named["segmentation engine"] = engine.get("segment")
    if manifest.get("text"):
        named["tokenizer"] = manifest["text"]["tokenizer"].get("file")
    for role, name in named.items():
        if not isinstance(name, str) or name not in manifest["files"]:
            raise CheckpointError(
                f"{directory}: the manifest names {name!r} as its {role}, which is not among the files whose hashes it "
                "records. Do not use it; export it again."
            )


def _field_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    return {key: hashlib.sha256(canonical_json(value)).hexdigest() for key, value in manifest.items() if key != SEAL}


def _check_seal(manifest: Manifest, directory: Path) -> None:
    """Raise CheckpointError, naming the first field of the manifest that is not as it was written."""
    stated, found = manifest.get(SEAL), _field_hashes(manifest)
    if not isinstance(stated, dict):
        raise CheckpointError(f"The manifest of {directory} records no hashes of its own fields. Export it again.")
    for key in (*stated, *found):
        if stated.get(key) != found.get(key):
            raise CheckpointError(
                f"The manifest of {directory} was edited or damaged: {key!r} is not what was exported. Export it again."
            )


def check_identity(artifact: Artifact, file: Path, embedded: str | None) -> None:
    """Compare the identity that an engine's ``file`` carries (JSON) with the manifest's.

    Raises:
        CheckpointError: they differ; the message names the first field, for the preprocessing its first key.
    """
    inside = json.loads(embedded) if embedded else {}
    stated = identity(artifact.manifest)
    for key in IDENTITY:
        if key in inside and inside[key] == stated[key]:
            continue
        name = key
        if isinstance(stated[key], dict) and isinstance(inside.get(key), dict):
            changed = [k for k in {**stated[key], **inside[key]} if stated[key].get(k) != inside[key].get(k)]
            name = f"{key}.{changed[0]}"
        raise CheckpointError(
            f"{artifact.directory}: {name} in the manifest is not what {file.name} was exported with. "
            "The manifest belongs to another export; export it again."
        )
