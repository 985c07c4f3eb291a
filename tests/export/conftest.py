"""Two small exports, made once: building an ONNX file takes seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from digpt.artifact import write_checkpoint
from digpt.testing import tiny_checkpoint, tiny_segmenter_checkpoint
from export.__main__ import main

SHALLOW = {"depth": 1}
ONNX = ("--to", "onnx")


def write_tiny(path: Path, **options: object) -> str:
    write_checkpoint(path, tiny_checkpoint(encoder=SHALLOW, **options))  # type: ignore[arg-type]
    return str(path)


@pytest.fixture(scope="session")
def text_spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("text") / "tiny.pt")


@pytest.fixture(scope="session")
def linear_spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("linear") / "tiny.pt", text=False, head="linear")


@pytest.fixture(scope="session")
def text_artifact(text_spec: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("artifact") / "text"
    assert main([text_spec, "--to", "onnx", "--output", str(output), "--parity-images", "40", "--threads", "1"]) == 0
    return output


@pytest.fixture(scope="session")
def linear_artifact(linear_spec: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("artifact") / "linear"
    assert main([linear_spec, *ONNX, "--output", str(output), "--parity-images", "40", "--patch-tokens"]) == 0
    return output


@pytest.fixture(scope="session")
def segment_spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("segment") / "tiny.pt"
    write_checkpoint(path, tiny_segmenter_checkpoint())
    return str(path)


@pytest.fixture(scope="session")
def segment_artifact(segment_spec: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("artifact") / "segment"
    assert main([segment_spec, *ONNX, "--output", str(output), "--parity-images", "40", "--threads", "1"]) == 0
    return output


@pytest.fixture
def copied(text_artifact: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(text_artifact, tmp_path / "copied"))


@pytest.fixture
def perturb() -> Callable[[Path, float], None]:
    """Add noise, relative to its spread, to the largest weight of an ONNX file."""

    def apply(path: Path, strength: float) -> None:
        model = onnx.load(path)
        weight = max(model.graph.initializer, key=lambda tensor: numpy_helper.to_array(tensor).size)
        values = numpy_helper.to_array(weight)
        noise = np.random.default_rng(0).standard_normal(values.shape) * strength * values.std()
        weight.CopyFrom(numpy_helper.from_array((values + noise).astype(values.dtype), weight.name))
        onnx.save(model, path)

    return apply
