"""Runs exported ONNX files with OpenVINO on the CPU, in float32, bfloat16 or int8; no torch in the process.

The precision is asked for by a hint, which OpenVINO may ignore: what it compiled is read back, and as many of the
matrix products as `SHARES` says must be computed in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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
# Of the matrix products, how many are computed in the precision at least. The bundled model's: in fp32 and bf16 all (26
# of its pictures, 9 of its texts); in int8 24 of 26, for the patches' convolution and the last projection stay float32
# (attention's 12 are fused there; where they are not, and stay float32, it would be 24 of 38).
SHARES = {"fp32": 1.0, "bf16": 0.8, "int8": 0.5}
# The layers that are matrix products, by their names in what OpenVINO compiled; the second line is of fused ones. A
# "Subgraph" may hold some as well (attention, with AMX), or none, and is not counted.
PRODUCTS = frozenset(
    (
        *("FullyConnected", "Convolution", "MatMul", "Deconvolution"),
        *("ScaledDotProductAttention", "QKVProjection", "LLMMLP", "GatherMatmul"),
    )
)


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
        check_precision(executed, precision, f"{path} ({artifact.backend})")

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


def executed_precisions(compiled: Any) -> dict[str, int]:
    """How many matrix products of a compiled model are executed in each precision, as it says itself, by name."""
    layers = [layer.get_rt_info() for layer in compiled.get_runtime_model().get_ops()]
    found = Counter(str(i["runtimePrecision"].value) for i in layers if str(i["layerType"].value) in PRODUCTS)
    return dict(sorted(found.items()))


def check_precision(executed: Mapping[str, int], precision: str, what: str) -> None:
    """Raise BackendError when fewer of the matrix products than `SHARES` says are executed in ``precision``."""
    products = sum(executed.values())
    right = sum(count for name, count in executed.items() if name in EXECUTED[precision])
    if not products or right < SHARES[precision] * products:
        counts = " and ".join(f"{count} in {name}" for name, count in executed.items())
        raise BackendError(
            f"OpenVINO computes {right} of the {products} matrix products of {what} in {precision}"
            f"{f' ({counts})' if counts else ''}, of which {SHARES[precision]:.0%} are asked for: use another engine "
            "of this artifact."
        )


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
