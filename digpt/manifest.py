"""The manifest of an exported artifact directory: what it is, and the hash of every file. Imports without torch.

>>> write_manifest("out/onnx", {"name": "emoji-tiny", "backend": "onnx", ...})   # hashes the files that are there
>>> verify_artifact("out/onnx")["fingerprint"]
'sha256:...'
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from digpt.errors import CheckpointError, near_misses
from digpt.files import atomic_json, canonical_json, file_sha256

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "digpt-artifact"
MANIFEST_VERSION = 1
REQUIRED = ("name", "source", "backend", "precision", "fingerprint", "dim", "preprocess", "golden")

Manifest = dict[str, Any]


def write_manifest(directory: str | Path, manifest: Mapping[str, Any]) -> Manifest:
    """Hash every file below ``directory`` and write ``manifest.json`` last; return what was written.

    ``format``, ``version`` and ``files`` are filled in here. An interrupted export therefore has no manifest.

    Raises:
        CheckpointError: a required key is missing.
    """
    directory = Path(directory)
    files = {}
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory).as_posix()
        if path.is_file() and relative != MANIFEST_NAME and not path.name.startswith("."):
            files[relative] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    complete = {**manifest, "format": MANIFEST_FORMAT, "version": MANIFEST_VERSION, "files": files}
    _check_keys(complete, directory)
    atomic_json(directory / MANIFEST_NAME, complete)
    return complete


def read_manifest(directory: str | Path) -> Manifest:
    """Read and check the manifest itself, not the files.

    Raises:
        CheckpointError: missing, damaged, foreign, of a newer version, or lacking a required key.
    """
    path = Path(directory) / MANIFEST_NAME
    if not path.is_file():
        raise CheckpointError(
            f"{directory} has no {MANIFEST_NAME}: it is no exported artifact, or its export was interrupted. "
            "Export it again: python -m export CKPT --to onnx --output DIR"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}). Export it again.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise CheckpointError(f"{path} is not the manifest of a digpt artifact.")
    version = manifest.get("version")
    if not isinstance(version, int) or version > MANIFEST_VERSION:
        raise CheckpointError(
            f"{path} has artifact version {version}; this digpt reads up to {MANIFEST_VERSION}. Upgrade digpt."
        )
    _check_keys(manifest, directory)
    return manifest


def engine_hash(manifest: Mapping[str, Any], backend: str) -> str:
    """``sha256:<64 hex>`` of the files that an engine of a sealed manifest computes with, as it records them.

    Two exports of the same weights may differ in it: another version built another file.
    """
    engine = manifest["engines"][backend]
    names = [engine[role] for role in ("image", "text", "segment") if engine.get(role) in manifest["files"]]
    content = canonical_json([manifest["files"][name]["sha256"] for name in names])
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _check_keys(manifest: Mapping[str, Any], directory: str | Path) -> None:
    missing = [key for key in (*REQUIRED, "files") if key not in manifest]
    if missing:
        close = near_misses(missing[0], manifest)
        raise CheckpointError(f"The manifest of {directory} lacks {', '.join(missing)}.{close} Export it again.")


def verify_artifact(directory: str | Path) -> Manifest:
    """Read the manifest and compare every file with its recorded size and sha256.

    Raises:
        CheckpointError: as ``read_manifest``; or a file is missing, outside the directory, or not what was exported.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    for name, expected in manifest["files"].items():
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise CheckpointError(f"The manifest of {directory} names {name!r}, outside the artifact. Do not use it.")
        path = directory / relative
        if not path.is_file():
            raise CheckpointError(f"{directory} lacks {name}, which its manifest names. Copy or export it again.")
        size = path.stat().st_size
        if size != expected["bytes"] or file_sha256(path) != expected["sha256"]:
            raise CheckpointError(
                f"{path} is not the file that was exported ({size:,} bytes, {expected['bytes']:,} recorded, or its "
                "sha256 differs). Copy or export it again."
            )
    return manifest
