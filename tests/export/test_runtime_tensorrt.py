"""TensorRT engines as far as they go without a GPU: the typed graphs, the refusals, and the way through a fake library.

The fake keeps the exported program instead of an engine, on the CPU. What TensorRT makes of it is untested.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import digpt.runtime.tensorrt
import export.build_tensorrt
from digpt.errors import BackendError, MissingDependencyError
from digpt.runtime import load_runtime
from digpt.runtime.artifact import SEAL, seal_manifest
from digpt.runtime.golden import row_cosine
from digpt.runtime.precision import THRESHOLDS
from digpt.runtime.tensorrt import check_precision, engine_layers
from digpt.runtime.torch import TorchRuntime
from digpt.sources import load_model
from export.__main__ import main
from export.build_onnx import ImageGraph, PixelGraph
from export.build_tensorrt import typed_program
from export.pipeline import check_targets

# torch's own, about what it does when it saves a program
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
REDUCED = {"fp16": torch.float16, "bf16": torch.bfloat16}
GEMM = {"LayerType": "gemm", "Inputs": [{"Format/Datatype": "Half"}], "Outputs": [{"Format/Datatype": "Half"}]}
NORM = {"LayerType": "kgen", "Inputs": [{"Format/Datatype": "Float"}], "Outputs": [{"Format/Datatype": "Float"}]}
FLOAT_GEMM = {**NORM, "LayerType": "gemm"}


def crops(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


# --------------------------------------------------------------------------------------------------------- the library


def test_whatever_the_import_raises_names_the_extra_and_the_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch_tensorrt.py").write_text("raise Exception('no lib')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    pattern = r"pip install 'digpt\[tensorrt\]', with NVIDIA's package index as an extra index \(Exception: no lib"
    with pytest.raises(MissingDependencyError, match=pattern):
        check_targets(["tensorrt-fp16"])


class FakeLibrary(ModuleType):
    """torch_tensorrt with the calls that are made of it; ``compiled`` are the arguments of every compilation."""

    def __init__(self) -> None:
        super().__init__("torch_tensorrt")
        self.__version__ = "2.14.0"
        self.compiled: list[dict[str, Any]] = []
        self.inputs: list[dict[str, Any]] = []
        self.dynamo = SimpleNamespace(Debugger=lambda **options: nullcontext())

    def Input(self, **shapes: Any) -> dict[str, Any]:
        self.inputs.append(shapes)
        return shapes

    def compile(self, program: Any, **options: Any) -> Any:
        self.compiled.append(options)
        return program

    def save(self, program: Any, path: str, *, extra_files: dict[str, str], output_format: str, **_: Any) -> None:
        assert output_format == "exported_program"
        torch.export.save(program, path, extra_files=extra_files)

    def load(self, path: str, extra_files: dict[str, str]) -> Any:
        return torch.export.load(path, extra_files=extra_files)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    fake, tensorrt = FakeLibrary(), ModuleType("tensorrt")
    tensorrt.__version__ = "11.1.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_tensorrt", fake)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    for module in (digpt.runtime.tensorrt, export.build_tensorrt):
        monkeypatch.setattr(module, "gpu", lambda: torch.device("cpu"))
    card = SimpleNamespace(name="NVIDIA H100", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    return fake


def tells(monkeypatch: pytest.MonkeyPatch, *layers: dict[str, Any]) -> None:
    monkeypatch.setattr(digpt.runtime.tensorrt, "engine_layers", lambda program: list(layers))


def test_without_a_gpu_it_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", FakeLibrary())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="need an NVIDIA GPU, and torch sees none"):
        check_targets(["tensorrt"])


# -------------------------------------------------------------------------------------------- from model to artifact


def export_tiny(spec: str, output: Path, target: str) -> dict[str, Any]:
    command = [spec, "--to", target, "--output", str(output), "--parity-images", "16", "--threads", "1"]
    assert main(command) == 0
    return dict(json.loads((output / "manifest.json").read_text()))


def test_float32_engine_of_a_classifier(
    library: FakeLibrary, linear_spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tells(monkeypatch, FLOAT_GEMM, NORM)
    manifest = export_tiny(linear_spec, tmp_path / "out", "tensorrt")
    engine = manifest["engines"]["tensorrt"]
    assert engine["built_on"] == {"gpu": "NVIDIA H100", "compute_capability": "9.0", "tensorrt": "11.1.0"}
    assert (engine["precision"], engine["image"]) == ("fp32", "image-tensorrt-fp32.pt2")
    assert library.compiled == [
        {
            "ir": "dynamo",
            "inputs": [library.inputs[0]],
            "use_explicit_typing": True,
            "disable_tf32": True,
            "require_full_compilation": True,
            "min_block_size": 1,
        }
    ]
    shapes = {f"{name}_shape": (rows, 32, 32, 3) for name, rows in (("min", 1), ("opt", 16), ("max", 64))}
    assert library.inputs == [{**shapes, "dtype": torch.uint8, "name": "rows"}]
    live, reference = load_runtime(str(tmp_path / "out"), device="cuda"), TorchRuntime(load_model(linear_spec))
    assert live.info.providers == ("cpu tensorrt fp32",) and live.info.versions["tensorrt"] == "11.1.0"
    for count in (1, 2, 64, 130):  # more than an engine takes are split
        np.testing.assert_allclose(live.embed(crops(count)), reference.embed(crops(count)), atol=2e-5)
    np.testing.assert_allclose(live.logits(crops(3)), reference.logits(crops(3)), atol=2e-5)
    with pytest.raises(BackendError, match="tensorrt backend does not run on cpu; valid for --device: auto, cuda"):
        load_runtime(str(tmp_path / "out"), device="cpu")


def test_float16_engines_of_both_towers(
    library: FakeLibrary, text_spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tells(monkeypatch, GEMM, NORM)
    manifest = export_tiny(text_spec, tmp_path / "out", "tensorrt-fp16")
    engine = manifest["engines"]["tensorrt-fp16"]
    assert (engine["precision"], engine["text"]) == ("fp16", "text-tensorrt-fp16.pt2")
    assert [shapes["dtype"] for shapes in library.inputs] == [torch.uint8, torch.int64]
    live, reference = load_runtime(str(tmp_path / "out")), TorchRuntime(load_model(text_spec))
    for found, expected in (
        (live.embed(crops(8)), reference.embed(crops(8))),
        (live.embed_texts(["red apple", "house"]), reference.embed_texts(["red apple", "house"])),
    ):
        assert found.dtype == np.float32 and np.abs(found - expected).max() > 1e-5, "these are float32's numbers"
        assert row_cosine(found, expected).min() > THRESHOLDS["fp16"].cosine_min
    tells(monkeypatch, GEMM, FLOAT_GEMM)
    with pytest.raises(BackendError, match=r"image-tensorrt-fp16\.pt2 .* in fp16 and fp32, not in fp16: use another"):
        load_runtime(str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gpu": "NVIDIA A100"}, r"gpu NVIDIA A100 \(here NVIDIA H100\)"),
        ({"compute_capability": "8.0"}, r"compute_capability 8\.0 \(here 9\.0\)"),
        ({"tensorrt": "10.9.0"}, r"tensorrt 10\.9\.0 \(here 11\.1\.0\)"),
    ],
)
def test_an_engine_of_another_gpu_or_version_is_refused(
    library: FakeLibrary, copied: Path, change: dict[str, str], told: str
) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest[SEAL]
    here = {"gpu": "NVIDIA H100", "compute_capability": "9.0", "tensorrt": "11.1.0"}
    engine = {**manifest["engines"]["onnx"], "built_on": here | change}
    seal_manifest(copied, {**manifest, "engines": {"tensorrt": engine}, "backend": "tensorrt"})
    with pytest.raises(BackendError, match=rf"was built for {told}: an engine runs on the kind of GPU .* Export it"):
        load_runtime(str(copied))


def test_a_file_that_is_no_engine_and_a_failing_build_are_one_sentence(
    library: FakeLibrary, copied: Path, linear_spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest[SEAL]
    engine = {**manifest["engines"]["onnx"], "built_on": digpt.runtime.tensorrt.built_on()}
    seal_manifest(copied, {**manifest, "engines": {"tensorrt": engine}, "backend": "tensorrt"})
    with pytest.raises(BackendError, match=r"torch-tensorrt cannot load .*image\.onnx: "):
        load_runtime(str(copied))

    def compile(*_: Any, **__: Any) -> None:
        raise AssertionError("aten.gelu is not supported\nand more")

    library.compile = compile  # type: ignore[method-assign]
    command = [linear_spec, "--to", "tensorrt-bf16", "--output", str(tmp_path / "out"), "--parity-images", "16"]
    assert main(command) == 2
    stated = "cannot build image-tensorrt-bf16.pt2 in bf16: aten.gelu is not supported\n"
    assert capsys.readouterr().err.endswith(stated)


# ------------------------------------------------------------------------------------------------------- typed graphs


def dtypes(program: Any, name: str) -> set[torch.dtype]:
    nodes = [node for node in program.graph_module.graph.nodes if name in str(node.target)]
    return {node.meta["val"].dtype for node in nodes}


@pytest.mark.parametrize("precision", REDUCED)
def test_products_are_cast_and_nothing_else(text_spec: str, precision: str) -> None:
    model = load_model(text_spec)
    program = typed_program(ImageGraph(model.module, ("embedding",)), torch.from_numpy(crops(2)), precision)
    for product in ("linear", "conv2d", "scaled_dot_product_attention"):
        assert dtypes(program, product) == {REDUCED[precision]}, product
    assert dtypes(program, "layer_norm") == {torch.float32}
    assert "autocast" not in str(program.graph_module.graph)  # TensorRT has no converter for a region
    first = next(node for node in program.graph_module.graph.nodes if node.name == "rows")
    assert {str(user.target) for user in first.users} <= {
        "aten._to_copy.default",
        "aten._assert_tensor_metadata.default",
        "aten.sym_size.int",
    }
    assert all(p.dtype == torch.float32 for p in model.module.parameters())  # the model itself is left alone


def test_float32_has_no_casts_but_that_of_the_pixels(linear_spec: str) -> None:
    model = load_model(linear_spec)
    program = typed_program(ImageGraph(model.module, ("embedding", "logits")), torch.from_numpy(crops(2)), "fp32")
    assert dtypes(program, "linear") == dtypes(program, "layer_norm") == {torch.float32}
    embedding, logits = program.module()(torch.from_numpy(crops(5)))
    assert torch.equal(embedding, model.module(torch.from_numpy(crops(5))))
    assert torch.equal(logits, model.module.logits(torch.from_numpy(crops(5))))


def test_a_segmenter_keeps_its_classes_in_bf16(segment_spec: str) -> None:
    segmenter = load_model(segment_spec).module.segmenter
    assert segmenter is not None
    program = typed_program(PixelGraph(segmenter), torch.from_numpy(crops(2)), "bf16")
    with torch.no_grad():
        (found,) = program.module()(torch.from_numpy(crops(3)))
        expected = segmenter.pixel_logits(torch.from_numpy(crops(3)))
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()


# ---------------------------------------------------------------------------------------------------------- inspector


def weights(kind: str) -> dict[str, Any]:
    unknown = [{"Format/Datatype": "N/A due to dynamic shapes"}]
    return {"LayerType": "CaskConvolution", "Inputs": unknown, "Outputs": unknown, "Weights": {"Type": kind}}


@pytest.mark.parametrize(
    ("layers", "precision", "executed"),
    [
        ([FLOAT_GEMM, NORM], "fp32", None),
        ([GEMM, NORM], "fp16", None),
        ([NORM, GEMM], "fp32", "fp16"),
        ([GEMM, NORM], "bf16", "fp16"),
        ([FLOAT_GEMM, NORM], "fp16", "fp32"),
        ([GEMM, FLOAT_GEMM], "fp16", "fp16 and fp32"),
        ([{**FLOAT_GEMM, "TacticName": "sm80_xmma_gemm_f32f32_tf32f32_f32"}], "fp32", "tf32"),
        ([weights("BFloat16"), NORM], "bf16", None),
        ([weights("Float")], "bf16", "fp32"),
        ([NORM], "fp32", None),  # no layer that is known to multiply: all of them count
        ([NORM, {**GEMM, "LayerType": "kgen"}], "fp16", None),
        ([NORM, {**GEMM, "LayerType": "kgen"}], "fp32", "fp16 and fp32"),
        ([NORM], "fp16", "fp32"),
        ([{"LayerType": "gemm", "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}]}], "fp16", None),
        (["a name alone"], "fp32", "a precision that it does not tell"),
        ([{"LayerType": "gemm", "Inputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}], "fp32", "a precision"),
        ([], "fp32", "a precision that it does not tell"),
    ],
)
def test_the_precision_is_what_the_inspector_tells(layers: list[Any], precision: str, executed: str | None) -> None:
    if executed is None:
        check_precision(layers, precision, "image.pt2")
        return
    with pytest.raises(BackendError, match=f"computes image.pt2 in {executed}"):
        check_precision(layers, precision, "image.pt2")


def test_layers_are_asked_for_with_the_shapes_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an execution context TensorRT tells no types of tensors whose shapes are dynamic."""
    asked: dict[str, Any] = {}

    def inspector() -> Any:
        view = SimpleNamespace(execution_context=None)
        view.get_engine_information = lambda form: json.dumps(
            {"Layers": [GEMM] if view.execution_context is context else ["a name alone"]}
        )
        return view

    context = SimpleNamespace(set_input_shape=asked.__setitem__)
    engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda index: ("rows", "output0")[index],
        get_tensor_mode=lambda name: "in" if name == "rows" else "out",
        get_tensor_profile_shape=lambda name, profile: ((1, 8), (16, 8), (64, 8)),
        create_execution_context=lambda: context,
        create_engine_inspector=inspector,
    )
    tensorrt: Any = ModuleType("tensorrt")
    tensorrt.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    tensorrt.TensorIOMode = SimpleNamespace(INPUT="in")
    tensorrt.LayerInformationFormat = SimpleNamespace(JSON="json")
    plans: list[bytes] = []
    tensorrt.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: plans.append(plan) or engine)
    module: Any = ModuleType("torch_tensorrt.dynamo.runtime._TorchTensorRTModule")
    module.ENGINE_IDX = 1
    for name in ("torch_tensorrt", "torch_tensorrt.dynamo", "torch_tensorrt.dynamo.runtime"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)

    class Engine:
        get_engine_layer_info: Callable[[], str] = staticmethod(lambda: "")

        def __getstate__(self) -> Any:
            return (["10", base64.b64encode(b"plan").decode()], "TRTEngine")

    program: Any = SimpleNamespace(constants={"scale": torch.zeros(1), "engine": Engine()})
    assert engine_layers(program) == [GEMM]
    assert plans == [b"plan"] and asked == {"rows": (16, 8)}
