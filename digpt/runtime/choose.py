"""``--backend auto`` for a model: times torch's variants on this machine and takes the fastest whose answers hold.

An artifact has made this choice at export, with more images and engines; this one is made anew at every start.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from digpt.data.emoji import EmojiSet
from digpt.errors import BackendError
from digpt.runtime.golden import row_cosine
from digpt.runtime.precision import THRESHOLDS
from digpt.runtime.timing import BATCHES, speed, take_turns, time_engines
from digpt.runtime.torch import TorchRuntime
from digpt.runtime.torch_bf16 import TorchBf16Runtime, TorchCompiledRuntime
from digpt.sources import Model

IMAGES = max(BATCHES)  # real images that the answers are compared on
PRODUCT = 512  # rows and columns of the matrices that show whether bfloat16 is worth a try


@dataclass(frozen=True)
class Tried:
    """One variant: its figures against torch float32, and why it is out (None for one that may be chosen)."""

    runtime: TorchRuntime
    cosine_median: float
    cosine_min: float
    timings: dict[str, float]

    @property
    def passed(self) -> bool:
        bounds = THRESHOLDS[self.runtime.info.precision]
        return self.cosine_median >= bounds.cosine_median and self.cosine_min >= bounds.cosine_min


def choose(
    model: Model,
    *,
    threads: int | None = None,
    device: str = "cpu",
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> TorchRuntime:
    """The fastest torch runtime of ``model`` among those within their precision's thresholds of float32.

    ``report`` gets the lines of the table. bfloat16 is tried only where its matrix product is faster than float32's.

    Raises:
        BackendError: as ``TorchRuntime`` for ``device`` and ``threads``.
    """
    runtimes: list[TorchRuntime] = []
    reduced = (TorchBf16Runtime, TorchCompiledRuntime)
    copies = [copy.deepcopy(model) for _ in reduced]  # a runtime changes its module
    runtimes.append(TorchRuntime(model, threads=threads, device=device))
    if bf16_gain(runtimes[0].device) <= 1:
        report("bfloat16 products are not faster than float32's on this machine: torch, without a comparison")
        return runtimes[0]
    for variant, own in zip(reduced, copies, strict=True):
        try:
            runtimes.append(variant(own, threads=threads, device=device))
        except BackendError as error:
            report(f"{variant.backend} is left out: {error}")
    tried = _compare(runtimes, _crops(model))
    chosen = max((entry for entry in tried if entry.passed), key=lambda entry: speed(entry.timings))
    for line in _table(tried, chosen):
        report(line)
    return chosen.runtime


def bf16_gain(device: torch.device) -> float:
    """How much faster one matrix product is in bfloat16 than in float32, the threads being as they are."""
    left = {
        dtype: torch.ones(PRODUCT, PRODUCT, dtype=dtype, device=device) for dtype in (torch.float32, torch.bfloat16)
    }

    def product(dtype: torch.dtype) -> Callable[[np.ndarray], np.ndarray]:
        return lambda batch: (left[dtype] @ left[dtype])[0, :1].float().cpu().numpy()  # its value is waited for

    times = take_turns({str(dtype): product(dtype) for dtype in left}, np.zeros(0))
    return times[str(torch.float32)] / max(times[str(torch.bfloat16)], 1e-3)


def _compare(runtimes: list[TorchRuntime], crops: np.ndarray) -> list[Tried]:
    expected = runtimes[0].embed(crops)
    timings = time_engines({runtime.info.backend: runtime.embed for runtime in runtimes}, crops)
    tried = []
    for runtime in runtimes:
        cosine = row_cosine(runtime.embed(crops), expected)
        times = timings[runtime.info.backend]
        tried.append(Tried(runtime, float(np.median(cosine)), float(cosine.min()), times))
    return tried


def _crops(model: Model) -> np.ndarray:
    images = EmojiSet.load().images("unseen")
    return np.stack([model.preprocess(images[index * len(images) // IMAGES].encoded) for index in range(IMAGES)])


def _table(tried: list[Tried], chosen: Tried) -> list[str]:
    lines = [f"{'backend':<20} {'cosine min':>11} {'ms, batch 1':>12} {'images/s, batch 16':>19} {'speed':>6}"]
    for entry in tried:
        times, relative = entry.timings, speed(entry.timings) / speed(tried[0].timings)
        verdict = "  chosen" if entry is chosen else "" if entry.passed else "  too far from float32"
        lines.append(
            f"{entry.runtime.info.backend:<20} {f'1 - {1 - entry.cosine_min:.1e}':>11} {times['batch_1_ms']:>12.2f} "
            f"{16_000 / times['batch_16_ms']:>19.1f} {relative:>6.2f}{verdict}"
        )
    return lines
