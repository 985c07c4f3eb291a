"""AOTInductor packages: torch's numbers from compiled code, and code for another CPU refused before it runs."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import digpt.runtime.aoti
from digpt.engine import Engine
from digpt.errors import BackendError, CheckpointError
from digpt.runtime import load_runtime
from digpt.runtime.artifact import SEAL, seal_manifest
from digpt.runtime.torch import TorchRuntime
from digpt.sources import load_model
from export import build_aoti
from export.__main__ import main
from export.pipeline import check_targets

pytestmark = [  # native code is compiled: `make test-all`; the warnings are torch's own
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def crops(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def as_aoti(text_artifact: Path, directory: Path, cpu: list[str]) -> Path:
    """An artifact whose aoti engine was compiled for ``cpu``, its files being no packages."""
    shutil.copytree(text_artifact, directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest[SEAL]
    engine = {**manifest["engines"]["onnx"], "cpu": cpu}
    seal_manifest(directory, {**manifest, "engines": {"aoti": engine}, "backend": "aoti"})
    return directory


def test_code_for_another_cpu_is_refused_by_what_is_missing(
    text_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digpt.runtime.aoti, "cpu_instructions", lambda: ("avx2", "fma"))
    directory = as_aoti(text_artifact, tmp_path / "aoti", ["avx2", "avx512f"])
    with pytest.raises(BackendError, match="compiled for a CPU with avx512f, which this one lacks"):
        load_runtime(str(directory))


def test_a_file_that_is_no_package_is_one_sentence(text_artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"AOTInductor of torch .* cannot load .*image\.onnx"):
        load_runtime(str(as_aoti(text_artifact, tmp_path / "aoti", [])))


def test_without_a_compiler_it_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BackendError, match=r"--to aoti compiles C\+\+ and found no .*: install g\+\+"):
        check_targets(["aoti"])


@pytest.mark.slow
def test_every_batch_size_gives_torchs_numbers(linear_spec: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert main([linear_spec, "--to", "aoti", "--output", str(output), "--parity-images", "16", "--threads", "1"]) == 0
    live, reference = load_runtime(str(output), threads=1), TorchRuntime(load_model(linear_spec))
    for count in (1, 2, 3, 7, 64):
        np.testing.assert_allclose(live.embed(crops(count)), reference.embed(crops(count)), atol=2e-5)
        np.testing.assert_allclose(live.logits(crops(count)), reference.logits(crops(count)), atol=2e-5)
    assert live.info.providers == ("cpu aoti f32",) and Engine(live).verify_golden().passed
    manifest = json.loads((output / "manifest.json").read_text())
    del manifest[SEAL]
    seal_manifest(output, {**manifest, "fingerprint": "sha256:" + "0" * 64})
    with pytest.raises(CheckpointError, match=r"fingerprint in the manifest is not what image\.pt2 was exported with"):
        load_runtime(str(output))


@pytest.mark.slow
def test_a_wrong_package_is_not_written(
    linear_spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = build_aoti._package

    def wrong(module: Any, *rest: Any) -> None:
        module = copy.deepcopy(module)
        for parameter in module.parameters():
            parameter.data.add_(torch.full_like(parameter, 0.02))
        right(module, *rest)

    monkeypatch.setattr(build_aoti, "_package", wrong)
    command = [linear_spec, "--to", "aoti", "--output", str(tmp_path / "out"), "--parity-images", "16"]
    assert main([*command, "--json", "--threads", "1"]) == 1
    assert json.loads(capsys.readouterr().out)["engines"]["aoti"]["parity"]["cosine_min"] < 0.99999
    assert list(tmp_path.iterdir()) == []
