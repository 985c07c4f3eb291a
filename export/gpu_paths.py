"""The ways of computing a model on a GPU, and what ``export.gpu_check`` finds out about one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from digpt.runtime import load_runtime
from digpt.runtime.artifact import seal_manifest
from digpt.runtime.base import Runtime
from digpt.runtime.precision import GOLDEN_TOLERANCE
from digpt.runtime.timing import take_turns
from export.builders import BUILDERS, check_machine
from export.job import Job, load_job
from export.parity import measure

BATCHES = (1, 16, 64)
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # of a weight


@dataclass(frozen=True)
class GpuPath:
    """One way: its precision, and how a runtime of it is made from a job in an empty directory."""

    precision: str
    open: Callable[[Job, Path], Runtime]


@dataclass(frozen=True)
class Figures:
    """What was found about a path. ``faults`` are sentences; one without any has passed.

    ``providers`` is what really computes, with the precision that was read back from an engine. ``images_per_second``
    is by batch size. ``planned_mb`` and ``peak_mb`` are GPU memory in MB (10^6 bytes), at the largest batch.
    """

    providers: tuple[str, ...]
    precision: str
    cosine_median: float
    cosine_min: float
    agreement: float | None
    images_per_second: dict[str, float]
    planned_mb: float
    peak_mb: float
    faults: tuple[str, ...]


def examine(spec: str, path: GpuPath, directory: Path, *, parity_images: int) -> Figures:
    """Compare ``path`` with torch float32 on the CPU on real images, time it, and weigh it; needs a process of its own.

    Raises:
        DigptError: the model cannot be read, or the path cannot be built or run here.
        MissingDependencyError: a library for it is not installed.
    """
    job = load_job(
        spec, directory, threads=None, images=None, parity_images=parity_images, text=True, patch_tokens=False
    )
    before = _used_bytes()
    runtime = path.open(job, directory)
    try:
        batches = {size: job.crops[np.arange(size) % len(job.crops)] for size in BATCHES}
        rates = {str(n): 1000 * n / max(take_turns({"": runtime.embed}, rows)[""], 1e-3) for n, rows in batches.items()}
        peak = _used_bytes() - before  # allocators keep what they took for the largest batch
        parity = measure(job.reference, runtime, job.crops, job.labels, path.precision)
        return Figures(
            providers=runtime.info.providers,
            precision=runtime.info.precision,
            cosine_median=parity.cosine_median,
            cosine_min=parity.cosine_min,
            agreement=parity.agreement if parity.agreement is not None else parity.pixel_agreement,
            images_per_second={size: round(rate, 1) for size, rate in rates.items()},
            planned_mb=round(planned_bytes(job, path.precision, max(BATCHES)) / 1e6, 1),
            peak_mb=round(peak / 1e6, 1),
            faults=parity.faults,
        )
    finally:
        runtime.close()


def planned_bytes(job: Job, precision: str, batch: int) -> float:
    """What computing ``batch`` embeddings should take: all weights, and the largest layer's float32 input and output.

    Without the CUDA context, the libraries' workspaces and what a residual keeps alive beside that layer.
    """
    modules = [job.model.module, *([job.model.text.module] if job.model.text is not None else [])]
    weights = sum(parameter.numel() for module in modules for parameter in module.parameters())
    largest = 0

    def note(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal largest
        tensors = [value for value in (*inputs, output) if isinstance(value, torch.Tensor)]
        largest = max(largest, sum(4 * tensor.numel() for tensor in tensors))

    hooks = [layer.register_forward_hook(note) for layer in job.model.module.modules() if not any(layer.children())]
    try:
        job.reference.embed(job.crops[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return BYTES[precision] * weights + batch * largest


def _used_bytes() -> int:
    """Bytes of the GPU's memory in use, by all processes: nothing else should run there. 0 where there is no GPU."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


def _torch(backend: str) -> Callable[[Job, Path], Runtime]:
    return lambda job, directory: load_runtime(job.model.spec, backend, device="cuda")


def _engine(target: str, device: str) -> Callable[[Job, Path], Runtime]:
    """Build ``target`` as ``python -m export`` does, and load it on ``device``."""

    def open_(job: Job, directory: Path) -> Runtime:
        check_machine(target)
        entry = BUILDERS[target](job, directory)
        entry["tolerance"] = GOLDEN_TOLERANCE[entry["precision"]]
        chosen = {"engines": {target: entry}, "backend": target, "precision": entry["precision"]}
        seal_manifest(directory, {**job.manifest, **chosen})
        torch.cuda.empty_cache()  # what building took is not the engine's; without a GPU it does nothing
        return load_runtime(str(directory), target, device=device)

    return open_


PATHS = {
    "torch": GpuPath("fp32", _torch("torch")),
    "torch-bf16": GpuPath("bf16", _torch("torch-bf16")),
    "torch-compiled-bf16": GpuPath("bf16", _torch("torch-compiled-bf16")),
    "onnx on cuda": GpuPath("fp32", _engine("onnx", "cuda")),
    "onnx on tensorrt": GpuPath("fp32", _engine("onnx", "tensorrt")),
    "tensorrt": GpuPath("fp32", _engine("tensorrt", "cuda")),
    "tensorrt-fp16": GpuPath("fp16", _engine("tensorrt-fp16", "cuda")),
    "tensorrt-bf16": GpuPath("bf16", _engine("tensorrt-bf16", "cuda")),
}
