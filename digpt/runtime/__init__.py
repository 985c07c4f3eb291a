"""Runtimes behind one seam: ``load_runtime`` turns a spec into something that embeds.

Each backend lives in one file and is imported only when it is used. To add one: its file, one entry of BACKENDS.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from digpt.errors import BackendError, near_misses
from digpt.runtime.base import URLS, Runtime

if TYPE_CHECKING:
    from digpt.sources import Model


def _load_torch(model: Model, threads: int | None, device: str) -> Runtime:
    from digpt.runtime.torch import TorchRuntime

    return TorchRuntime(model, threads=threads, device=device)


def _load_torch_bf16(model: Model, threads: int | None, device: str) -> Runtime:
    from digpt.runtime.torch_bf16 import TorchBf16Runtime

    return TorchBf16Runtime(model, threads=threads, device=device)


def _load_torch_compiled(model: Model, threads: int | None, device: str) -> Runtime:
    from digpt.runtime.torch_bf16 import TorchCompiledRuntime

    return TorchCompiledRuntime(model, threads=threads, device=device)


def _choose_torch(model: Model, threads: int | None, device: str) -> Runtime:
    from digpt.runtime.choose import choose

    return choose(model, threads=threads, device=device)


def _load_onnx(spec: str, backend: str, threads: int | None, device: str) -> Runtime:
    from digpt.runtime.onnx import OnnxRuntime

    return OnnxRuntime(Path(spec), backend, threads=threads, device=device)


def _load_openvino(spec: str, backend: str, threads: int | None, device: str) -> Runtime:
    from digpt.runtime.openvino import OpenvinoRuntime

    _only_on(("auto", "cpu"), backend, device)
    return OpenvinoRuntime(Path(spec), backend, threads=threads)


def _load_aoti(spec: str, backend: str, threads: int | None, device: str) -> Runtime:
    from digpt.runtime.aoti import AotiRuntime

    _only_on(("auto", "cpu"), backend, device)
    return AotiRuntime(Path(spec), backend, threads=threads)


def _load_tensorrt(spec: str, backend: str, threads: int | None, device: str) -> Runtime:
    from digpt.runtime.tensorrt import TensorrtRuntime

    _only_on(("auto", "cuda"), backend, device)
    return TensorrtRuntime(Path(spec), backend, threads=threads)


def _only_on(devices: tuple[str, str], backend: str, device: str) -> None:
    """Raise BackendError when ``device`` is not among those that ``backend`` can be asked for."""
    if device not in devices:
        raise BackendError(f"The {backend} backend does not run on {device}; valid for --device: {', '.join(devices)}.")


def _load_remote(spec: str, backend: str | None, threads: int | None, device: str | None) -> Runtime:
    from digpt.runtime.remote import RemoteRuntime

    if backend not in (None, AUTO) or device not in (None, "auto", "cpu"):
        given = f"--device {device}" if backend in (None, AUTO) else f"--backend {backend}"
        raise BackendError(f"{spec} is a running server, which chose its backend and device itself; leave out {given}.")

    return RemoteRuntime(spec, threads=threads)


AUTO = "auto"  # what was fastest: for an artifact at export, for a model here and now
MODEL_BACKENDS: dict[str, Callable[[Model, int | None, str], Runtime]] = {
    "torch": _load_torch,
    "torch-bf16": _load_torch_bf16,
    "torch-compiled-bf16": _load_torch_compiled,
    AUTO: _choose_torch,
}
# A name stands for a library and a precision; the loader is given it, since one file may run several.
ARTIFACT_BACKENDS: dict[str, Callable[[str, str, int | None, str], Runtime]] = {
    "onnx": _load_onnx,
    "onnx-int8": _load_onnx,
    "openvino": _load_openvino,
    "openvino-bf16": _load_openvino,
    "openvino-int8": _load_openvino,
    "aoti": _load_aoti,
    "tensorrt": _load_tensorrt,
    "tensorrt-fp16": _load_tensorrt,
    "tensorrt-bf16": _load_tensorrt,
}


def absolute_spec(spec: str) -> str:
    """The same model for a process that works in another folder: a directory, or a file with an ending, by its path."""
    path = Path(spec)
    return str(path.absolute()) if path.is_dir() or (path.suffix and path.is_file()) else spec


def load_runtime(
    spec: str,
    backend: str | None = None,
    *,
    threads: int | None = None,
    device: str | None = None,
    image_size: int | None = None,
) -> Runtime:
    """Load ``spec`` on ``backend`` (default: torch for a model, what the manifest names for an artifact directory).

    ``auto`` is the manifest's choice too; for a model it times torch's variants and prints a table to standard error.
    A URL, ``http://HOST:PORT``, is a running server, see ``digpt.runtime.remote``.

    ``device`` is ``cpu``, ``cuda``, ``cuda:N`` or ``auto``, a GPU where there is one; for the onnx backends also
    ``tensorrt``. What is named is used or refused. Left out it is ``cpu`` for a model, ``auto`` for an artifact.
    ``image_size`` is the side in pixels at which a model is to work instead of its own (see
    ``digpt.sources.load_model``).

    Raises:
        BackendError: the backend is unknown, or cannot run this kind of spec; the message names those that can.
        SpecError, CheckpointError: as ``digpt.sources.load_model`` and ``digpt.artifact.verify_artifact`` raise them.
    """
    known = list(dict.fromkeys([*MODEL_BACKENDS, *ARTIFACT_BACKENDS]))
    if backend is not None and backend not in known:
        raise BackendError(f"Unknown backend {backend!r}; valid: {', '.join(known)}.{near_misses(backend, known)}")
    if image_size is not None and (Path(spec).is_dir() or spec.startswith(URLS)):
        raise BackendError(
            f"{spec} has the image size that it was exported or started with; give --image-size {image_size} to that "
            "command instead."
        )
    if spec.startswith(URLS):
        return _load_remote(spec, backend, threads, device)
    if Path(spec).is_dir():
        return _load_artifact(spec, backend, threads, device)
    if backend is not None and backend not in MODEL_BACKENDS:
        raise BackendError(
            f"The {backend} backend runs exported artifacts, and {spec} is a model; export it first: "
            f"python -m export {spec} --to {backend} --output DIR, then use DIR."
        )
    from digpt.sources import load_model

    return MODEL_BACKENDS[backend or "torch"](load_model(spec, image_size=image_size), threads, device or "cpu")


def _load_artifact(spec: str, backend: str | None, threads: int | None, device: str | None) -> Runtime:
    from digpt.manifest import read_manifest

    manifest = read_manifest(spec)
    held = manifest.get("engines", {})
    backend = manifest["backend"] if backend in (None, AUTO) else backend
    if backend not in held:
        way_out = (
            f"The {backend} backend runs models: give the checkpoint that it was exported from."
            if backend in MODEL_BACKENDS
            else f"Export one: python -m export CKPT --to {backend} --output DIR"
        )
        raise BackendError(f"{spec} holds no {backend} engine; it holds: {', '.join(held) or 'none'}. {way_out}")
    if backend not in ARTIFACT_BACKENDS:
        raise BackendError(f"{spec} was exported for {backend!r}, which this digpt cannot run. Upgrade digpt.")
    return ARTIFACT_BACKENDS[backend](spec, backend, threads, device or AUTO)
