"""Charts for reports: HTML and inline SVG without a plotting library, readable at any width, in light and dark.

The curves live in an SVG that stretches with the page; ticks and labels are HTML beside it, so that text keeps its
size on a phone. `digpt.report` holds the style sheet and the script (crosshair, tooltip) they rely on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
from markupsafe import Markup, escape

BUCKETS = 300  # points per curve; a longer series shows the mean of each bucket on a band from minimum to maximum
LOG_FROM = 100.0  # a chart whose maximum is this many times its median gets a logarithmic axis
HUGE = 1e100  # values beyond are left out, as NaN is: their differences overflow
TINY = 1e-100  # values below are zero to an axis: their quotients underflow
_VIEW = 1000  # the SVG's own coordinates run from 0 to this, in both directions
_PALETTE = 8  # colours in the style sheet, --s0 to --s7

Format = Literal["number", "percent"]


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """One HTML element. Children and attribute values that are not ``Markup`` are escaped.

    ``class_`` becomes ``class``, other underscores become hyphens; None and False leave an attribute out, True writes
    it without a value.
    """
    parts = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        parts.append(Markup(" {}").format(name) if value is True else Markup(' {}="{}"').format(name, value))
    inside = Markup("").join(escape(child) for child in children if child is not None)
    if tag in ("line", "path", "meta", "input", "img"):
        return Markup("<{}{}/>" if tag in ("line", "path") else "<{}{}>").format(tag, Markup("").join(parts))
    return Markup("<{0}{1}>{2}</{0}>").format(tag, Markup("").join(parts), inside)


def color(index: int) -> str:
    """The CSS colour of series ``index``."""
    return f"var(--s{index % _PALETTE})"


def ramp(index: int, count: int) -> str:
    """The CSS colour of item ``index`` of ``count`` that have an order, such as the steps of a sequence."""
    share = round(100 * index / max(count - 1, 1))
    return f"color-mix(in oklab, var(--ramp1) {share}%, var(--ramp0))"


def number(value: float) -> str:
    """Four significant digits, thousands separated: ``0.8421``, ``12,800``, ``1.5e-05``."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def percent(value: float) -> str:
    """A fraction in percent with one decimal: ``23.5 %``."""
    return f"{100 * value:.1f} %"


def formatted(value: float, kind: Format) -> str:
    """``value`` as ``kind``."""
    return percent(value) if kind == "percent" else number(value)


@dataclass(frozen=True)
class Series:
    """One curve. ``color`` is a CSS colour, empty for the next of the palette; only finite values are drawn."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Curve:
    """A series as drawn: per point the x, the mean, and the smallest and largest value behind it."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def downsample(x: Sequence[float], y: Sequence[float], buckets: int = BUCKETS) -> Curve:
    """Sort by x, leave out what is not finite, and average neighbours down to ``buckets`` points.

    No extreme is lost: ``low`` and ``high`` hold each bucket's minimum and maximum.
    """
    points_x, points_y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    kept = (np.abs(points_x) < HUGE) & (np.abs(points_y) < HUGE)
    order = np.argsort(points_x[kept], kind="stable")
    points_x, points_y = points_x[kept][order], points_y[kept][order]
    if len(points_x) <= buckets:
        values = points_y.tolist()
        return Curve(points_x.tolist(), values, values, values)
    starts = np.arange(buckets) * len(points_x) // buckets
    sizes = np.diff(starts, append=len(points_x))
    xs, means = (np.add.reduceat(points, starts) / sizes for points in (points_x, points_y))
    low, high = np.minimum.reduceat(points_y, starts), np.maximum.reduceat(points_y, starts)
    return Curve(xs.tolist(), means.tolist(), low.tolist(), high.tolist())


def _drawable(value: float) -> bool:
    return abs(value) < HUGE


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten apart) whose first and last enclose the range."""
    low, high = _widened(low, high)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, with room on both sides where its ends cannot be told apart."""
    size = max(abs(low), abs(high))
    if high - low > max(1e-9 * size, TINY):
        return low, high
    return (low - size / 2, high + size / 2) if size > TINY else (0.0, 1.0)


@dataclass(frozen=True)
class Axis:
    """A range in data, its ticks, and whether equal factors (not differences) are equally far apart."""

    low: float
    high: float
    ticks: list[float]
    log: bool = False

    @classmethod
    def around(cls, values: Sequence[float]) -> Axis:
        """A vertical axis: round ends, zero where it is near, logarithmic where one spike would flatten the rest."""
        low, high = min(values), max(values)
        if low > TINY and high > LOG_FROM * median(values):
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            return cls(10.0 ** powers[0], 10.0 ** powers[-1], [10.0**p for p in powers[:: len(powers) // 6 + 1]], True)
        if 0 < low <= high / 3:
            low = 0.0
        marks = ticks(low, high)
        return cls(marks[0], marks[-1], marks)

    def at(self, value: float) -> float:
        """Where ``value`` lies between the ends, 0 to 1."""
        if self.log:
            return math.log10(value / self.low) / math.log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    kind: Format = "number",
    marks: Iterable[tuple[float, str]] = (),
) -> Markup:
    """Curves over one horizontal axis; ``marks`` are vertical lines ``(x, label)`` for events.

    Returns an empty string when no series has a value that can be drawn.
    """
    curves = [(s, downsample(s.x, s.y)) for s in series]
    colors = [s.color or color(i) for i, s in enumerate(series)]
    drawn = [(s, c, paint) for (s, c), paint in zip(curves, colors, strict=True) if c.x]
    if not drawn:
        return Markup("")
    xs = [x for _, c, _ in drawn for x in (c.x[0], c.x[-1])]
    low, high = _widened(min(xs), max(xs))
    across = Axis(low, high, [tick for tick in ticks(low, high) if low <= tick <= high])
    up = Axis.around([y for _, c, _ in drawn for y in (*c.low, *c.high)])
    missing = sum(int(np.sum(~(np.abs(np.asarray(s.y, dtype=float)) < HUGE))) for s in series)
    notes = ["logarithmic"] * up.log + [f"{missing} values not finite"] * (missing > 0)
    shapes = [
        *(_rule(0, _VIEW * (1 - up.at(t)), _VIEW, _VIEW * (1 - up.at(t)), "grid") for t in up.ticks),
        *(_mark(_VIEW * across.at(x), text) for x, text in marks if low <= x <= high),
        *(_band(c, across, up, paint) for _, c, paint in drawn),
        *(_curve(c, across, up, paint, s.dashed) for s, c, paint in drawn),
    ]
    legend = [
        element("li", element("i", style=f"--c:{paint}", class_="dashed" if s.dashed else None), s.name)
        for s, _, paint in drawn
    ]
    few = len(across.ticks) <= 4
    below = [(tick, "x" if few or i % 2 == 0 else "x minor") for i, tick in enumerate(across.ticks)]
    large = across.high - across.low >= 5000
    return element(
        "figure",
        element("figcaption", element("b", title), *(element("span", note, class_="note") for note in notes)),
        element("ul", *legend, class_="legend") if len(drawn) > 1 or drawn[0][0].name != title else None,
        element(
            "div",
            element("svg", *shapes, viewBox=f"0 0 {_VIEW} {_VIEW}", preserveAspectRatio="none", aria_hidden="true"),
            *(_label("y", _tick(t, up, kind), f"top:{100 - 100 * up.at(t):.2f}%") for t in up.ticks),
            *(_label(style, short(t) if large else number(t), f"left:{100 * across.at(t):.2f}%") for t, style in below),
            class_="plot",
            role="img",
            aria_label=f"{title}: " + "; ".join(_spoken(s.name, c, kind) for s, c, _ in drawn),
            data_series=_embedded(drawn),
            data_range=json.dumps([across.low, across.high]),
            data_kind=kind,
            data_label=x_label,
        ),
        class_="chart",
    )


def _label(side: str, text: str, place: str) -> Markup:
    return element("span", text, class_=side, style=place)


def _spoken(name: str, curve: Curve, kind: Format) -> str:
    first, last = formatted(curve.mean[0], kind), formatted(curve.mean[-1], kind)
    return f"{name} from {first} to {last}"


def _tick(value: float, axis: Axis, kind: Format) -> str:
    """A tick's label, with the decimals that tell it from its neighbour and no more."""
    if axis.log:
        return number(value) if 1e-4 < value < 1e6 else f"1e{round(math.log10(value))}"
    scale = 100 if kind == "percent" else 1
    step = (axis.ticks[1] - axis.ticks[0]) * scale
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals > 4 or abs(axis.high) >= 1e6:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return "0" if value == 0 else f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value * scale:,.{decimals}f}" + (" %" if kind == "percent" else "")


def short(value: float) -> str:
    """A large number in three letters or so: ``250k``, ``1.23G``."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:g}"


def _rule(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return element("line", x1=f"{x1:.0f}", y1=f"{y1:.0f}", x2=f"{x2:.0f}", y2=f"{y2:.0f}", class_=style)


def _mark(x: float, text: str) -> Markup:
    return element("g", element("title", text), _rule(x, 0, x, _VIEW, "mark"))


def _points(x: Sequence[float], y: Sequence[float], across: Axis, up: Axis) -> list[str]:
    return [f"{_VIEW * across.at(a):.1f} {_VIEW * (1 - up.at(b)):.1f}" for a, b in zip(x, y, strict=True)]


def _curve(curve: Curve, across: Axis, up: Axis, paint: str, dashed: bool) -> Markup:
    """The line, and dots where the points are few (a path of no length with round ends stays round when stretched)."""
    points = _points(curve.x, curve.mean, across, up)
    style = "line dashed" if dashed else "line"
    line = element("path", d="M" + "L".join(points), class_=style, style=f"stroke:{paint}")
    if len(points) > 12 or (dashed and len(points) > 1):
        return line
    dots = "".join(f"M{point}h.01" for point in points)
    return line + element("path", d=dots, class_="dots", style=f"stroke:{paint}")


def _band(curve: Curve, across: Axis, up: Axis, paint: str) -> Markup:
    if curve.low is curve.high:
        return Markup("")
    back = _points(curve.x, curve.low, across, up)[::-1]
    outline = "M" + "L".join(_points(curve.x, curve.high, across, up) + back) + "Z"
    return element("path", d=outline, class_="band", style=f"fill:{paint}")


def _embedded(drawn: Sequence[tuple[Series, Curve, str]]) -> str:
    """What the tooltip shows, as JSON: name, colour, x, mean and, where they differ, minimum and maximum."""
    rows = []
    for series, curve, paint in drawn:
        values = [curve.x, curve.mean] + ([curve.low, curve.high] if curve.low is not curve.high else [])
        rows.append([series.name, paint, *([float(f"{v:.6g}") for v in column] for column in values)])
    return json.dumps(rows, separators=(",", ":"))


@dataclass(frozen=True)
class Bar:
    """One bar: ``low`` and ``high`` are the ends of an interval drawn over it, ``text`` stands beside the value."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    text: str = ""
    color: str = ""


def bar_chart(title: str, bars: Sequence[Bar], *, kind: Format = "number", maximum: float | None = None) -> Markup:
    """Horizontal bars from zero to ``maximum`` (default: the largest value or interval end; 1 for percent).

    Negative values are drawn as bars of no length; their number tells them apart.
    """
    shown = [bar for bar in bars if _drawable(bar.value)]
    if not shown:
        return Markup("")
    largest = max(max(bar.value, bar.high or 0.0) for bar in shown)
    full = maximum or (1.0 if kind == "percent" and largest <= 1 else largest) or 1.0
    rows: list[Markup] = []
    for bar in shown:
        share = f"{100 * min(max(bar.value / full, 0), 1):.2f}%"
        whisker = None
        if bar.low is not None and bar.high is not None:
            left, right = (min(max(end / full, 0), 1) for end in (bar.low, bar.high))
            place = f"left:{100 * left:.2f}%;width:{100 * (right - left):.2f}%"
            whisker = element("s", style=place, title=f"{formatted(bar.low, kind)} to {formatted(bar.high, kind)}")
        body = element("i", style=f"width:{share};--c:{bar.color or color(0)}")
        track = element("div", body, whisker, class_="track")
        rows += [
            element("span", bar.label),
            track,
            element("b", formatted(bar.value, kind)),
            element("small", bar.text),
        ]
    caption = element("figcaption", element("b", title))
    return element("figure", caption, element("div", *rows, class_="rows"), class_="bars")


def split_bar(title: str, rows: Mapping[str, Mapping[str, float]]) -> Markup:
    """Per row one bar of full width, divided by the shares of its parts; parts keep their colour across rows."""
    usable = {name: {p: v for p, v in parts.items() if _drawable(v) and v > 0} for name, parts in rows.items()}
    usable = {name: parts for name, parts in usable.items() if parts}
    known = list(dict.fromkeys(part for parts in usable.values() for part in parts))
    if not known:
        return Markup("")
    body = []
    for name, parts in usable.items():
        total = sum(parts.values())
        pieces = [
            element(
                "i",
                f"{parts[part] / total:.0%}" if parts[part] / total >= 0.06 else None,
                style=f"flex-grow:{parts[part] / total:.5f};--c:{color(known.index(part))}",
                title=f"{part}: {percent(parts[part] / total)}",
            )
            for part in known
            if part in parts
        ]
        body += [element("small", name) if name else None, element("div", *pieces, class_="split")]
    legend = [element("li", element("i", style=f"--c:{color(i)}"), part) for i, part in enumerate(known)]
    caption = element("figcaption", element("b", title))
    return element("figure", caption, element("ul", *legend, class_="legend"), *body, class_="splits")
