"""How reports show where a model comes from: a tree of the models it was made with, from the records of training.

    section("Lineage", tree({**provenance, "role": "emoji-tiny", "fingerprint": "sha256:..."}))

Records come from files of unknown origin: what they hold is shown as text, and circles end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from digpt.charts import element

MOST_PARENTS = 100  # links of a lineage
DEEPEST = 12


def tree(record: Mapping[str, Any]) -> Markup:
    """The model of ``record`` (a provenance with ``role`` and ``fingerprint``), and below it those it was made with."""
    return element("ul", _link(record, [MOST_PARENTS], 0), class_="tree")


def _link(link: Mapping[str, Any], budget: list[int], depth: int) -> Markup:
    """One model and, below it, those it was made with. ``budget`` ends circles, which a foreign file may hold."""
    budget[0] -= 1
    parents = link.get("parents")
    below: list[Markup] = []
    for parent in parents if isinstance(parents, list) else []:
        if isinstance(parent, dict) and budget[0] > 0 and depth < DEEPEST:
            below.append(_link(parent, budget, depth + 1))
    figures = link.get("figures")
    said = [text_of(link[key]) for key in ("command",) if link.get(key)]
    said += [f"{text_of(link['steps'])} steps"] if link.get("steps") is not None else []
    seconds = number(link.get("seconds"))
    said += [duration(seconds)] if seconds is not None else []
    said += [f"{name} {text_of(value)}" for name, value in figures.items()] if isinstance(figures, dict) else []
    said += [f"commit {text_of(link['commit'])}"] if link.get("commit") else []
    name = element("b", text_of(link.get("role", "parent")))
    mark = element("code", text_of(link["fingerprint"])) if link.get("fingerprint") else None
    about = element("div", " · ".join(said), class_="soft")
    return element("li", name, " ", mark, about, element("ul", *below) if below else None)


def number(value: Any) -> float | None:
    """``value`` as a float when it is a number (true and false are none)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def text_of(value: Any) -> str:
    """A value as JSON would show it, strings bare, cut when long."""
    if isinstance(value, str):
        shown = value
    else:
        try:
            shown = json.dumps(value, ensure_ascii=False, default=str)
        except (ValueError, RecursionError):  # a checkpoint may hold a circle
            shown = type(value).__name__
    return shown if len(shown) <= 300 else f"{shown[:300]} … ({len(shown):,} characters)"


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "unknown"
    return f"{int(seconds) // 3600:,}:{int(seconds) % 3600 // 60:02d}:{int(seconds) % 60:02d}"
