"""Runs exported ONNX files with OpenVINO on the CPU, in float32, bfloat16 or int8; no torch in the process.

The precision is asked for by a hint, which OpenVINO may ignore; what it compiled is read back and must be the same.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from digpt.errors import BackendError, MissingDependencyError
from digpt.runtime.artifact import Artifact
from digpt.runtime.graph import IDENTITY_KEY, Graph, GraphRuntime

DEVICE = "CPU"
# A precision of ours -> OpenVINO's hint (int8 is in the file, the hint is for the rest), and what it says it executes.
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
EXECUTED = {"fp32": {"f32"}, "bf16": {"bf16"}, "int8": {"i8", "u8"}}  # int8: signed or not, as the CPU does it
PRODUCTS = ("FullyConnected", "Convolution", "MatMul")  # the layers whose precision is the engine's


class OpenvinoRuntime(GraphRuntime):
    """The ``openvino`` (float32), ``openvino-bf16`` or ``openvino-int8`` engine of an artifact directory."""

    def _open(self, artifact: Artifact, path: Path, threads: int) -> Graph:
        precision = artifact.engine["precision"]
        if precision == "int8" and path == artifact.text:
            precision = "fp32"  # of int8 engines too
        if precision == "bf16" and not supports_bf16():
            raise BackendError(
                f"{artifact.backend} needs a CPU with bfloat16 instructions; use --backend openvino here."
            )
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the cores are shared with what decodes the next images
        }
        try:
            model = _core().read_model(str(path))
            compiled = _core().compile_model(model, DEVICE, settings)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot load {path}: {_reason(error)}") from error
        executed = executed_precisions(compiled)
        if not EXECUTED[precision] & set(executed) or (precision == "fp32" and len(executed) > 1):
            raise BackendError(
                f"OpenVINO computes {path} in {' and '.join(executed) or 'no known precision'}, but {artifact.backend} "
                f"is {precision}: use another engine of this artifact."
            )

        def run(output: str, rows: np.ndarray) -> np.ndarray:
            return np.array(compiled(rows)[output])  # a copy: the request's memory is used again

        return Graph(run, _identity(model), tuple(f"{device} {'+'.join(executed)}" for device in _devices(compiled)))

    def _versions(self) -> dict[str, str]:
        return {"openvino": _openvino().__version__}


def supports_bf16() -> bool:
    """Whether OpenVINO computes bfloat16 on this CPU with instructions made for it.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """
    return "BF16" in _core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


def executed_precisions(compiled: Any) -> tuple[str, ...]:
    """The precisions that the matrix products of a compiled model are executed in, as it says itself, sorted."""
    layers = [layer.get_rt_info() for layer in compiled.get_runtime_model().get_ops()]
    return tuple(sorted({str(i["runtimePrecision"].value) for i in layers if str(i["layerType"].value) in PRODUCTS}))


def _devices(compiled: Any) -> tuple[str, ...]:
    return tuple(str(device) for device in compiled.get_property("EXECUTION_DEVICES"))


def _identity(model: Any) -> str | None:
    """OpenVINO keeps the metadata of an ONNX file under ``framework``."""
    path = ["framework", IDENTITY_KEY]
    return str(model.get_rt_info(path).value) if model.has_rt_info(path) else None


def _reason(error: RuntimeError) -> str:
    """The last line of OpenVINO's message: the lines above are places in its own sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@cache
def _core() -> Any:
    """The one core of the process, which is never released.

    OpenVINO's CPU plugin gives the thread that loads it a stack for signals, and the one before back when it goes. Two
    that go in another order than the reverse leave a stack that is no memory any more: the next signal that has a
    handler (SIGTERM of a server, SIGCHLD where a data loader ran) ends the process.
    """
    return _openvino().Core()


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError("The openvino backends need OpenVINO: pip install openvino.") from error
    return openvino
