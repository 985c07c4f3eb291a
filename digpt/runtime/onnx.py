"""Runs exported ONNX files with onnxruntime: numpy in, numpy out, no torch in the process.

Which of its execution providers computes is asked for by ``device``. onnxruntime itself goes on with the CPU where one
cannot be used; here that is an error, unless the device is ``auto``. GPUs are untested: ``python -m export.gpu_check``.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from digpt.errors import BackendError, MissingDependencyError
from digpt.runtime.artifact import Artifact
from digpt.runtime.graph import IDENTITY_KEY, Graph, GraphRuntime

_ERROR = 3  # onnxruntime's severity; below it come notes about nodes and devices that say nothing to a user
_DEVICES = ("auto", "cpu", "cuda", "cuda:N", "tensorrt")
_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_TF32 = "NVIDIA_TF32_OVERRIDE"
_TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")  # what onnxruntime's own library is linked with


class OnnxRuntime(GraphRuntime):
    """The ``onnx`` engine (float32) or the ``onnx-int8`` engine of an artifact directory.

    Args:
        device: ``auto``, CUDA where there is a driver and else the CPU; ``cpu``; ``cuda``, ``cuda:N``; or ``tensorrt``,
            onnxruntime's TensorRT provider, which builds its engine at the first answer and anew for larger batches.

    Raises:
        BackendError, CheckpointError: as :class:`GraphRuntime`; or the device is unknown, absent, or not used.
        MissingDependencyError: onnxruntime, or the TensorRT that it is linked with, is not installed.
    """

    def __init__(self, directory: Path, backend: str, *, threads: int | None = None, device: str = "auto") -> None:
        if re.fullmatch(r"auto|cpu|cuda(:\d+)?|tensorrt", device) is None:
            raise BackendError(f"Unknown device {device!r} of the {backend} backend; valid: {', '.join(_DEVICES)}.")
        self._device = device
        super().__init__(directory, backend, threads=threads)

    def _open(self, artifact: Artifact, path: Path, threads: int) -> Graph:
        session = _session(path, threads, self._device)
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


def _session(path: Path, threads: int, device: str) -> Any:
    onnxruntime = _onnxruntime()
    onnxruntime.set_default_logger_severity(_ERROR)
    options = onnxruntime.SessionOptions()
    # Always a number: left to itself onnxruntime pins threads to cores, which containers forbid with a line per thread.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERROR
    # Idle workers sleep: spinning would take the cores that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = _providers(onnxruntime, device)
    strict = device != "auto"  # then neither loading nor an answer may go on with another provider
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=not strict)
    except Exception as error:  # its exceptions share no base class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackendError(f"onnxruntime cannot load {path}: {reason}") from error
    wanted = providers[0][0] if isinstance(providers[0], tuple) else providers[0]
    if strict and wanted not in session.get_providers():
        raise BackendError(
            f"onnxruntime was asked for --device {device} and uses {', '.join(session.get_providers())} instead: its "
            "libraries do not fit this machine (pip install 'digpt[gpu]'), or use --device cpu."
        )
    return session


def _providers(onnxruntime: Any, device: str) -> list[Any]:
    """onnxruntime's list for ``device``, the one to be used first; ``auto`` never names one that has no driver.

    TF32 keeps 10 bits of mantissa, and the engine says fp32: it is off. The CUDA provider has an option for that, the
    TensorRT provider has none; NVIDIA's libraries obey the variable where they are loaded after it is set. A value of
    the user's other than 0 is refused, for it stands above what a program asks for.
    """
    if device == "cpu" or (device == "auto" and not (_offers(onnxruntime, _CUDA) and _has_cuda_driver())):
        return [_CPU]
    wanted = _TENSORRT if device == "tensorrt" else _CUDA
    if not _offers(onnxruntime, wanted):
        raise BackendError(f"This onnxruntime has no {wanted}: install onnxruntime-gpu, or use --device cpu.")
    if not _has_cuda_driver():
        raise BackendError(f"--device {device} needs an NVIDIA GPU and its driver, and none is here; use --device cpu.")
    if (stated := os.environ.get(_TF32, "0")) != "0":
        raise BackendError(
            f"{_TF32}={stated} lets NVIDIA's libraries compute float32 in TF32, and this engine promises float32: "
            "unset it, or use --device cpu."
        )
    onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed
    if device == "tensorrt":
        _preload_tensorrt()
        os.environ[_TF32] = "0"
    cuda = (_CUDA, {"use_tf32": "0", "device_id": device.partition(":")[2] or "0"})
    return [_TENSORRT, cuda, _CPU] if device == "tensorrt" else [cuda, _CPU]


def _offers(onnxruntime: Any, provider: str) -> bool:
    return provider in onnxruntime.get_available_providers()


def _preload_tensorrt() -> None:
    """Load the TensorRT that onnxruntime is linked with, also from where pip puts it, so that it is found.

    Raises:
        MissingDependencyError: there is none of this version.
    """
    installed = importlib.util.find_spec("tensorrt_libs")
    folders = [Path(), *map(Path, (installed and installed.submodule_search_locations) or ())]
    for name in _TENSORRT_LIBRARIES:
        if not any(_loads(folder / name) for folder in folders):
            raise MissingDependencyError(
                f"onnxruntime's TensorRT provider needs {name}, of TensorRT 10 (NVIDIA's package index), in an "
                "environment without digpt[tensorrt], which brings another TensorRT; or use --device cuda."
            )


def _loads(library: Path) -> bool:
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


def _has_cuda_driver() -> bool:
    try:
        driver = ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
