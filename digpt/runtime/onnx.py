"""Runs exported ONNX files with onnxruntime: numpy in, numpy out, no torch in the process."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np

from digpt.errors import BackendError, MissingDependencyError
from digpt.runtime.artifact import Artifact
from digpt.runtime.graph import IDENTITY_KEY, Graph, GraphRuntime

_ERROR = 3  # onnxruntime's severity; below it come notes about nodes and devices that say nothing to a user


class OnnxRuntime(GraphRuntime):
    """The ``onnx`` engine (float32) or the ``onnx-int8`` engine of an artifact directory."""

    def _open(self, artifact: Artifact, path: Path, threads: int) -> Graph:
        session = _session(path, threads)
        (input_name,) = (tensor.name for tensor in session.get_inputs())

        def run(output: str, rows: np.ndarray) -> np.ndarray:
            return session.run([output], {input_name: rows})[0]

        identity = session.get_modelmeta().custom_metadata_map.get(IDENTITY_KEY)
        return Graph(run, identity, tuple(session.get_providers()))

    def _versions(self) -> dict[str, str]:
        return {"onnxruntime": _onnxruntime().__version__}


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "The onnx backend needs onnxruntime: pip install onnxruntime-gpu (Linux x86-64) or onnxruntime (elsewhere)."
        ) from error
    return onnxruntime


def _session(path: Path, threads: int) -> Any:
    onnxruntime = _onnxruntime()
    onnxruntime.set_default_logger_severity(_ERROR)
    options = onnxruntime.SessionOptions()
    # Always a number: left to itself onnxruntime pins threads to cores, which containers forbid with a line per thread.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERROR
    # Idle workers sleep: spinning would take the cores that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=_providers(onnxruntime))
    except Exception as error:  # its exceptions share no base class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackendError(f"onnxruntime cannot load {path}: {reason}") from error


def _providers(onnxruntime: Any) -> list[Any]:
    """CUDA only where there is a driver: asked for without one, it logs errors and falls back to the CPU."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers() or not _has_cuda_driver():
        return ["CPUExecutionProvider"]
    onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed
    # TF32 keeps 10 bits of mantissa; the engine says fp32.
    return [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


def _has_cuda_driver() -> bool:
    try:
        driver = ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
