"""The check of all GPU paths where there is no GPU, and with paths that pass, fail, or end their process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import export.gpu_check
import export.gpu_paths
from digpt.errors import BackendError, MissingDependencyError
from digpt.runtime.torch import TorchRuntime
from digpt.sources import load_model
from export.gpu_check import NO_GPU, apart, check, main
from export.gpu_paths import PATHS, Figures, GpuPath, examine, planned_bytes
from export.job import Job, load_job


def figures(*faults: str) -> Figures:
    rates = {"1": 100.0, "16": 1000.0, "64": 1234.5}
    return Figures(("cuda:0 tensorrt fp16",), "fp16", 0.9999, 0.999, 0.99, rates, 100.0, 120.0, faults)


def found(path: str) -> Figures:
    if path == "absent":
        raise MissingDependencyError("Needs\nthis.")
    if path == "refused":
        raise BackendError("No driver.")
    if path == "broken":
        raise ZeroDivisionError("by zero")
    return figures("cosine_min is 0.1, below 0.9") if path == "wrong" else figures()


def test_without_a_gpu_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(export.gpu_check, "load_model", lambda spec: pytest.fail("nothing is to be loaded"))
    assert main([]) == 0
    assert capsys.readouterr().out.strip() == NO_GPU
    assert NO_GPU == "There is no GPU here; nothing was checked and nothing is claimed."
    assert main(["--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"gpu": None, "paths": []} and err.strip() == NO_GPU


def test_every_path_gets_its_verdict_whatever_became_of_the_others() -> None:
    verdicts = check(("wrong", "broken", "absent", "refused", "right"), found)
    assert [(v.path, v.status, v.reason) for v in verdicts] == [
        ("wrong", "failed", "cosine_min is 0.1, below 0.9"),
        ("broken", "failed", "ZeroDivisionError: by zero"),
        ("absent", "not installed", "Needs this."),
        ("refused", "failed", "No driver."),
        ("right", "passed", ""),
    ]
    assert [verdict.figures is not None for verdict in verdicts] == [True, False, False, False, True]


def test_a_process_that_dies_is_one_failed_path() -> None:
    (verdict,) = check(("killed",), lambda path: apart(os._exit, 3))
    assert (verdict.status, verdict.reason) == ("failed", "BrokenProcessPool: its process ended without an answer")
    assert apart(abs, -2) == 2
    with pytest.raises(ZeroDivisionError):
        apart(divmod, 1, 0)


def run_main(
    monkeypatch: pytest.MonkeyPatch, paths: tuple[str, ...], arguments: list[str], spec: str = "bundled"
) -> tuple[int, list[tuple[Any, ...]]]:
    """``main`` as on a machine with a GPU, the paths being those of ``found``."""
    asked: list[tuple[Any, ...]] = []

    def fake(function: Any, *given: Any) -> Figures:
        asked.append(given)
        return found(given[1])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(export.gpu_check, "PATHS", dict.fromkeys(paths))
    monkeypatch.setattr(export.gpu_check, "apart", fake)
    return main([spec, *arguments]), asked


def test_one_table_and_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], linear_spec: str
) -> None:
    code, asked = run_main(monkeypatch, ("right", "absent"), ["--parity-images", "32"], linear_spec)
    assert code == 0 and asked == [(linear_spec, "right", 32), (linear_spec, "absent", 32)]
    rows = {cells[0]: cells for line in capsys.readouterr().out.splitlines() if len(cells := split(line)) > 5}
    assert rows["right"] == [
        *("right", "cuda:0 tensorrt fp16", "1 - 1.0e-04", "1 - 1.0e-03", "99.00%"),
        *("100.0", "1,000.0", "1,234.5", "100", "120", "passed"),
    ]
    assert rows["absent"][1:] == ["-"] * 9 + ["not installed: Needs this."]
    assert run_main(monkeypatch, ("right", "broken"), [], linear_spec)[0] == 1
    assert run_main(monkeypatch, ("right",), [], "nowhere.pt")[0] == 2


def split(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")]


def test_the_figures_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], linear_spec: str
) -> None:
    assert run_main(monkeypatch, ("wrong", "absent"), ["--json"], linear_spec)[0] == 1
    document = json.loads(capsys.readouterr().out)
    assert document["gpu"] == "NVIDIA H100"
    assert [entry["status"] for entry in document["paths"]] == ["failed", "not installed"]
    assert document["paths"][0]["figures"]["images_per_second"]["64"] == 1234.5
    assert document["paths"][1]["figures"] is None


def test_all_paths_that_the_documents_name() -> None:
    assert {name: path.precision for name, path in PATHS.items()} == {
        "torch": "fp32",
        "torch-bf16": "bf16",
        "torch-compiled-bf16": "bf16",
        "onnx on cuda": "fp32",
        "onnx on tensorrt": "fp32",
        "tensorrt": "fp32",
        "tensorrt-fp16": "fp16",
        "tensorrt-bf16": "bf16",
    }


# ------------------------------------------------------------------------------------------------------------ one path


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([50_000_000, 80_000_000])
    monkeypatch.setattr(export.gpu_paths, "_used_bytes", lambda: next(readings))


def test_a_path_is_compared_timed_and_weighed(memory: None, linear_spec: str, tmp_path: Path) -> None:
    path = GpuPath("fp32", lambda job, directory: TorchRuntime(load_model(job.model.spec)))
    result = examine(linear_spec, path, tmp_path, parity_images=16)
    assert result.faults == () and result.agreement == 1.0 and result.cosine_min == pytest.approx(1)
    assert (result.providers, result.precision, result.peak_mb) == (("cpu",), "fp32", 30.0)
    assert set(result.images_per_second) == {"1", "16", "64"} and min(result.images_per_second.values()) > 1
    assert result.planned_mb > 0


def test_a_path_with_other_answers_fails(memory: None, linear_spec: str, tmp_path: Path) -> None:
    def other(job: Job, directory: Path) -> TorchRuntime:
        model = load_model(job.model.spec)
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.add_(0.02)
        return TorchRuntime(model)

    assert examine(linear_spec, GpuPath("fp32", other), tmp_path, parity_images=16).faults[0].startswith("cosine_med")


def test_planned_memory_is_weights_and_the_largest_layer(linear_spec: str, tmp_path: Path) -> None:
    job = load_job(linear_spec, tmp_path, threads=1, images=None, parity_images=16, text=True, patch_tokens=False)
    module = job.model.module
    weights = sum(parameter.numel() for parameter in module.parameters())
    assert planned_bytes(job, "fp32", 0) == 4 * weights and planned_bytes(job, "fp16", 0) == 2 * weights
    encoder = module.encoder
    tokens = encoder.patch_embed.num_patches + encoder.num_prefix_tokens
    hidden = encoder.blocks[0].mlp.fc1.out_features
    assert planned_bytes(job, "fp32", 3) - 4 * weights == 3 * 4 * tokens * 2 * hidden  # GELU's input and output


def test_paths_of_engines_are_built_and_loaded_on_their_device(linear_spec: str, tmp_path: Path) -> None:
    job = load_job(linear_spec, tmp_path, threads=1, images=None, parity_images=16, text=True, patch_tokens=False)
    live = export.gpu_paths._engine("onnx", "cpu")(job, tmp_path)
    assert live.info.backend == "onnx" and live.info.providers == ("CPUExecutionProvider",)
    assert live.embed(job.crops[:2]).shape == (2, job.model.module.dim)
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="torch sees 0 GPUs"):
            export.gpu_paths._torch("torch")(job, tmp_path)
