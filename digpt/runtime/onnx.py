"""Runs an exported ONNX artifact with onnxruntime: numpy in, numpy out, no torch in the process."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from digpt.errors import BackendError, InputError, MissingDependencyError
from digpt.runtime.artifact import Artifact, check_identity, open_artifact
from digpt.runtime.base import (
    Golden,
    check_images,
    check_pictures,
    no_logits,
    no_patch_tokens,
    no_pixels,
    no_text,
)

IDENTITY_KEY = "digpt.identity"
_ERROR = 3  # onnxruntime's severity; below it come notes about nodes and devices that say nothing to a user


class OnnxRuntime:
    """The ``onnx`` engine of an artifact directory.

    Args:
        directory: as ``python -m export`` wrote it; every file is compared with its recorded hash first.
        threads: intra-op threads, by default one for each CPU that this process may use.

    Raises:
        CheckpointError: a file, the format or what decides answers is not what was exported.
        BackendError: onnxruntime cannot load the engine.
    """

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise BackendError(f"threads={threads} is not a positive number.")
        # Left to itself onnxruntime pins threads to cores, which containers forbid with a line of noise per thread.
        threads = threads or available_cpus()
        artifact = open_artifact(Path(directory), "onnx")
        self._image = _checked_session(artifact, artifact.image, threads)
        self._text = None if artifact.text is None else _checked_session(artifact, artifact.text, threads)
        self._segment = None if artifact.segment is None else _checked_session(artifact, artifact.segment, threads)
        self._tokenizer = None if artifact.text is None else artifact.tokenizer()
        self.golden: Golden | None = artifact.golden
        self.info = artifact.info(
            providers=self._image.get_providers(), threads=threads, versions={"onnxruntime": _onnxruntime().__version__}
        )

    def embed(self, images: np.ndarray) -> np.ndarray:
        return self._run(self._image, "embedding", images)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        if self._text is None or self._tokenizer is None:
            raise no_text(self.info)
        return _first(self._text.run(["embedding"], {"tokens": self._tokenizer(texts)}))

    def logits(self, images: np.ndarray) -> np.ndarray:
        if self.info.head != "linear":
            raise no_logits(self.info)
        return self._run(self._image, "logits", images)

    def patch_tokens(self, images: np.ndarray) -> np.ndarray:
        if not self.info.patch_tokens:
            raise no_patch_tokens(self.info)
        return self._run(self._image, "patch_tokens", images)

    def pixel_logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[B,H,W,3]``, sides up to the segmenter's crop -> float32 ``[B,K,H,W]``.

        The graph takes whole crops: smaller pictures are padded on the right and below with the mean colour, in grey
        levels, and the logits are cut. Torch pads to the patch alone, so the two differ there, and agree on crops.

        Raises:
            InputError: a side beyond the crop, which sliding windows never have.
        """
        if self.info.head != "upernet":
            raise no_pixels(self.info)
        images, preprocess = check_pictures(images), self.info.preprocess
        (height, width), crop = images.shape[1:3], preprocess.size
        if max(height, width) > crop:
            raise InputError(
                f"{self.info.name} on onnx takes up to {crop} x {crop} pixels at once, not {width} x {height}: segment "
                f"in mode 'slide' with crop={crop}, or use the checkpoint on the torch backend."
            )
        padded = np.empty((len(images), crop, crop, 3), np.uint8)
        padded[:] = np.rint(255 * np.array(preprocess.mean))
        padded[:, :height, :width] = images
        return self._run(self._segment, "pixel_logits", padded)[:, :, :height, :width]

    def close(self) -> None:
        """Release the sessions; a closed runtime cannot be used again."""
        self._image = self._text = self._segment = None

    def _run(self, session: Any, output: str, images: np.ndarray) -> np.ndarray:
        if session is None:
            raise BackendError(f"{self.info.name} was closed; load it again.")
        return _first(session.run([output], {"images": check_images(images, self.info.preprocess.size)}))


def available_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first(outputs: list[Any]) -> np.ndarray:
    return np.asarray(outputs[0], dtype=np.float32)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "The onnx backend needs onnxruntime: pip install onnxruntime-gpu (Linux x86-64) or onnxruntime (elsewhere)."
        ) from error
    return onnxruntime


def _checked_session(artifact: Artifact, path: Path, threads: int) -> Any:
    """A session of a file that carries the identity which the manifest states."""
    session = _session(path, threads)
    check_identity(artifact, path, session.get_modelmeta().custom_metadata_map.get(IDENTITY_KEY))
    return session


def _session(path: Path, threads: int) -> Any:
    onnxruntime = _onnxruntime()
    onnxruntime.set_default_logger_severity(_ERROR)
    options = onnxruntime.SessionOptions()
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
