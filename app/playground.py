"""A picture made worse by one of ImageNet-C's corruptions, and what the model says to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from app.handlers import crop, parse_labels, scores
from app.patches import enlarge
from digpt.corruptions import corrupt
from digpt.engine import Engine

KEY = "demo"  # what the noise depends on: the same picture is always corrupted alike


@dataclass(frozen=True, eq=False)
class Corrupted:
    """The corrupted crop, uint8 ``[H,W,3]``, and ``{label: probability}`` of it and of the untouched one."""

    picture: np.ndarray
    scores: dict[str, float]
    untouched: dict[str, float]

    def shown(self) -> np.ndarray:
        """The crop, enlarged without smoothing: its pixels are what the model gets."""
        return enlarge(self.picture, Image.Resampling.NEAREST)

    def sentence(self) -> str:
        """Whether the answer held, as Markdown."""
        (now, p), (before, q) = (next(iter(found.items())) for found in (self.scores, self.untouched))
        verdict = "Still" if now == before else "No longer"
        return (
            f"{verdict} **{_plain(before)}**: {p:.0%} for {_plain(now)}; untouched it was {q:.0%} for {_plain(before)}."
        )


def play(engine: Engine, path: str | None, labels: str, corruption: str, severity: float) -> Corrupted:
    """Corrupt the file at ``path``, as the model crops it, and classify it; severity 0 leaves it as it is.

    Raises:
        InputError: there is no picture, or it is none.
    """
    clean = crop(engine, path)
    picture = corrupt(clean, corruption, int(severity), key=KEY) if severity else clean
    names = parse_labels(labels) or None
    return Corrupted(picture, scores(engine, picture, names, None, 5), scores(engine, clean, names, None, 1))


def _plain(label: str) -> str:
    """A label as Markdown that shows it as it was typed."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]()<>#+-.!|~$" else letter for letter in label)
