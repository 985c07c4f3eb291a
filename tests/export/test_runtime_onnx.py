"""The onnx runtime: torch's numbers without torch, and every kind of tampering refused by name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from digpt.abstain import AbstainRule
from digpt.engine import Engine
from digpt.errors import BackendError, CapabilityError, CheckpointError, DigptError
from digpt.runtime import load_runtime
from digpt.runtime.artifact import SEAL, seal_manifest
from digpt.runtime.base import Runtime
from digpt.runtime.torch import TorchRuntime
from digpt.sources import load_model
from digpt.testing import TINY_LABELS

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["red apple", "Gr\u00fcner  APFEL", "", "a" * 200]


@pytest.fixture(scope="module")
def runtime(text_artifact: Path) -> Runtime:
    return load_runtime(str(text_artifact), threads=1)


def crops(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_every_batch_size_gives_torchs_numbers(runtime: Runtime, text_spec: str, count: int) -> None:
    expected = TorchRuntime(load_model(text_spec)).embed(crops(count))
    live = runtime.embed(crops(count))
    assert live.dtype == np.float32
    np.testing.assert_allclose(live, expected, atol=2e-5)


def test_texts_are_tokenized_and_embedded_as_by_torch(runtime: Runtime, text_spec: str) -> None:
    np.testing.assert_allclose(
        runtime.embed_texts(TEXTS), TorchRuntime(load_model(text_spec)).embed_texts(TEXTS), atol=2e-5
    )


def test_evaluate_and_serve_take_either(text_artifact: Path, text_spec: str) -> None:
    torch_engine, onnx_engine = Engine.load(text_spec), Engine.load(str(text_artifact))
    assert (torch_engine.info.backend, onnx_engine.info.backend) == ("torch", "onnx")
    for field in (
        "fingerprint",
        "dim",
        "preprocess",
        "has_text",
        "labels",
        "logit_scale",
        "logit_bias",
        "templates",
        "head",
    ):
        assert getattr(torch_engine.info, field) == getattr(onnx_engine.info, field), field
    for left, right in zip(torch_engine.classify(crops(5)), onnx_engine.classify(crops(5)), strict=True):
        assert [p.label for p in left] == [p.label for p in right]
        assert [p.score for p in left] == pytest.approx([p.score for p in right], abs=1e-5)


def test_linear_head_and_patch_tokens(linear_artifact: Path, linear_spec: str) -> None:
    live, reference = load_runtime(str(linear_artifact)), TorchRuntime(load_model(linear_spec))
    np.testing.assert_allclose(live.logits(crops(3)), reference.logits(crops(3)), atol=2e-5)
    np.testing.assert_allclose(live.patch_tokens(crops(3)), reference.patch_tokens(crops(3)), atol=2e-5)
    np.testing.assert_allclose(live.embed(crops(3)), reference.embed(crops(3)), atol=2e-5)
    assert live.info.head == "linear" and live.info.labels == TINY_LABELS and live.info.patch_tokens
    with pytest.raises(CapabilityError, match="no text tower"):
        live.embed_texts(["cat"])


def test_what_was_not_exported_is_refused(runtime: Runtime) -> None:
    with pytest.raises(CapabilityError, match="no linear head"):
        runtime.logits(crops(1))
    with pytest.raises(CapabilityError, match="--patch-tokens"):
        runtime.patch_tokens(crops(1))


def test_threads_and_the_provider_in_use_are_on_record(text_artifact: Path) -> None:
    info = load_runtime(str(text_artifact), threads=2).info
    assert info.threads == 2 and info.providers[-1] == "CPUExecutionProvider"
    assert "onnxruntime" in info.versions
    with pytest.raises(BackendError, match="threads=0"):
        load_runtime(str(text_artifact), threads=0)


def test_an_artifact_runs_only_on_the_engines_it_holds(text_artifact: Path) -> None:
    with pytest.raises(BackendError, match="holds no torch engine; it holds: onnx"):
        load_runtime(str(text_artifact), "torch")
    with pytest.raises(BackendError, match="give the checkpoint that it was exported from"):
        load_runtime(str(text_artifact), "torch-bf16")
    with pytest.raises(BackendError, match="Export one: python -m export CKPT --to openvino --output DIR"):
        load_runtime(str(text_artifact), "openvino")
    with pytest.raises(BackendError, match="holds no tensorrt engine; it holds: onnx"):
        load_runtime(str(text_artifact), "tensorrt")


def test_a_closed_runtime_says_so(text_artifact: Path) -> None:
    runtime = load_runtime(str(text_artifact))
    runtime.close()
    runtime.close()
    with pytest.raises(BackendError, match="closed"):
        runtime.embed(crops(1))


def test_the_golden_embeddings_are_reproduced(text_artifact: Path) -> None:
    report = Engine.load(str(text_artifact)).verify_golden()
    assert report.passed and report.checked == 16 + 4 and report.pixel_error == 0
    assert report.relative_error is not None and report.relative_error < 1e-4


def test_it_runs_in_a_process_that_has_no_torch(text_artifact: Path) -> None:
    script = f"""
import sys
for name in ("torch", "torchvision", "timm", "open_clip", "transformers"):
    sys.modules[name] = None  # importing it raises ImportError
from digpt.engine import Engine
engine = Engine.load({str(text_artifact)!r}, threads=1)
report = engine.verify_golden()
engine.classify(engine.runtime.golden.images[:2], ["red apple", "house"])
print(report.checked, report.passed, sys.modules["torch"] is None)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["20", "True", "True"], "")


@pytest.mark.parametrize("name", ["image.onnx", "text.onnx", "tokenizer.json", "golden.npz"])
def test_a_flipped_byte_in_any_file_is_refused_by_name(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=name):
        load_runtime(str(copied))
    (copied / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_runtime(str(copied))


def test_a_flipped_byte_anywhere_in_the_manifest_is_refused(copied: Path) -> None:
    path = copied / "manifest.json"
    original = path.read_bytes()
    for position in range(0, len(original), max(1, len(original) // 97)):
        path.write_bytes(original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :])
        with pytest.raises(DigptError, match=r"copied"):  # the artifact is named in every refusal
            load_runtime(str(copied))


def edit(directory: Path, change: Callable[[dict[str, Any]], None], *, reseal: bool) -> None:
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    if reseal:
        del manifest[SEAL]
        seal_manifest(directory, manifest)
    else:
        path.write_text(json.dumps(manifest))


def test_swapped_preprocessing_is_refused_by_name(copied: Path) -> None:
    edit(copied, lambda manifest: manifest["preprocess"].update(alpha="drop"), reseal=False)
    with pytest.raises(CheckpointError, match="'preprocess' is not what was exported"):
        load_runtime(str(copied))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m["preprocess"].update(alpha="drop"), "preprocess.alpha"),
        (lambda m: m["preprocess"].update(mean=[0.4, 0.4, 0.4]), "preprocess.mean"),
        (lambda m: m.update(fingerprint="sha256:" + "0" * 64), "fingerprint"),
        (lambda m: m["labels"].reverse(), "labels"),
        (lambda m: m["text"].update(logit_scale=1.0), "text.logit_scale"),
        (lambda m: m.update(text=None), "text"),
    ],
)
def test_a_manifest_of_another_export_is_refused_even_with_right_hashes(
    copied: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    edit(copied, change, reseal=True)
    with pytest.raises(CheckpointError, match=f": {named} in the manifest is not what image.onnx was exported with"):
        load_runtime(str(copied))


@pytest.mark.parametrize(
    ("change", "role"),
    [
        (lambda m, name: m["engines"]["onnx"].update(image=name), "image engine"),
        (lambda m, name: m["engines"]["onnx"].update(text=name), "text engine"),
        (lambda m, name: m["text"]["tokenizer"].update(file=name), "tokenizer"),
        (lambda m, name: m["golden"].update(file=name), "golden file"),
    ],
)
@pytest.mark.parametrize("kind", ["absolute", "above", "hidden"])
def test_a_file_without_a_recorded_hash_is_refused_even_with_right_hashes(
    copied: Path, change: Callable[[dict[str, Any], str], None], role: str, kind: str
) -> None:
    """The files are there and would work; the manifest does not vouch for them."""
    files = {"image engine": "image.onnx", "text engine": "text.onnx", "tokenizer": "tokenizer.json"}
    source = copied / files.get(role, "golden.npz")
    other = copied / f".{source.name}" if kind == "hidden" else copied.parent / source.name
    shutil.copy(source, other)
    name = {"absolute": str(other), "above": f"../{other.name}", "hidden": other.name}[kind]
    edit(copied, lambda manifest: change(manifest, name), reseal=True)
    with pytest.raises(CheckpointError, match=f"names '{re.escape(name)}' as its {role}, which is not among the files"):
        load_runtime(str(copied))


def test_no_file_of_an_artifact_is_left_out_above(text_artifact: Path) -> None:
    files = {path.name for path in text_artifact.rglob("*") if path.is_file()}
    assert files == {"image.onnx", "text.onnx", "tokenizer.json", "golden.npz", "manifest.json"}


def test_thresholds_of_none_of_these_are_the_manifests(copied: Path) -> None:
    recorded = {"labels": [1, 10], "cosine": [0.1, 0.2], "images": 100}
    edit(copied, lambda manifest: manifest.update(abstain=recorded), reseal=True)
    assert load_runtime(str(copied)).info.abstain == AbstainRule((1, 10), (0.1, 0.2))
    edit(copied, lambda manifest: manifest["abstain"].update(cosine=[0.1, 0.3]), reseal=False)
    with pytest.raises(CheckpointError, match="'abstain' is not what was exported"):
        load_runtime(str(copied))
    edit(copied, lambda manifest: manifest.pop("abstain") and None, reseal=True)  # as artifacts once were
    assert load_runtime(str(copied)).info.abstain is None


def test_older_and_newer_formats_are_refused_with_what_to_do(copied: Path) -> None:
    edit(copied, lambda manifest: manifest.update(version=0), reseal=False)
    with pytest.raises(CheckpointError, match=r"older artifact format 0.*Export the checkpoint again"):
        load_runtime(str(copied))
    edit(copied, lambda manifest: manifest.update(version=2), reseal=False)
    with pytest.raises(CheckpointError, match=r"version 2.*Upgrade"):
        load_runtime(str(copied))


@pytest.mark.parametrize("name", ["image.onnx", "text.onnx"])
def test_a_silently_wrong_engine_is_caught_by_the_golden_images(
    copied: Path, perturb: Callable[[Path, float], None], name: str
) -> None:
    perturb(copied / name, 0.05)
    edit(copied, lambda manifest: None, reseal=True)
    engine = Engine.load(str(copied))  # every hash is right
    report = engine.verify_golden()
    assert not report.passed and "does not reproduce its golden embeddings" in report.message
    with pytest.raises(BackendError, match="Export it again"):
        report.raise_for_failure()


def test_a_file_that_is_no_model_is_one_sentence(copied: Path) -> None:
    (copied / "image.onnx").write_bytes(b"no model")
    edit(copied, lambda manifest: None, reseal=True)
    with pytest.raises(BackendError, match=r"onnxruntime cannot load .*image\.onnx"):
        load_runtime(str(copied))


@pytest.mark.parametrize("name", ["image.onnx", "text.onnx"])
def test_a_model_without_identity_is_refused(copied: Path, name: str) -> None:
    model = onnx.load(copied / name)
    del model.metadata_props[:]
    onnx.save(model, copied / name)
    edit(copied, lambda manifest: None, reseal=True)
    with pytest.raises(CheckpointError, match=f"fingerprint in the manifest is not what {name} was exported with"):
        load_runtime(str(copied))
