"""The error of two engines on the same images: what `evaluate.drift` finds and a passport shows."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict


@dataclass(frozen=True)
class Shift:
    """The error of one cell on both engines, or the mean error of cells (``split`` is a corruption, or ``mean``).

    Errors and their ``difference`` are fractions; ``ci95`` is its paired interval. ``changed`` counts the ``n``
    predictions that are another class.
    """

    __pydantic_config__ = ConfigDict(extra="ignore")

    dataset: str
    split: str
    n: int
    reference: float
    other: float
    difference: float
    ci95: tuple[float, float]
    changed: int

    @property
    def id(self) -> str:
        return f"{self.dataset}/{self.split}"

    @property
    def points(self) -> float:
        return 100 * self.difference

    @property
    def beyond(self) -> float:
        """Points that lie between zero and the interval; 0 where it contains zero."""
        return max(0.0, 100 * self.ci95[0], -100 * self.ci95[1])

    @property
    def reach(self) -> float:
        """Points from zero to the interval's farther end: no larger shift is compatible with what was seen."""
        return 100 * max(abs(end) for end in self.ci95)
