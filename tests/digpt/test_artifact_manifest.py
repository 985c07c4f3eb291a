"""The manifest of an artifact directory: every file hashed, every way to damage one refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from digpt.artifact import read_manifest, verify_artifact, write_manifest
from digpt.errors import CheckpointError

MANIFEST: dict[str, Any] = {
    "name": "tiny",
    "source": {"spec": "ckpt.pt"},
    "backend": "onnx",
    "precision": "fp32",
    "fingerprint": "sha256:00",
    "dim": 32,
    "preprocess": {"size": 32},
    "golden": {"file": "golden.npz"},
}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    (tmp_path / "image.onnx").write_bytes(b"graph")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "weights.bin").write_bytes(b"12345")
    (tmp_path / ".image.onnx.tmp").write_bytes(b"left by a killed write")
    write_manifest(tmp_path, MANIFEST)
    return tmp_path


def edit(directory: Path, **changes: Any) -> None:
    path = directory / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))


def test_every_file_is_recorded(artifact: Path) -> None:
    manifest = verify_artifact(artifact)
    assert manifest.items() >= MANIFEST.items()
    assert (manifest["format"], manifest["version"]) == ("digpt-artifact", 1)
    assert list(manifest["files"]) == ["image.onnx", "parts/weights.bin"]
    digest = "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"  # sha256sum of 12345
    assert manifest["files"]["parts/weights.bin"] == {"sha256": digest, "bytes": 5}


def test_same_size_change_is_found(artifact: Path) -> None:
    (artifact / "parts" / "weights.bin").write_bytes(b"12346")
    read_manifest(artifact)
    with pytest.raises(CheckpointError, match=r"weights\.bin is not the file that was exported"):
        verify_artifact(artifact)


def test_truncated_and_missing_files(artifact: Path) -> None:
    (artifact / "image.onnx").write_bytes(b"gra")
    with pytest.raises(CheckpointError, match="3 bytes, 5 recorded"):
        verify_artifact(artifact)
    (artifact / "image.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"lacks image\.onnx"):
        verify_artifact(artifact)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "parts/../../outside"])
def test_paths_outside_are_refused(name: str, artifact: Path) -> None:
    edit(artifact, files={name: {"sha256": "0", "bytes": 0}})
    with pytest.raises(CheckpointError, match="outside the artifact"):
        verify_artifact(artifact)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2; this digpt reads up to 1"),
        ({"version": None}, "version None"),
        ({"format": "other"}, "not the manifest of a digpt artifact"),
        ({"golden": None}, "lacks golden"),
        ({"files": None}, "lacks files"),
    ],
)
def test_foreign_manifests(changes: dict[str, Any], message: str, artifact: Path) -> None:
    edit(artifact, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_manifest(artifact)


def test_interrupted_export_and_damaged_manifest(artifact: Path) -> None:
    content = (artifact / "manifest.json").read_text()
    (artifact / "manifest.json").write_text(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        read_manifest(artifact)
    (artifact / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no manifest\.json.*python -m export"):
        read_manifest(artifact)


def test_incomplete_manifest_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lacks backend"):
        write_manifest(tmp_path, {key: value for key, value in MANIFEST.items() if key != "backend"})
    assert not (tmp_path / "manifest.json").exists()
