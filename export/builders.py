"""How each target is built: it writes its engine's files and returns the engine's entry of the manifest.

The fp32 ONNX files are what several engines run; they are built once, by whichever target comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from digpt.errors import BackendError
from digpt.runtime.openvino import supports_bf16
from export import build_onnx
from export.job import Job

ROLES = ("image", "text", "segment")  # the entries of an engine that name files


def _build_onnx(job: Job, directory: Path) -> dict[str, Any]:
    """The ONNX files, unless an earlier target built them; every engine that reads them states what it is."""
    entry: dict[str, Any] = {"precision": "fp32", "image": "image.onnx", "text": None, "outputs": list(job.outputs)}
    segmenter, size = job.model.module.segmenter, job.model.preprocess.size
    if job.manifest["text"] is not None and job.model.text is not None:
        entry["text"] = "text.onnx"
    if segmenter is not None:
        entry["segment"] = "segment.onnx"
    if not (directory / entry["image"]).exists():
        build_onnx.build_image(
            job.model.module, directory / entry["image"], size=size, outputs=job.outputs, identity=job.identity
        )
        if entry["text"] and job.model.text is not None:
            build_onnx.build_text(job.model.text, directory / entry["text"], identity=job.identity)
        if segmenter is not None:
            build_onnx.build_segmenter(segmenter, directory / entry["segment"], identity=job.identity)
    return entry


def _build_openvino_bf16(job: Job, directory: Path) -> dict[str, Any]:
    """The same files as float32: OpenVINO rounds to bfloat16 when it compiles them."""
    return _build_onnx(job, directory) | {"precision": "bf16"}


BUILDERS: dict[str, Callable[[Job, Path], dict[str, Any]]] = {
    "onnx": _build_onnx,
    "openvino": _build_onnx,
    "openvino-bf16": _build_openvino_bf16,
}


def check_machine(target: str) -> None:
    """Raise BackendError, before anything is computed, when this machine cannot build or run ``target``."""
    if target == "openvino-bf16" and not supports_bf16():
        raise BackendError(
            "--to openvino-bf16 needs a CPU with bfloat16 instructions (AVX512-BF16, AMX); leave it out."
        )


def default_targets() -> tuple[str, ...]:
    """What this machine can run at good speed, in the order in which equals are preferred."""
    return ("onnx", "openvino", *(("openvino-bf16",) if supports_bf16() else ()))


def engine_files(directory: Path, entry: dict[str, Any]) -> set[Path]:
    """The files of one engine below ``directory``, with the weights that a large ONNX file keeps beside it."""
    names = [entry[role] for role in ROLES if entry.get(role)]
    return {path for path in directory.iterdir() if any(path.name in (name, f"{name}.data") for name in names)}
