"""Several engines in one artifact: which is chosen, what is refused, and int8 with its calibration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from digpt.engine import Engine
from digpt.errors import BackendError
from digpt.runtime import load_runtime
from digpt.runtime.artifact import SEAL, seal_manifest
from digpt.runtime.golden import row_cosine
from digpt.runtime.precision import GOLDEN_TOLERANCE, THRESHOLDS
from digpt.runtime.timing import speed, take_turns
from digpt.runtime.torch import TorchRuntime
from digpt.sources import load_model
from export import build_int8, pipeline
from export.__main__ import main
from export.images import bundled_images
from export.job import calibration_crops, load_job

pytestmark = pytest.mark.slow  # engines of native code, together minutes: `make test-all`


def manifest_of(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "manifest.json").read_text()))


def crops(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


# ----------------------------------------------------------------------------------------------- speed and the choice


def test_engines_take_turns_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock = [0.0]
    monkeypatch.setattr("digpt.runtime.timing.time.perf_counter", lambda: clock[0])

    def engine(name: str, seconds: float) -> Callable[[np.ndarray], np.ndarray]:
        def compute(batch: np.ndarray) -> np.ndarray:
            clock[0] += seconds if name in calls else 100 * seconds  # the first call is slow
            calls.append(name)
            return batch

        return compute

    times = take_turns({"a": engine("a", 0.25), "b": engine("b", 0.5)}, np.zeros(1))
    assert times == {"a": 250.0, "b": 500.0}
    assert calls == ["a", "b"] * 4  # to warm up, and three times although the budget of a second is spent after two


def test_speed_weighs_both_batch_sizes_alike() -> None:
    assert speed({"batch_1_ms": 10.0, "batch_16_ms": 40.0}) == pytest.approx(200.0)  # 100 and 400 images a second


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, text_artifact: Path) -> Callable[..., None]:
    """Engines that are copied instead of built, with given milliseconds; ``change`` damages the OpenVINO one."""

    def build(name: str, change: Callable[[Path], None]) -> Callable[[pipeline.Job, Path], dict[str, Any]]:
        def copy(job: pipeline.Job, directory: Path) -> dict[str, Any]:
            shutil.copy(text_artifact / "image.onnx", directory / name)
            shutil.copy(text_artifact / "text.onnx", directory / "text.onnx")
            change(directory / name)
            return {"precision": "fp32", "image": name, "text": "text.onnx", "outputs": ["embedding"]}

        return copy

    def install(milliseconds: Mapping[str, float], change: Callable[[Path], None] = lambda path: None) -> None:
        def times(computes: Mapping[str, object], images: np.ndarray) -> dict[str, dict[str, float]]:
            return {name: {"batch_1_ms": milliseconds[name], "batch_16_ms": milliseconds[name]} for name in computes}

        monkeypatch.setitem(pipeline.BUILDERS, "onnx", build("image.onnx", lambda path: None))
        monkeypatch.setitem(pipeline.BUILDERS, "openvino", build("other.onnx", change))
        monkeypatch.setattr(pipeline, "default_targets", lambda: ("onnx", "openvino"))
        monkeypatch.setattr(pipeline, "time_engines", times)

    return install


@pytest.mark.parametrize("fastest", ["onnx", "openvino"])
def test_the_fastest_is_what_the_artifact_runs_on(
    planned: Callable[..., None], text_spec: str, tmp_path: Path, fastest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    planned({"onnx": 2.0, "openvino": 2.0} | {fastest: 1.0})
    output = tmp_path / "out"
    assert main([text_spec, "--output", str(output), "--parity-images", "16"]) == 0
    assert load_runtime(str(output)).info.backend == load_runtime(str(output), "auto").info.backend == fastest
    printed = capsys.readouterr().out
    assert printed.count("against torch fp32") == 1 and f"runs on {fastest}" in printed and "peak memory" in printed
    manifest = manifest_of(output)
    assert set(manifest["engines"]) == {"onnx", "openvino"} and manifest["refused"] == {}
    assert manifest["engines"][fastest]["timings"]["batch_16_ms"] == 1.0 and manifest["peak_memory_mb"] > 50


def test_a_wrong_engine_is_refused_and_recorded_beside_a_right_one(
    planned: Callable[..., None], perturb: Callable[[Path, float], None], text_spec: str, tmp_path: Path
) -> None:
    planned({"onnx": 2.0, "openvino": 1.0}, lambda path: perturb(path, 0.1))
    output = tmp_path / "out"
    command = [text_spec, "--output", str(output), "--parity-images", "16", "--overwrite"]
    assert main([*command, "--to", "openvino", "onnx"]) == 1
    manifest = manifest_of(output)
    assert list(manifest["engines"]) == ["onnx"] and manifest["backend"] == "onnx"  # though the other is faster
    refused = manifest["refused"]["openvino"]
    assert refused["parity"]["cosine_min"] < 0.99999 and not refused["golden"]["passed"]
    assert set(manifest["files"]) == {"image.onnx", "text.onnx", "golden.npz", "tokenizer.json"}
    assert {path.name for path in output.iterdir()} == {*manifest["files"], "manifest.json"}
    assert Engine.load(str(output)).verify_golden().passed
    assert main(command) == 0  # nobody asked for OpenVINO by name


def test_a_looser_precision_has_looser_bounds_and_never_none() -> None:
    names = ("fp32", "fp16", "bf16", "int8")
    assert set(THRESHOLDS) == set(GOLDEN_TOLERANCE) == set(names)
    ordered = [THRESHOLDS[name] for name in names]
    assert [b.cosine_median for b in ordered] == [0.99999, 0.9999, 0.9995, 0.995]
    assert [b.agreement for b in ordered] == [0.999, 0.997, 0.995, 0.98]
    assert [b.cosine_min for b in ordered] == [GOLDEN_TOLERANCE[name]["cosine"] for name in names]


# --------------------------------------------------------------------------------------------------------------- int8


@pytest.fixture(scope="module")
def int8_artifact(text_spec: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("int8") / "text"
    command = [text_spec, "--to", "onnx-int8", "--output", str(output), "--parity-images", "40", "--threads", "1"]
    assert main(command) == 0
    return output


def test_int8_is_an_engine_of_its_own(int8_artifact: Path, text_spec: str) -> None:
    manifest = manifest_of(int8_artifact)
    assert set(manifest["files"]) == {"image-int8.onnx", "text.onnx", "golden.npz", "tokenizer.json"}
    engine = manifest["engines"]["onnx-int8"]
    assert (engine["precision"], engine["parity"]["precision"], manifest["precision"]) == ("int8", "int8", "int8")
    assert engine["calibration"] == {"images": 64, "method": "percentile 99.99", "apart_from_parity": True}
    live, reference = load_runtime(str(int8_artifact), threads=1), TorchRuntime(load_model(text_spec))
    assert (live.info.backend, live.info.providers[-1]) == ("onnx-int8", "CPUExecutionProvider")
    found, expected = live.embed(crops(16)), reference.embed(crops(16))
    assert row_cosine(found, expected).min() > 0.99 and np.abs(found - expected).max() > 1e-3
    np.testing.assert_allclose(live.embed_texts(["red apple"]), reference.embed_texts(["red apple"]), atol=2e-5)


def test_openvino_runs_the_same_int8_file_in_int8(
    int8_artifact: Path, text_spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copytree(int8_artifact, tmp_path / "copied"))
    manifest = manifest_of(copied)
    del manifest[SEAL]
    seal_manifest(copied, {**manifest, "engines": {"openvino-int8": manifest["engines"]["onnx-int8"]}})
    live, reference = load_runtime(str(copied), "openvino-int8", threads=1), TorchRuntime(load_model(text_spec))
    assert live.info.precision == "int8" and live.info.providers[0] in ("CPU f32+u8", "CPU f32+i8", "CPU f32+i8+u8")
    found, expected = live.embed(crops(16)), reference.embed(crops(16))
    assert row_cosine(found, expected).min() > 0.99 and np.abs(found - expected).max() > 1e-3
    np.testing.assert_allclose(live.embed_texts(["red apple"]), reference.embed_texts(["red apple"]), atol=2e-5)
    monkeypatch.setattr("digpt.runtime.openvino.executed_precisions", lambda compiled: {"f32": 25, "u8": 1})
    with pytest.raises(
        BackendError, match=r"1 of the 26 matrix .* \(openvino-int8\) in int8 \(25 in f32 and 1 in u8\)"
    ):
        load_runtime(str(copied), "openvino-int8")


def test_calibration_needs_one_batch_in_memory_and_reads_all() -> None:
    reader = build_int8._reader(crops(20))
    assert [len(batch["images"]) for batch in iter(reader.get_next, None)] == [8, 8, 4] and len(reader) == 3
    reader.set_range(1, 2)
    np.testing.assert_array_equal(reader.get_next()["images"], crops(20)[8:16])
    assert reader.get_next() is None


def test_weights_are_quantised_per_channel_and_the_ends_are_not(int8_artifact: Path) -> None:
    graph = onnx.load(int8_artifact / "image-int8.onnx").graph
    kinds = {tensor.name: tensor for tensor in graph.initializer}
    quantised = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2]
    assert len(quantised) == 4  # of one block: qkv, proj, fc1, fc2
    scales = [
        kinds[node.input[1]] for node in graph.node if node.input and node.input[0] in {t.name for t in quantised}
    ]
    assert [len(scale.dims) for scale in scales] == [1] * 4 and all(scale.dims[0] > 1 for scale in scales)
    convolution = next(node for node in graph.node if node.op_type == "Conv")
    assert kinds[convolution.input[1]].data_type == onnx.TensorProto.FLOAT


def test_a_wrong_int8_engine_is_caught_by_the_golden_images(int8_artifact: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(int8_artifact, tmp_path / "copied"))
    model = onnx.load(copied / "image-int8.onnx")
    head = next(
        t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and 32 in t.dims and 48 in t.dims
    )
    head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head)[::-1].copy(), head.name))
    onnx.save(model, copied / "image-int8.onnx")
    manifest = manifest_of(copied)
    del manifest[SEAL]
    seal_manifest(copied, manifest)
    report = Engine.load(str(copied), threads=1).verify_golden()  # every hash is right
    assert not report.passed and "on onnx-int8" in report.message


def test_a_wrong_int8_engine_is_refused_with_the_layers_that_suffer(
    text_spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = build_int8.quantise

    def wrong(source: Path, path: Path, crops: np.ndarray, *, identity: str) -> None:
        right(source, path, crops, identity=identity)
        model = onnx.load(path)
        name = next(node for node in model.graph.node if node.op_type == "Conv").input[1]
        (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight)[::-1].copy(), weight.name))
        onnx.save(model, path)

    monkeypatch.setattr(build_int8, "quantise", wrong)
    command = [text_spec, "--to", "onnx-int8", "--output", str(tmp_path / "out"), "--parity-images", "16"]
    assert main([*command, "--json"]) == 1
    engine = json.loads(capsys.readouterr().out)["engines"]["onnx-int8"]
    assert engine["parity"]["cosine_min"] < 0.9 and len(engine["notes"]) == build_int8.WORST
    decibels = [float(note.rsplit(" ", 2)[1]) for note in engine["notes"]]
    assert decibels == sorted(decibels) and decibels[0] < 5
    assert any(", near model.encoder." in note for note in engine["notes"])
    assert list(tmp_path.iterdir()) == []


def test_calibration_images_are_not_those_of_parity(text_spec: str, tmp_path: Path) -> None:
    folder, (first, second) = tmp_path / "photos", (tmp_path / "a", tmp_path / "b")
    for directory in (folder, first, second):
        directory.mkdir()
    for index, data in enumerate(bundled_images(40)):
        (folder / f"{index:02}.webp").write_bytes(data)
    options = {"threads": 1, "images": folder, "text": False, "patch_tokens": False}
    job = load_job(text_spec, first, parity_images=20, **options)  # type: ignore[arg-type]
    calibration, apart = calibration_crops(job)
    assert apart and len(calibration) == 20
    compared = {crop.tobytes() for crop in job.crops}
    assert len(compared) == 20 and not compared & {crop.tobytes() for crop in calibration}
    job = load_job(text_spec, second, parity_images=30, **options)  # type: ignore[arg-type]
    calibration, apart = calibration_crops(job)
    assert not apart and len(calibration) == 30  # ten others are too few
