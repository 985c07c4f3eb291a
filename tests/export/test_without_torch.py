"""An exported encoder runs in a process without torch: where importing it fails, and where it is not installed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digpt.engine import Engine
from digpt.testing import sample_images

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["red apple", "grinning face"]
# onnxruntime has one package (docs/decisions/onnxruntime-gpu-only.md): the one that pyproject.toml names for here.
LINUX = sys.platform == "linux" and platform.machine() == "x86_64"
PACKAGES = ["numpy", "pillow", "tokenizers", "onnxruntime-gpu" if LINUX else "onnxruntime"]
ASK = f"""
import json, pathlib, sys
from digpt.engine import Engine
engine = Engine.load(sys.argv[1], threads=1)
crop = engine.decode(pathlib.Path(sys.argv[2]).read_bytes())
print(json.dumps({{
    "image": engine.embed_images([crop])[0].tolist(),
    "texts": engine.embed_texts({TEXTS}).tolist(),
    "classes": [[best.label, best.score] for best in engine.classify([crop])[0]],
    "golden": engine.verify_golden().passed,
    "loaded": sorted(set(sys.modules) & {{"torch", "timm", "open_clip", "torchvision"}}),
}}))
"""
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "open_clip", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)
sys.meta_path.insert(0, Blocked())
"""


def ask(python: str, code: str, artifact: Path, picture: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONNOUSERSITE": "1"}
    command = [python, "-c", code, str(artifact), str(picture)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


def check(result: subprocess.CompletedProcess[str], spec: str, picture: Path) -> None:
    """The answer of the other process is torch's, computed here."""
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    assert answer["loaded"] == [] and answer["golden"]
    torch = Engine.load(spec, threads=1)
    crop = torch.decode(picture.read_bytes())
    np.testing.assert_allclose(answer["image"], torch.embed_images([crop])[0], atol=1e-5)
    np.testing.assert_allclose(answer["texts"], torch.embed_texts(TEXTS), atol=1e-5)
    expected = torch.classify([crop])[0]
    assert [label for label, _ in answer["classes"]] == [best.label for best in expected]
    np.testing.assert_allclose([score for _, score in answer["classes"]], [best.score for best in expected], atol=1e-4)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.jpg"
    path.write_bytes(sample_images()["jpeg"])
    return path


def test_where_importing_torch_fails(text_spec: str, text_artifact: Path, picture: Path, tmp_path: Path) -> None:
    check(ask(sys.executable, BLOCK + ASK, text_artifact, picture, tmp_path), text_spec, picture)
    refused = ask(sys.executable, BLOCK + ASK, Path(text_spec), picture, tmp_path)
    assert refused.returncode == 1 and "blocked by the test" in refused.stderr  # a checkpoint does need torch


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_where_torch_is_not_installed(text_spec: str, text_artifact: Path, picture: Path, tmp_path: Path) -> None:
    """A new environment with four packages; it needs pip's index, and fails without."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    install = [python, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), *PACKAGES]
    pip = subprocess.run(install, capture_output=True, text=True, timeout=900)
    assert pip.returncode == 0, pip.stderr
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, timeout=60)
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert {"numpy", "tokenizers"} <= names and not names & {"torch", "torchvision", "timm", "open-clip-torch"}
    check(ask(python, ASK, text_artifact, picture, tmp_path), text_spec, picture)
    refused = ask(python, ASK, Path(text_spec), picture, tmp_path)
    assert refused.returncode == 1 and "No module named 'torch'" in refused.stderr
