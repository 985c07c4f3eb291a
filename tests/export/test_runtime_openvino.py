"""The OpenVINO runtime: torch's numbers in the precision that it really computes in, and wrong files noticed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import digpt.runtime.openvino
from digpt.engine import Engine
from digpt.errors import BackendError, CheckpointError
from digpt.runtime import load_runtime
from digpt.runtime.artifact import SEAL, seal_manifest
from digpt.runtime.base import Runtime
from digpt.runtime.golden import row_cosine
from digpt.runtime.openvino import check_precision, executed_precisions, supports_bf16
from digpt.runtime.torch import TorchRuntime
from digpt.sources import load_model
from export.__main__ import main
from export.builders import check_machine, default_targets

ROOT = Path(__file__).resolve().parents[2]
TARGETS = [
    target for target in default_targets() if target not in ("onnx", "openvino-int8")
]  # with bf16 where the CPU has it


@pytest.fixture(scope="module")
def artifact(text_spec: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("openvino") / "text"
    command = [text_spec, "--to", *TARGETS, "--output", str(output), "--parity-images", "40", "--threads", "1"]
    assert main(command) == 0
    return output


@pytest.fixture(scope="module")
def runtime(artifact: Path) -> Runtime:
    return load_runtime(str(artifact), "openvino", threads=1)


def crops(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def reseal(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest[SEAL]
    seal_manifest(directory, manifest)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_every_batch_size_gives_torchs_numbers(runtime: Runtime, text_spec: str, count: int) -> None:
    expected = TorchRuntime(load_model(text_spec)).embed(crops(count))
    live = runtime.embed(crops(count))
    assert live.dtype == np.float32
    np.testing.assert_allclose(live, expected, atol=2e-5)
    runtime.embed(crops(count)[::-1])
    np.testing.assert_allclose(live, expected, atol=2e-5)  # not a view of what the next call overwrites


def test_texts_are_embedded_as_by_torch(runtime: Runtime, text_spec: str) -> None:
    texts = ["red apple", "Gr\u00fcner  APFEL", "", "a" * 200]
    expected = TorchRuntime(load_model(text_spec)).embed_texts(texts)
    np.testing.assert_allclose(runtime.embed_texts(texts), expected, atol=2e-5)


def test_it_says_what_it_executes(runtime: Runtime) -> None:
    info = runtime.info
    assert (info.backend, info.precision, info.providers, info.threads) == ("openvino", "fp32", ("CPU f32",), 1)
    assert info.versions["openvino"].startswith("20")


def test_bf16_is_executed_as_such_or_refused(artifact: Path, text_spec: str) -> None:
    if not supports_bf16():
        with pytest.raises(BackendError, match="needs a CPU with bfloat16"):
            check_machine("openvino-bf16")
        return
    live = load_runtime(str(artifact), "openvino-bf16", threads=1)
    assert live.info.precision == "bf16" and "bf16" in live.info.providers[0]
    found, expected = live.embed(crops(16)), TorchRuntime(load_model(text_spec)).embed(crops(16))
    error = np.abs(found - expected).max()
    assert error > 1e-4, "these are float32's numbers"
    assert row_cosine(found, expected).min() > 0.999
    assert Engine(live).verify_golden().passed


def test_without_bf16_instructions_it_is_refused_in_one_sentence(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digpt.runtime.openvino, "supports_bf16", lambda: False)
    manifest = json.loads((artifact / "manifest.json").read_text())
    engine = {**manifest["engines"]["openvino"], "precision": "bf16"}
    copied = artifact.parent / "bf16"
    shutil.copytree(artifact, copied)
    del manifest[SEAL]
    seal_manifest(copied, {**manifest, "engines": {"openvino-bf16": engine}})
    with pytest.raises(BackendError, match="openvino-bf16 needs a CPU with bfloat16 instructions; use"):
        load_runtime(str(copied), "openvino-bf16")


def test_a_precision_that_is_not_executed_is_refused(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digpt.runtime.openvino, "executed_precisions", lambda compiled: {"bf16": 1, "f32": 12})
    counts = r"12 of the 13 matrix products of .*image\.onnx \(openvino\) in fp32 \(1 in bf16 and 12 in f32\)"
    with pytest.raises(BackendError, match=f"{counts}, of which 100% are asked for: use another engine"):
        load_runtime(str(artifact), "openvino")


def test_every_matrix_product_is_counted(artifact: Path) -> None:
    core = digpt.runtime.openvino._core()
    compiled = core.compile_model(
        core.read_model(str(artifact / "image.onnx")), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    graph = onnx.load(artifact / "image.onnx").graph
    weights = {one.name for one in graph.initializer}
    own = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv") and weights & set(node.input)]
    (name,), (count,) = zip(*executed_precisions(compiled).items(), strict=True)
    assert name == "f32" and count >= len(own) > 4  # those of attention may be fused


@pytest.mark.parametrize(
    ("executed", "precision", "passes"),
    [
        ({"f32": 26}, "fp32", True),
        ({"bf16": 26}, "bf16", True),
        ({"bf16": 21, "f32": 5}, "bf16", True),
        ({"bf16": 20, "f32": 6}, "bf16", False),
        ({"bf16": 1, "f32": 25}, "bf16", False),
        ({"f32": 2, "u8": 24}, "int8", True),
        ({"f32": 14, "i8": 12, "u8": 12}, "int8", True),
        ({"f32": 25, "u8": 1}, "int8", False),
        ({}, "fp32", False),
    ],
)
def test_one_layer_of_the_precision_does_not_make_an_engine(
    executed: dict[str, int], precision: str, passes: bool
) -> None:
    if passes:
        check_precision(executed, precision, "image.onnx")
        return
    with pytest.raises(BackendError, match=rf" of the {sum(executed.values())} matrix products of image\.onnx in"):
        check_precision(executed, precision, "image.onnx")


def test_it_runs_in_a_process_that_has_no_torch(artifact: Path) -> None:
    script = f"""
import sys
for name in ("torch", "torchvision", "timm", "open_clip", "transformers", "onnxruntime"):
    sys.modules[name] = None  # importing it raises ImportError
from digpt.engine import Engine

engine = Engine.load({str(artifact)!r}, "openvino", threads=1)
report = engine.verify_golden()
print(report.checked, report.passed)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["20", "True"], "")


def test_a_signal_after_engines_were_released_ends_nobody(artifact: Path) -> None:
    """Each core of its own would leave the thread a stack for signals that was freed."""
    script = f"""
import gc, os, signal
from digpt.runtime import load_runtime

signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
first = load_runtime({str(artifact)!r}, "openvino", threads=1)
second = load_runtime({str(artifact)!r}, "openvino", threads=1)
for name in ("first", "second"):
    globals().pop(name).close()
    gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "handled\n", "")


@pytest.mark.parametrize("backend", TARGETS)
@pytest.mark.parametrize("name", ["image.onnx", "text.onnx"])
def test_a_silently_wrong_engine_is_caught_by_the_golden_images(
    artifact: Path, tmp_path: Path, perturb: Callable[[Path, float], None], name: str, backend: str
) -> None:
    copied = Path(shutil.copytree(artifact, tmp_path / "copied"))
    perturb(copied / name, 0.3)
    reseal(copied)
    report = Engine.load(str(copied), backend, threads=1).verify_golden()  # every hash is right
    assert not report.passed and f"on {backend} (CPU" in report.message


def test_a_foreign_file_and_no_model_are_one_sentence(artifact: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(artifact, tmp_path / "copied"))
    model = onnx.load(copied / "text.onnx")
    del model.metadata_props[:]
    onnx.save(model, copied / "text.onnx")
    reseal(copied)
    with pytest.raises(CheckpointError, match=r"fingerprint in the manifest is not what text\.onnx was exported with"):
        load_runtime(str(copied), "openvino")
    (copied / "image.onnx").write_bytes(b"no model")
    reseal(copied)
    with pytest.raises(BackendError, match=r"OpenVINO cannot load .*image\.onnx: Unable to read"):
        load_runtime(str(copied), "openvino")


def test_a_segmenter_gives_torchs_pixels(segment_artifact: Path, segment_spec: str, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(segment_artifact, tmp_path / "copied"))
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest[SEAL]
    seal_manifest(copied, {**manifest, "engines": {"openvino": manifest["engines"]["onnx"]}, "backend": "openvino"})
    live = load_runtime(str(copied), threads=1)
    assert Engine(live).verify_golden().passed
    expected = TorchRuntime(load_model(segment_spec)).pixel_logits(crops(3))
    np.testing.assert_allclose(live.pixel_logits(crops(3)), expected, atol=1e-3)
    assert live.pixel_logits(crops(2)[:, :20, :13]).shape == (2, 5, 20, 13)
