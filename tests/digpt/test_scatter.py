"""Scatter charts: places follow the logits, what does not fit is left out, names are escaped."""

from __future__ import annotations

import math
import re

import pytest

from digpt.scatter import Dot, Dots, LogitAxis, scatter_chart


def places(figure: str, kind: str) -> list[tuple[float, float]]:
    """Left and top in percent of every point of a look."""
    found = re.findall(rf'<i title="[^"]*" class="{kind}" style="left:([\d.]+)%;top:([\d.]+)%', figure)
    return [(float(left), float(top)) for left, top in found]


def test_an_axis_is_linear_in_the_logit() -> None:
    axis = LogitAxis.around([0.1, 0.9])
    assert axis.at(0.5) == pytest.approx(0.5)
    # logit(0.75) is half of logit(0.9): ln 3 against ln 9
    assert axis.at(0.75) - axis.at(0.5) == pytest.approx((axis.at(0.9) - axis.at(0.5)) / 2)
    assert (axis.at(0.0), axis.at(1.0)) == (0.0, 1.0)
    assert axis.ticks == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)[::2]
    assert LogitAxis.around([0.862, 0.866]).ticks  # a narrow range has ticks too


def test_points_lie_where_their_accuracies_say() -> None:
    dots = [Dot(0.2, 0.2, "low"), Dot(0.8, 0.8, "high"), Dot(0.5, 0.5, "middle")]
    low, high, middle = places(scatter_chart("x", [Dots("all", dots, look="large")]), "large")
    assert low[0] < middle[0] < high[0] and low[1] > middle[1] > high[1]  # up is a smaller distance from the top
    assert middle == pytest.approx((50, 50), abs=0.01)


def test_the_line_is_cut_where_the_chart_ends_and_not_bent() -> None:
    axis = [n / 1000 for n in range(1, 1000)]
    dots = [Dots("all", [Dot(0.3, 0.45, "a"), Dot(0.7, 0.55, "b")])]
    figure = scatter_chart("x", dots, line=[(x, x) for x in axis])
    points = re.search(r'<path d="M([^"]+)" class="fit"', figure)
    assert points
    pairs = [tuple(map(float, pair.split())) for pair in points.group(1).split("L")]
    slopes = {round((b[1] - a[1]) / (b[0] - a[0])) for a, b in zip(pairs, pairs[10:], strict=False)}
    assert len(slopes) == 1  # one straight line
    assert all(0 <= value <= 1000 for pair in pairs for value in pair)


def test_points_without_a_logit_are_left_out() -> None:
    dots = [Dot(0.5, 0.0, "none right"), Dot(0.5, math.nan, "unknown"), Dot(1.0, 0.5, "all right")]
    assert scatter_chart("x", [Dots("all", dots)]) == ""
    assert "kept" in scatter_chart("x", [Dots("all", [*dots, Dot(0.5, 0.5, "kept")])])


def test_intervals_names_and_escaping() -> None:
    dot = Dot(0.5, 0.5, "<b>& long name of more than thirty letters", y_interval=(0.4, 0.6))
    figure = scatter_chart("x", [Dots("mine", [dot], labelled=True)], x_label="clean", note="R² 0.9")
    assert "<b>&" not in figure and "&lt;b&gt;&amp; long" in figure
    whisker = re.search(r'<line x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)" class="whisker"', figure)
    assert whisker
    x1, y1, x2, y2 = map(float, whisker.groups())
    assert x1 == x2 == 500 and y1 + y2 == pytest.approx(1000) and 1000 > y1 > 900  # whole, and symmetric about 50 %
    assert re.search(r'<span class="name left" style="[^"]*">&lt;b&gt;&amp; long name of more than…</span>', figure)
