"""A segmenter exported: torch's classes of pixels from onnxruntime, one more file, and a wrong one refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from digpt.data.emoji import EmojiSet
from digpt.data.scenes import SceneSet
from digpt.engine import Engine
from digpt.errors import BackendError, CapabilityError, CheckpointError, InputError
from digpt.runtime import load_runtime
from digpt.runtime.artifact import SEAL, seal_manifest
from digpt.runtime.base import Runtime
from digpt.runtime.fake import FakeRuntime
from digpt.runtime.golden import read_golden
from digpt.runtime.torch import TorchRuntime
from digpt.segment_inference import SegmentInference
from digpt.sources import load_model
from digpt.testing import TINY_CLASSES
from export import pipeline
from export.__main__ import main
from export.parity import measure
from export.tables import rows

LABELS = ["dark", "middle", "light"]


@pytest.fixture(scope="module")
def live(segment_artifact: Path) -> Runtime:
    return load_runtime(str(segment_artifact), threads=1)


@pytest.fixture(scope="module")
def reference(segment_spec: str) -> Runtime:
    return TorchRuntime(load_model(segment_spec))


def crops(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def damage(directory: Path, name: str, part: str) -> None:
    """Reverse the order of the rows of the weight whose name contains ``part``."""
    model = onnx.load(directory / name)
    (weight,) = (tensor for tensor in model.graph.initializer if part in tensor.name)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), weight.name))
    onnx.save(model, directory / name)


# ------------------------------------------------------------------------------------------------- what is written


def test_the_manifest_records_the_segmenter(segment_artifact: Path) -> None:
    manifest = json.loads((segment_artifact / "manifest.json").read_text())
    assert (manifest["head"], manifest["segment_crop"], manifest["text"]) == ("upernet", 32, None)
    assert manifest["labels"] == list(TINY_CLASSES)
    assert set(manifest["files"]) == {"image.onnx", "segment.onnx", "golden.npz"}
    engine = manifest["engines"]["onnx"]
    assert (engine["image"], engine["segment"], engine["outputs"]) == ("image.onnx", "segment.onnx", ["embedding"])
    parity = engine["parity"]
    assert parity["pixel_agreement"] >= 0.999 and parity["classes"] == 5 and parity["agreement"] is None
    assert 0 < parity["pixel_logits_max_abs_error"] < 1e-3 and engine["timings"]["segment_batch_1_ms"] > 0


def test_an_embedding_does_not_cost_a_pyramid(segment_artifact: Path) -> None:
    def count(name: str, kind: str) -> int:
        return sum(node.op_type == kind for node in onnx.load(segment_artifact / name).graph.node)

    assert count("image.onnx", "Conv") == 1 and count("segment.onnx", "ConvTranspose") == 3
    assert count("image.onnx", "MatMul") == count("segment.onnx", "MatMul") == 12  # of two blocks, once


# ----------------------------------------------------------------------------------------------------- its answers


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_batch_size_gives_torchs_numbers(live: Runtime, reference: Runtime, count: int) -> None:
    logits = live.pixel_logits(crops(count))
    assert logits.dtype == np.float32 and logits.shape == (count, 5, 32, 32)
    np.testing.assert_allclose(logits, reference.pixel_logits(crops(count)), atol=1e-3)
    np.testing.assert_allclose(live.embed(crops(count)), reference.embed(crops(count)), atol=2e-5)


def test_it_says_of_itself_what_torch_says(live: Runtime, reference: Runtime) -> None:
    for field in ("fingerprint", "dim", "preprocess", "has_text", "labels", "choices", "head", "segment_crop"):
        assert getattr(live.info, field) == getattr(reference.info, field), field
    assert live.info.segment_crop == 32
    with pytest.raises(CapabilityError, match="is a segmenter"):
        live.logits(crops(1))


def test_scenes_are_segmented_alike(live: Runtime, reference: Runtime) -> None:
    scenes = SceneSet(EmojiSet.load(), "val", size=96, count=3)
    inference = SegmentInference(crop=32, stride=21, scale=(256, 64))
    for index in range(3):
        image = scenes.pixels(index)[0]
        expected, found = (Engine(runtime).segment(image, inference) for runtime in (reference, live))
        assert (found == expected).mean() >= 0.999 and len(np.unique(expected)) > 2
    tall = np.concatenate([image] * 5)  # 12 pixels wide where it is resized: windows that need padding
    assert Engine(live).segment(tall).shape == (480, 96)


def test_smaller_crops_are_padded_with_the_mean_and_cut(live: Runtime, reference: Runtime) -> None:
    small = crops(2)[:, :20, :13]
    padded = np.empty((2, 32, 32, 3), np.uint8)
    padded[:] = (51, 102, 153)  # 255 * (0.2, 0.4, 0.6)
    padded[:, :20, :13] = small
    found = live.pixel_logits(small)
    assert found.shape == (2, 5, 20, 13)
    np.testing.assert_allclose(found, reference.pixel_logits(padded)[:, :, :20, :13], atol=1e-3)


def test_larger_pictures_are_refused_with_what_to_do(live: Runtime) -> None:
    with pytest.raises(InputError, match=r"up to 32 x 32 pixels at once, not 40 x 32: segment in mode 'slide'"):
        live.pixel_logits(np.zeros((1, 32, 40, 3), np.uint8))
    with pytest.raises(InputError, match="crop=32"):
        Engine(live).segment(np.zeros((99, 99, 3), np.uint8), SegmentInference(mode="whole"))


def test_other_artifacts_have_no_pixels_and_a_closed_one_says_so(text_artifact: Path, segment_artifact: Path) -> None:
    with pytest.raises(CapabilityError, match="no segmentation head"):
        load_runtime(str(text_artifact)).pixel_logits(crops(1))
    closed = load_runtime(str(segment_artifact))
    closed.close()
    with pytest.raises(BackendError, match="closed"):
        closed.pixel_logits(crops(1))


# -------------------------------------------------------------------------------------------------------- wrong ones


def test_a_wrong_segmenter_is_not_written(
    segment_artifact: Path,
    segment_spec: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def build(job: pipeline.Job, directory: Path) -> dict[str, Any]:
        for name in ("image.onnx", "segment.onnx"):
            shutil.copy(segment_artifact / name, directory / name)
        damage(directory, "segment.onnx", "upernet.classifier.weight")
        return {"precision": "fp32", "image": "image.onnx", "text": None, "segment": "segment.onnx", "outputs": []}

    monkeypatch.setitem(pipeline.BUILDERS, "onnx", build)
    command = [segment_spec, "--to", "onnx", "--output", str(tmp_path / "out"), "--parity-images", "16", "--json"]
    assert main(command) == 1
    engine = json.loads(capsys.readouterr().out)["engines"]["onnx"]
    assert engine["parity"]["cosine_min"] > 0.99999  # its embeddings are right
    assert engine["parity"]["pixel_agreement"] < 0.9
    assert any(fault.startswith("pixel_agreement is 0.") for fault in engine["parity"]["faults"])
    assert not engine["golden"]["passed"] and list(tmp_path.iterdir()) == []


def test_golden_pixels_notice_a_segmenter_that_was_swapped(segment_artifact: Path, tmp_path: Path) -> None:
    report = Engine.load(str(segment_artifact)).verify_golden()
    assert report.passed and report.checked == 16 + 2 and "18 golden embeddings and pixel logits" in report.message
    copied = Path(shutil.copytree(segment_artifact, tmp_path / "copied"))
    damage(copied, "segment.onnx", "upernet.classifier.weight")
    with pytest.raises(CheckpointError, match=r"segment\.onnx"):
        load_runtime(str(copied))
    reseal(copied, lambda manifest: None)
    report = Engine.load(str(copied)).verify_golden()  # every hash is right
    assert not report.passed and "does not reproduce its golden embeddings and pixel logits" in report.message


def reseal(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest[SEAL]
    change(manifest)
    seal_manifest(directory, manifest)


def test_a_segmenters_file_must_be_named_and_its_own(
    segment_artifact: Path, text_artifact: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(segment_artifact, tmp_path / "copied"))
    reseal(copied, lambda manifest: manifest["engines"]["onnx"].pop("segment"))
    with pytest.raises(CheckpointError, match="names None as its segmentation engine"):
        load_runtime(str(copied))
    shutil.copy(text_artifact / "image.onnx", copied / "segment.onnx")
    reseal(copied, lambda manifest: manifest["engines"]["onnx"].update(segment="segment.onnx"))
    with pytest.raises(CheckpointError, match=r"fingerprint in the manifest is not what segment\.onnx was exported"):
        load_runtime(str(copied))


def test_an_artifact_from_before_segmenters_still_loads(text_artifact: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(text_artifact, tmp_path / "copied"))
    reseal(copied, lambda manifest: manifest.pop("segment_crop"))
    runtime = load_runtime(str(copied))
    assert runtime.info.segment_crop is None and Engine(runtime).verify_golden().passed


def test_golden_logits_are_torchs_at_every_few_pixels(segment_artifact: Path, reference: Runtime) -> None:
    golden = read_golden(segment_artifact / "golden.npz", 1.0, 0.0)
    assert golden.pixel_logits is not None and golden.pixel_logits.shape == (2, 5, 32, 32) and golden.pixel_step == 1
    np.testing.assert_array_equal(golden.pixel_logits, reference.pixel_logits(golden.images[:2]))


# -------------------------------------------------------------------------------------------------- the gate's figures


def test_pixels_are_compared_one_two_and_three_crops_at_a_time() -> None:
    candidate = FakeRuntime(text=False, labels=LABELS, segment_crop=64)
    pictures = crops(128, 64)
    report = measure(FakeRuntime(text=False, labels=LABELS, segment_crop=64), candidate, pictures, ())
    assert report.passed and (report.pixel_agreement, report.pixel_logits_max_abs_error) == (1.0, 0.0)
    assert candidate.batches[-5:] == [1, 2, 3, 1, 1]  # a sixteenth: eight
    assert ("pixel agreement among 3 classes", "100.000%", ">= 99.9%") in rows(report)


def test_a_few_wrong_pixels_are_too_many() -> None:
    reference, candidate = (FakeRuntime(text=False, labels=LABELS, segment_crop=64) for _ in range(2))
    right = candidate.pixel_logits

    def wrong(images: np.ndarray) -> np.ndarray:
        logits = right(images)
        logits[:, :, 0, :6] = logits[:, ::-1, 0, :6]  # dark and light change places on 6 of 4096 pixels
        return logits

    candidate.pixel_logits = wrong  # type: ignore[method-assign]
    pictures = np.zeros((3, 64, 64, 3), np.uint8)
    report = measure(reference, candidate, pictures, ())
    assert report.pixel_agreement == pytest.approx(1 - 6 / 4096)
    assert report.faults == (f"pixel_agreement is {1 - 6 / 4096:.7f}, below 0.999",)
    assert report.pixel_logits_max_abs_error == pytest.approx(2 * 256 / 3)
