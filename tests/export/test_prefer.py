"""Which of the engines that pass an artifact runs on."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from export.pipeline import EngineOutcome, prefer


@dataclass(frozen=True)
class Timed:
    target: str
    parity: Any
    timings: dict[str, float]


def engine(precision: str, images_per_second: float) -> EngineOutcome:
    timings = {f"batch_{size}_ms": 1000 * size / images_per_second for size in (1, 16)}
    return cast(EngineOutcome, Timed(precision, SimpleNamespace(precision=precision), timings))


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ({"fp32": 100.0, "bf16": 200.0, "int8": 300.0}, "int8"),
        ({"fp32": 100.0, "bf16": 290.0, "int8": 300.0}, "bf16"),  # as good as equally fast, and nearer to torch
        ({"fp32": 295.0, "bf16": 290.0, "int8": 300.0}, "fp32"),
        ({"fp32": 100.0, "bf16": 269.0, "int8": 300.0}, "int8"),
    ],
)
def test_the_fastest_or_one_as_fast_and_more_exact(speeds: dict[str, float], chosen: str) -> None:
    assert prefer([engine(precision, speed) for precision, speed in speeds.items()]).target == chosen


def test_equal_precision_goes_by_speed() -> None:
    slower, faster = engine("bf16", 280.0), engine("bf16", 300.0)
    assert prefer([slower, faster]) is faster
