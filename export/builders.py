"""How each target is built: it writes its engine's files and returns the engine's entry of the manifest.

The fp32 ONNX files are what several engines run; they are built once, by whichever target comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from digpt.errors import BackendError
from digpt.model import InferenceModel, TextModel
from digpt.runtime.aoti import cpu_instructions
from digpt.runtime.openvino import supports_bf16
from digpt.runtime.tensorrt import built_on
from digpt.runtime.torch_bf16 import check_compiler
from digpt.segmentation import Segmenter
from export import build_aoti, build_int8, build_onnx
from export.build_tensorrt import TensorrtGraphs
from export.job import Job, calibration_crops

Builder = Callable[[Job, Path], dict[str, Any]]

ROLES = ("image", "text", "segment")  # the entries of an engine that name files


class Graphs(Protocol):
    """What writes the graphs of a model as files of one kind: ``build_onnx``, ``build_aoti``, ``TensorrtGraphs``."""

    def build_image(
        self, module: InferenceModel, path: Path, *, size: int, outputs: tuple[str, ...], identity: str
    ) -> None: ...
    def build_text(self, text: TextModel, path: Path, *, identity: str) -> None: ...
    def build_segmenter(self, segmenter: Segmenter, path: Path, *, identity: str) -> None: ...


def _build(graphs: Graphs, suffix: str, job: Job, directory: Path) -> dict[str, Any]:
    """Write every graph that the model has, unless an earlier target did; float32."""
    segmenter = job.model.module.segmenter
    text = job.model.text if job.manifest["text"] is not None else None
    present = {"image": True, "text": text is not None, "segment": segmenter is not None}
    files = {role: f"{role}{suffix}" if there else None for role, there in present.items()}
    image = directory / f"image{suffix}"
    if not image.exists():
        size = job.model.preprocess.size
        graphs.build_image(job.model.module, image, size=size, outputs=job.outputs, identity=job.identity)
        if text is not None:
            graphs.build_text(text, directory / f"text{suffix}", identity=job.identity)
        if segmenter is not None:
            graphs.build_segmenter(segmenter, directory / f"segment{suffix}", identity=job.identity)
    return {"precision": "fp32", **files, "outputs": list(job.outputs)}


def _build_onnx(job: Job, directory: Path) -> dict[str, Any]:
    return _build(build_onnx, ".onnx", job, directory)


def _build_aoti(job: Job, directory: Path) -> dict[str, Any]:
    """With the instructions that the compiled code may use: a CPU that lacks one must not run it."""
    return _build(build_aoti, ".pt2", job, directory) | {"cpu": list(cpu_instructions())}


def _build_openvino_bf16(job: Job, directory: Path) -> dict[str, Any]:
    """The same files as float32: OpenVINO rounds to bfloat16 when it compiles them."""
    return _build_onnx(job, directory) | {"precision": "bf16"}


def _build_int8(job: Job, directory: Path) -> dict[str, Any]:
    """From the float32 files, which are dropped in the end where no other engine reads them; once for all."""
    entry = _build_onnx(job, directory)
    crops, apart = calibration_crops(job)
    for role in ("image", "segment"):
        if entry[role] is not None:
            source, entry[role] = directory / entry[role], f"{role}-int8.onnx"
            if not (directory / entry[role]).exists():
                build_int8.quantise(source, directory / entry[role], crops, identity=job.identity)
    calibration = {"images": len(crops), "method": f"percentile {build_int8.PERCENTILE}", "apart_from_parity": apart}
    return entry | {"precision": "int8", "calibration": calibration}


def _build_tensorrt(precision: str) -> Builder:
    """Engines of one precision, with the GPU and the TensorRT that alone can run them."""

    def build(job: Job, directory: Path) -> dict[str, Any]:
        entry = _build(TensorrtGraphs(precision), f"-tensorrt-{precision}.pt2", job, directory)
        return entry | {"precision": precision, "built_on": built_on()}

    return build


def explain(job: Job, target: str, directory: Path) -> tuple[str, ...]:
    """What can be said about why ``target`` was refused, its files being still there."""
    if not target.endswith("-int8"):
        return ()
    return tuple(build_int8.worst_layers(directory / "image.onnx", directory / "image-int8.onnx", job.crops))


BUILDERS: dict[str, Builder] = {
    "onnx": _build_onnx,
    "onnx-int8": _build_int8,
    "openvino": _build_onnx,
    "openvino-bf16": _build_openvino_bf16,
    "openvino-int8": _build_int8,
    "aoti": _build_aoti,
    "tensorrt": _build_tensorrt("fp32"),
    "tensorrt-fp16": _build_tensorrt("fp16"),
    "tensorrt-bf16": _build_tensorrt("bf16"),
}


def check_machine(target: str) -> None:
    """Raise BackendError, before anything is computed, when this machine cannot build or run ``target``.

    MissingDependencyError where the library for it is not installed.
    """
    if target == "openvino-bf16" and not supports_bf16():
        raise BackendError(
            "--to openvino-bf16 needs a CPU with bfloat16 instructions (AVX512-BF16, AMX); leave it out."
        )
    if target == "aoti":
        check_compiler("--to aoti")
    if target.startswith("tensorrt"):
        built_on()


def default_targets() -> tuple[str, ...]:
    """What this machine can run at good speed, in the order in which equals are preferred."""
    bf16 = ("openvino-bf16",) if supports_bf16() else ()
    int8 = ("openvino-int8",) if any("vnni" in name for name in cpu_instructions()) else ()
    return ("onnx", "openvino", *bf16, *int8)


def engine_files(directory: Path, entry: dict[str, Any]) -> set[Path]:
    """The files of one engine below ``directory``, with the weights that a large ONNX file keeps beside it."""
    names = [entry[role] for role in ROLES if entry.get(role)]
    return {path for path in directory.iterdir() if any(path.name in (name, f"{name}.data") for name in names)}
