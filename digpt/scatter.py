"""A scatter chart of two accuracies on logit axes, in the manner of `digpt.charts`: HTML and inline SVG, no library.

    figure = scatter_chart("IN-R", [Dots("standard models", points)], line=[(0.5, 0.2), (0.8, 0.4)])
    page = document("Title", style(), figure)

The line stretches with the page in an SVG; dots and labels are HTML over it, so that they keep their shape and size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from digpt.charts import color, element, percent

_VIEW = 1000  # the SVG's own coordinates run from 0 to this, in both directions
_TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
_MOST_TICKS = 8
_LONGEST = 28  # letters of a label; the whole name appears when the point is pointed at
_MARGIN = 0.04  # of the range, on every side
_STYLE = """
.scatter{position:relative;height:340px;margin:12px 12px 46px 52px}
.scatter svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.scatter line,.scatter path{vector-effect:non-scaling-stroke;fill:none}.scatter .grid{stroke:var(--grid)}
.scatter .fit{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:5 4}.scatter .whisker{stroke-width:1.5}
.scatter span{position:absolute;font-size:12px;line-height:1;color:var(--soft);white-space:nowrap}
.scatter .y{right:calc(100% + 8px);transform:translateY(-50%)}
.scatter .x{top:calc(100% + 9px);transform:translateX(-50%)}
.scatter .title{top:calc(100% + 28px);left:50%;transform:translateX(-50%)}
.scatter i{position:absolute;width:5px;height:5px;margin:-2.5px 0 0 -2.5px;border-radius:50%;background:var(--c);
opacity:.4}.scatter i.large{width:10px;height:10px;margin:-5px 0 0 -5px;opacity:1;box-shadow:0 0 0 1.5px var(--card)}
.scatter i.hollow{width:9px;height:9px;margin:-4.5px 0 0 -4.5px;opacity:1;background:none;border:2px solid var(--c)}
.scatter .name{color:var(--ink);transform:translate(9px,-50%)}.scatter .name.left{transform:translate(-100%,-50%);
padding-right:9px}
"""


@dataclass(frozen=True)
class Dot:
    """One point; accuracies and the ends of their intervals are fractions. ``name`` appears when it is pointed at."""

    x: float
    y: float
    name: str
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Dots:
    """Points of one kind. ``look``: small and pale, hollow, or large; ``labelled`` writes the names beside them."""

    name: str
    dots: Sequence[Dot]
    color: str = ""
    look: str = ""  # "", "hollow" or "large"
    labelled: bool = False


@dataclass(frozen=True)
class LogitAxis:
    """A range on the logit scale (``low`` and ``high`` are logits) and its ticks, fractions."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def around(cls, values: Sequence[float]) -> LogitAxis:
        """An axis with some room around ``values``, fractions between 0 and 1."""
        ends = logit(min(values)), logit(max(values))
        room = max(_MARGIN * (ends[1] - ends[0]), 0.05)
        low, high = ends[0] - room, ends[1] + room
        within = [tick for tick in _TICKS if low <= logit(tick) <= high]
        if len(within) < 2:  # a narrow range: whole percents
            within = [n / 100 for n in range(1, 100) if low <= logit(n / 100) <= high]
        return cls(low, high, tuple(within[:: -(-len(within) // _MOST_TICKS) or 1]))

    def holds(self, value: float) -> bool:
        """Whether a fraction lies between the ends."""
        return 0 < value < 1 and self.low <= logit(value) <= self.high

    def at(self, value: float) -> float:
        """Where a fraction lies between the ends, 0 to 1 within them; 0 and 1 are drawn at the ends."""
        if value <= 0:
            return 0.0
        if value >= 1:
            return 1.0
        return min(max((logit(value) - self.low) / (self.high - self.low), 0.0), 1.0)


def logit(value: float) -> float:
    """``log(p / (1 - p))`` of a fraction between 0 and 1."""
    return math.log(value / (1 - value))


def style() -> Markup:
    """The style sheet of scatter charts, to be put into a page once."""
    return element("style", Markup(_STYLE))


def scatter_chart(
    title: str,
    groups: Sequence[Dots],
    *,
    line: Sequence[tuple[float, float]] = (),
    line_name: str = "",
    x_label: str = "",
    note: str = "",
) -> Markup:
    """Points on logit axes, later groups over earlier ones; ``line`` is drawn dashed through those of its points that
    lie within the chart.

    Points with a coordinate outside 0 to 1, both excluded, are left out. Returns an empty string when none is left.
    """
    kept = [(group, [dot for dot in group.dots if 0 < dot.x < 1 and 0 < dot.y < 1]) for group in groups]
    kept = [(group, dots) for group, dots in kept if dots]
    if not kept:
        return Markup("")
    drawn = [dot for _, dots in kept for dot in dots]
    across = LogitAxis.around([x for dot in drawn for x in (dot.x, *(dot.x_interval or ())) if 0 < x < 1])
    up = LogitAxis.around([y for dot in drawn for y in (dot.y, *(dot.y_interval or ())) if 0 < y < 1])
    paints = [group.color or color(index) for index, (group, _) in enumerate(kept)]
    shapes = [_rule(0, up.at(tick), 1, up.at(tick)) for tick in up.ticks]
    shapes += [_rule(across.at(tick), 0, across.at(tick), 1) for tick in across.ticks]
    if line:
        shapes.append(_polyline(line, across, up))
    over: list[Markup] = []
    for (group, dots), paint in zip(kept, paints, strict=True):
        for dot in dots:
            shapes += _whiskers(dot, across, up, paint)
            over += _dot(dot, group, across, up, paint)
    spoken = ", ".join(f"{dot.name} {percent(dot.y)}" for group, dots in kept if group.labelled for dot in dots)
    return element(
        "figure",
        element("figcaption", element("b", title), element("span", note, class_="note") if note else None),
        _legend(kept, paints, line_name if line else ""),
        element(
            "div",
            element("svg", *shapes, viewBox=f"0 0 {_VIEW} {_VIEW}", preserveAspectRatio="none", aria_hidden="true"),
            *over,
            *(_text("y", _percent(tick), f"top:{100 - 100 * up.at(tick):.2f}%") for tick in up.ticks),
            *(_text("x", _percent(tick), f"left:{100 * across.at(tick):.2f}%") for tick in across.ticks),
            element("span", x_label, class_="title") if x_label else None,
            class_="scatter",
            role="img",
            aria_label=f"{title}: {spoken}" if spoken else title,
        ),
    )


def _legend(kept: Sequence[tuple[Dots, Sequence[Dot]]], paints: Sequence[str], line_name: str) -> Markup:
    entries = [
        element("li", element("i", style=f"--c:{paint}"), group.name)
        for (group, _), paint in zip(kept, paints, strict=True)
    ]
    if line_name:
        entries.append(element("li", element("i", class_="dashed", style="--c:var(--soft)"), line_name))
    return element("ul", *entries, class_="legend")


def _dot(dot: Dot, group: Dots, across: LogitAxis, up: LogitAxis, paint: str) -> list[Markup]:
    left, top = 100 * across.at(dot.x), 100 - 100 * up.at(dot.y)
    place = f"left:{left:.2f}%;top:{top:.2f}%"
    told = f"{dot.name}: {percent(dot.x)}, {percent(dot.y)}"
    parts = [element("i", title=told, class_=group.look or None, style=f"{place};--c:{paint}")]
    if group.labelled:
        shown = dot.name if len(dot.name) <= _LONGEST else f"{dot.name[: _LONGEST - 1]}…"
        parts.append(_text("name left" if left > 45 else "name", shown, place))
    return parts


def _whiskers(dot: Dot, across: LogitAxis, up: LogitAxis, paint: str) -> list[Markup]:
    x, y = across.at(dot.x), up.at(dot.y)
    found = []
    if dot.x_interval:
        found.append(_rule(across.at(dot.x_interval[0]), y, across.at(dot.x_interval[1]), y, "whisker", paint))
    if dot.y_interval:
        found.append(_rule(x, up.at(dot.y_interval[0]), x, up.at(dot.y_interval[1]), "whisker", paint))
    return found


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str = "grid", paint: str = "") -> Markup:
    places = {"x1": x1, "y1": 1 - y1, "x2": x2, "y2": 1 - y2}
    drawn = {name: f"{_VIEW * value:.1f}" for name, value in places.items()}
    return element("line", **drawn, class_=kind, style=f"stroke:{paint}" if paint else None)


def _polyline(line: Sequence[tuple[float, float]], across: LogitAxis, up: LogitAxis) -> Markup:
    """What lies within both axes: a point moved to an end would bend the line."""
    within = [(x, y) for x, y in line if across.holds(x) and up.holds(y)]
    points = [f"{_VIEW * across.at(x):.1f} {_VIEW * (1 - up.at(y)):.1f}" for x, y in within]
    return element("path", d="M" + "L".join(points), class_="fit") if len(points) > 1 else Markup("")


def _percent(tick: float) -> str:
    return f"{100 * tick:g} %"


def _text(kind: str, text: str, place: str) -> Markup:
    return element("span", text, class_=kind, style=place)
