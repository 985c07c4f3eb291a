"""How fast engines are beside each other: they take turns, so that whatever else the machine does meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

BATCHES = (1, 16)
ROUNDS = 20
MIN_ROUNDS = 3
BUDGET_S = 0.5  # for each engine and batch size; slow engines get fewer rounds

Compute = Callable[[np.ndarray], np.ndarray]


def take_turns(computes: Mapping[str, Compute], batch: np.ndarray, least: int = MIN_ROUNDS) -> dict[str, float]:
    """Median milliseconds of ``least`` rounds and more that each of ``computes`` takes for ``batch``, once warm."""
    times: dict[str, list[float]] = {name: [] for name in computes}
    for compute in computes.values():
        compute(batch)
    started = time.perf_counter()
    for done in range(max(ROUNDS, least)):
        if done >= least and time.perf_counter() - started > BUDGET_S * len(computes):
            break
        for name, compute in computes.items():
            before = time.perf_counter()
            compute(batch)
            times[name].append(time.perf_counter() - before)
    return {name: round(1000 * float(np.median(values)), 3) for name, values in times.items()}


def time_engines(
    computes: Mapping[str, Compute], crops: np.ndarray, least: int = MIN_ROUNDS
) -> dict[str, dict[str, float]]:
    """``{name: {"batch_1_ms": ..., "batch_16_ms": ...}}`` for crops uint8 ``[n,H,W,3]``, repeated where too few."""
    found: dict[str, dict[str, float]] = {name: {} for name in computes}
    for size in BATCHES:
        for name, value in take_turns(computes, crops[np.arange(size) % len(crops)], least).items():
            found[name][f"batch_{size}_ms"] = value
    return found


def speed(timings: Mapping[str, float]) -> float:
    """Images a second: the geometric mean over the batch sizes, so that neither decides alone."""
    rates = [1000 * size / max(timings[f"batch_{size}_ms"], 1e-3) for size in BATCHES]
    return float(np.exp(np.mean(np.log(rates))))
