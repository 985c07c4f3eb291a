"""Runs TensorRT engines that torch-tensorrt built, on the kind of GPU that they were built on. Needs torch.

The precision is read back from the engine itself and must be the one that it was exported for. Untested on a GPU:
``python -m export.gpu_check`` is the test.
"""

from __future__ import annotations

import base64
import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from digpt.errors import BackendError, MissingDependencyError
from digpt.runtime.artifact import Artifact
from digpt.runtime.graph import IDENTITY_KEY, Graph, GraphRuntime

OUTPUTS_KEY = "digpt.outputs"  # under which a file names what it returns, in order
MAX_BATCH = 64  # rows that an engine takes at once; more are split
PRODUCT = re.compile("gemm|conv|matmul|matrix|mha|attention", re.IGNORECASE)  # TensorRT's kinds of layers that multiply
TYPE = re.compile(r"\b(?:(bf16|bfloat16)|(fp16|half)|(fp32|float))\b", re.IGNORECASE)  # in its names of formats
LOWEST = ("bf16", "fp16", "tf32", "fp32")


class TensorrtRuntime(GraphRuntime):
    """The ``tensorrt`` (float32, no TF32), ``tensorrt-fp16`` or ``tensorrt-bf16`` engine of an artifact directory."""

    def _open(self, artifact: Artifact, path: Path, threads: int) -> Graph:
        library, here = torch_tensorrt(), built_on()
        built = artifact.engine["built_on"]
        other = [f"{key} {built[key]} (here {value})" for key, value in here.items() if built[key] != value]
        if other:
            raise BackendError(
                f"{path} was built for {', '.join(other)}: an engine runs on the kind of GPU and the TensorRT that "
                "built it. Export it here, or use another engine."
            )
        extra = {IDENTITY_KEY: "", OUTPUTS_KEY: ""}
        try:
            program = library.load(str(path), extra_files=extra)
        except Exception as error:  # its exceptions share no base class
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BackendError(f"torch-tensorrt cannot load {path}: {reason}") from error
        check_precision(engine_layers(program), artifact.engine["precision"], f"{path} ({artifact.backend})")
        compute, names, device = program.module(), extra[OUTPUTS_KEY].split(","), gpu()

        def run(output: str, rows: np.ndarray) -> np.ndarray:
            place, answers = names.index(output), []
            with torch.inference_mode():
                for start in range(0, len(rows), MAX_BATCH):
                    part = torch.from_numpy(np.ascontiguousarray(rows[start : start + MAX_BATCH])).to(device)
                    answers.append(compute(part)[place].cpu().numpy())
            return np.concatenate(answers)

        return Graph(run, extra[IDENTITY_KEY], (f"{device} tensorrt {artifact.engine['precision']}",))

    def _versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "torch_tensorrt": torch_tensorrt().__version__, **_tensorrt_version()}


def torch_tensorrt() -> Any:
    """The library.

    Raises:
        MissingDependencyError: it is not installed, or what it needs is not there.
    """
    try:
        import torch_tensorrt
    except Exception as error:  # without its own libraries it raises OSError, RuntimeError or a bare Exception
        raise MissingDependencyError(
            "The tensorrt engines need torch-tensorrt: pip install 'digpt[tensorrt]', with NVIDIA's package index as "
            f"an extra index ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    return torch_tensorrt


def gpu() -> torch.device:
    """The GPU that engines are built for and run on: torch's current one.

    Raises:
        BackendError: there is none.
    """
    if not torch.cuda.is_available():
        raise BackendError("The tensorrt engines need an NVIDIA GPU, and torch sees none; use another engine here.")
    return torch.device("cuda", torch.cuda.current_device())


def built_on() -> dict[str, str]:
    """What an engine is tied to: the GPU's name, its compute capability (``9.0``) and TensorRT's version.

    Raises:
        BackendError, MissingDependencyError: no GPU, no torch-tensorrt.
    """
    torch_tensorrt()
    properties = torch.cuda.get_device_properties(gpu())
    capability = f"{properties.major}.{properties.minor}"
    return {"gpu": properties.name, "compute_capability": capability, **_tensorrt_version()}


def _tensorrt_version() -> dict[str, str]:
    return {"tensorrt": str(_tensorrt().__version__)}


def _tensorrt() -> Any:
    return importlib.import_module("tensorrt")  # torch-tensorrt brings it


def engine_layers(program: torch.export.ExportedProgram) -> list[Any]:
    """What TensorRT's inspector says about every layer of every engine in ``program``.

    Types of tensors are told only for an execution context whose shapes are set, so each engine is opened once more.
    """
    from torch_tensorrt.dynamo.runtime._TorchTensorRTModule import ENGINE_IDX

    tensorrt, layers = _tensorrt(), []
    for constant in program.constants.values():
        if not hasattr(constant, "get_engine_layer_info"):
            continue  # a tensor, no engine
        packed = constant.__getstate__()[0][ENGINE_IDX]
        runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(base64.b64decode(packed))
        context = engine.create_execution_context()
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT:
                _least, usual, _most = engine.get_tensor_profile_shape(name, 0)
                context.set_input_shape(name, usual)
        inspector = engine.create_engine_inspector()
        inspector.execution_context = context
        layers += json.loads(inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON))["Layers"]
    return layers


def check_precision(layers: Sequence[Any], precision: str, what: str) -> None:
    """Raise BackendError when ``layers``, as the inspector describes them, do not multiply in ``precision``.

    Where no layer can be told for one that multiplies, float32 beside a reduced precision passes, and nothing else.
    """
    told = [(layer, found) for layer in layers if isinstance(layer, dict) and (found := _types(layer))]
    products = [found for layer, found in told if PRODUCT.search(str(layer.get("LayerType", "")))]
    executed = {min(found, key=LOWEST.index) for found in products or [found for _, found in told]}
    allowed = {precision} if products else {precision, "fp32"}
    if precision not in executed or not executed <= allowed:
        names = " and ".join(sorted(executed)) or "a precision that it does not tell"
        raise BackendError(f"TensorRT computes {what} in {names}, not in {precision}: use another engine.")


def _types(layer: dict[str, Any]) -> set[str]:
    """The floating-point types of a layer's tensors and weights; TF32 is told by the name of the kernel alone."""
    tensors = [*layer.get("Inputs", ()), *layer.get("Outputs", ())]
    names = [str(tensor.get("Format/Datatype", "")) for tensor in tensors]
    names += [str(layer[key].get("Type", "")) for key in ("Weights", "Bias") if isinstance(layer.get(key), dict)]
    matches = [match for name in names for match in TYPE.finditer(name)]
    found = {("bf16", "fp16", "fp32")[(match.lastindex or 1) - 1] for match in matches}
    return found | ({"tf32"} if "tf32" in str(layer.get("TacticName", "")).lower() else set())
