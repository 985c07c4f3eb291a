"""Corruptions made on the fly, as cells beside the clean one: 15 corruptions at 5 severities, ImageNet-C's own.

Such results are labelled ``on-the-fly``: corrupting in memory differs from ImageNet-C's files by several points on some
corruptions, so AlexNet's constants do not apply to them and only raw errors are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from digpt.corruptions import CORRUPTIONS, SEVERITIES, describe
from digpt.errors import ConfigError, near_misses
from digpt.resampling import BOOTSTRAP_RESAMPLES
from evaluate.compute import corrupted_side
from evaluate.suite import Cell, View

INTERVAL = {"method": "percentile bootstrap", "level": 0.95, "resamples": BOOTSTRAP_RESAMPLES}


@dataclass(frozen=True)
class Sweep:
    """Which corruptions at which severities, at the resolution of a model of ``size`` px; ``jpeg``: stored in between.

    Raises:
        ConfigError: an unknown corruption or severity.
    """

    size: int
    corruptions: tuple[str, ...] = CORRUPTIONS
    severities: tuple[int, ...] = SEVERITIES
    jpeg: bool = False

    def __post_init__(self) -> None:
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                close = near_misses(name, CORRUPTIONS)
                raise ConfigError(f"Unknown corruption {name!r}.{close} Valid: {', '.join(CORRUPTIONS)}.")
        wrong = [severity for severity in self.severities if severity not in SEVERITIES]
        if wrong or not self.severities or not self.corruptions:
            raise ConfigError("A sweep needs at least one corruption, and severities among 1, 2, 3, 4, 5.")

    def describe(self) -> dict[str, Any]:
        """JSON values for the protocol."""
        side = corrupted_side(self.size)
        names = {"corruptions": list(self.corruptions), "severities": list(self.severities)}
        return {"made": "on-the-fly", "side": side, **names, **describe(side, self.jpeg)}


def sweep_cells(clean: Cell, view: View, sweep: Sweep, seed: int = 0) -> Iterator[tuple[Cell, View]]:
    """The corrupted cells of ``clean`` and what is asked of each: what ``view`` asks of the clean one."""
    dataset = f"{view.dataset}-c-on-the-fly"
    for name in sweep.corruptions:
        for severity in sweep.severities:
            split = f"{name}/{severity}"
            cell = replace(
                clean,
                id=f"{dataset}/{split}",
                corruption=(name, severity),
                jpeg=sweep.jpeg,
                seed=seed,
                logits=True,
                embeddings=False,
            )
            asked = replace(
                view, dataset=dataset, split=split, cell=cell.id, corruption=(name, severity), clean=view.id
            )
            yield cell, asked
