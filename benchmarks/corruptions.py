"""What each corruption costs: milliseconds per image on one thread, averaged over the severities.

    python -m benchmarks.corruptions
    python -m benchmarks.corruptions --size 64 --images 8 --json

The image is made, not read; the last line is the cost of all 15 together. Compare figures of one run only.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import tyro
from PIL import Image

from digpt.corruptions import CORRUPTIONS, SEVERITIES, constants_set, corrupt


@dataclass(frozen=True)
class Config:
    """Corruption benchmark."""

    size: int = 224
    """Side of the square images, in pixels."""
    images: int = 5
    """Runs of each corruption and severity; the median counts."""
    json: bool = False
    """Print JSON instead of a table."""


def photograph(side: int) -> np.ndarray:
    """Smooth colours with fine grain, uint8 ``[side, side, 3]``."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((side, side), 3)
    return (np.asarray(coarse) + random.normal(0, 6, (side, side, 3))).clip(0, 255).astype(np.uint8)


def milliseconds(image: np.ndarray, corruption: str, severity: int, runs: int) -> float:
    """Median over the runs, after one that fills the caches (kernels, textures)."""
    corrupt(image, corruption, severity, key="warm")
    times = []
    for run in range(runs):
        start = time.perf_counter()
        corrupt(image, corruption, severity, key=str(run))
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    config = tyro.cli(Config, args=argv)
    cv2.setNumThreads(1)
    image = photograph(config.size)
    by_severity = {
        corruption: [milliseconds(image, corruption, severity, config.images) for severity in SEVERITIES]
        for corruption in CORRUPTIONS
    }
    means = {corruption: statistics.mean(values) for corruption, values in by_severity.items()}
    total = sum(means.values())
    if config.json:
        json.dump({"size": config.size, "milliseconds": means, "total": total}, sys.stdout, indent=2)
        print()
        return
    constants = constants_set(config.size, config.size)
    print(f"{config.size} px ({constants} constants), one thread; ms per image by severity, and their mean")
    for corruption, values in by_severity.items():
        print(f"  {corruption:18} {' '.join(f'{value:6.2f}' for value in values)}  {means[corruption]:7.2f}")
    print(f"  {'all 15':18} {' ' * 34}  {total:7.2f}")


if __name__ == "__main__":
    main()
