"""Charts: no extreme is lost, ticks are round and enclose the data, geometry follows the values."""

from __future__ import annotations

import json
import math
import random
import re
from html import unescape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from digpt.charts import BUCKETS, Axis, Bar, Series, bar_chart, downsample, line_chart, number, short, split_bar, ticks


def points(svg: str) -> list[list[tuple[float, float]]]:
    """The coordinates of every line drawn, in the SVG's own units (y grows downwards)."""
    lines = re.findall(r'<path d="M([^"hZ]+)" class="line', svg)
    return [[(float(x), float(y)) for x, y in (pair.split() for pair in line.split("L"))] for line in lines]


def test_a_long_series_keeps_its_extremes_and_its_mean() -> None:
    generator = random.Random(0)
    y = [generator.gauss(0, 1) for _ in range(100_000)]
    y[31_415], y[92_653] = 50.0, -40.0  # one spike each way, in 100,000 points
    curve = downsample(range(100_000), y)
    assert len(curve.x) == BUCKETS
    assert (max(curve.high), min(curve.low)) == (50.0, -40.0)
    assert sum(curve.mean) / BUCKETS == pytest.approx(sum(y) / len(y), abs=1e-3)
    assert max(curve.mean) < 2  # the control: means alone would have lost the spike
    assert all(low <= mean <= high for low, mean, high in zip(curve.low, curve.mean, curve.high, strict=True))


def test_a_short_series_is_drawn_as_it_is_sorted_by_step() -> None:
    curve = downsample([3, 1, 2, 4], [30.0, 10.0, math.nan, math.inf])
    assert (curve.x, curve.mean) == ([1, 3], [10, 30])
    assert curve.low is curve.mean  # no band


FINITE = st.floats(-1e12, 1e12)


@given(FINITE, FINITE)
@example(0.0, 5e-324)  # what has no logarithm, and no tenth
@example(1.0, math.nextafter(1.0, 2.0))
def test_ticks_enclose_the_range_and_are_round(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    marks = ticks(low, high)
    step = marks[1] - marks[0]
    assert marks[0] <= low + 1e-6 * step and marks[-1] >= high - 1e-6 * step
    assert 2 <= len(marks) <= 12
    assert f"{step:.3e}"[0] in "125"


def test_ticks_are_those_a_reader_expects() -> None:
    assert ticks(0.13, 0.62) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert ticks(0, 100_000) == [0, 20_000, 40_000, 60_000, 80_000, 100_000]
    assert ticks(5, 5)[0] <= 2.5  # a constant gets room


def test_one_spike_does_not_flatten_a_chart() -> None:
    axis = Axis.around([1.0] * 50 + [1e5])
    assert axis.log and axis.at(10.0) - axis.at(1.0) == pytest.approx(axis.at(100.0) - axis.at(10.0))
    assert not Axis.around([1.0] * 50 + [50.0]).log
    assert not Axis.around([5e-324] * 50 + [1.0]).log
    assert Axis.around([-1.0, 1.0, 1e6]).low <= -1.0  # negative values have no logarithm


def test_a_line_lies_where_its_values_are() -> None:
    chart = line_chart("loss", [Series("loss", [0, 50, 100], [0.0, 1.0, 4.0])])
    ((first, middle, last),) = points(chart)
    assert first == (0, 1000) and last == (1000, 0)  # the first value at the bottom left, the last at the top right
    assert middle == (500, 750)
    assert "logarithmic" not in chart and 'class="legend"' not in chart  # one series named like its chart
    assert 'aria-label="loss: loss from 0 to 4"' in chart


def test_values_for_the_tooltip_are_the_values() -> None:
    chart = line_chart('a "quoted" <name>', [Series("x<y", [1, 2], [0.123456, 0.5]), Series("b", [1], [2.0])])
    found = re.search(r'data-series="([^"]*)"', chart)
    assert found and "<" not in found[1]
    rows = json.loads(unescape(found[1]))
    assert [row[0] for row in rows] == ["x<y", "b"]
    assert rows[0][2:] == [[1, 2], [0.123456, 0.5]]
    assert "<name>" not in chart and "&lt;name&gt;" in chart


def test_what_is_not_finite_is_left_out_and_said() -> None:
    chart = line_chart("norm", [Series("norm", [1, 2, 3, 4], [1.0, math.nan, math.inf, 2.0])])
    assert "2 values not finite" in chart and len(points(chart)[0]) == 2
    assert "not finite" not in line_chart("norm", [Series("norm", [1, 2], [1.0, 2.0])])
    assert line_chart("nothing", [Series("nothing", [1], [math.nan])]) == ""
    assert "NaN" not in chart and "nan" not in chart


def test_percent_and_events() -> None:
    chart = line_chart(
        "top1", [Series("top1", [0, 10], [0.1, 0.4])], kind="percent", marks=[(5, "skipped"), (50, "no")]
    )
    assert ">40 %<" in chart
    assert re.search(r'<title>skipped</title><line x1="500"', chart)
    assert ">no<" not in chart  # outside the axis


def test_hundred_thousand_steps_stay_small() -> None:
    series = [Series(f"s{i}", range(100_000), [math.sin(j / 9 + i) for j in range(100_000)]) for i in range(2)]
    assert len(line_chart("many", series)) < 2 * 30_000


def test_bars_and_intervals_lie_where_their_values_are() -> None:
    chart = bar_chart("top-1", [Bar("flat", 0.5, 0.4, 0.6), Bar("<val>", 0.25, text="301 images")], kind="percent")
    assert re.findall(r"width:([\d.]+)%;--c", chart) == ["50.00", "25.00"]
    assert "left:40.00%;width:20.00%" in chart and "40.0 % to 60.0 %" in chart
    assert "&lt;val&gt;" in chart and "301 images" in chart
    assert re.findall(r"width:([\d.]+)%;--c", bar_chart("n", [Bar("a", 4), Bar("b", 1)])) == ["100.00", "25.00"]
    assert bar_chart("none", [Bar("a", math.nan)]) == ""


def test_parts_keep_their_colour_across_rows() -> None:
    chart = split_bar("time", {"a": {"loader": 1.0, "encoder": 3.0}, "b": {"encoder": 5.0, "evaluation": 5.0}})
    pieces = re.findall(r"flex-grow:([\d.]+);--c:(var\(--s\d\))", chart)
    assert pieces == [
        ("0.25000", "var(--s0)"), ("0.75000", "var(--s1)"), ("0.50000", "var(--s1)"), ("0.50000", "var(--s2)")
    ]  # fmt: skip
    assert split_bar("time", {"a": {"loader": 0.0}}) == ""


@pytest.mark.parametrize(
    ("value", "shown"), [(0.84213, "0.8421"), (12800, "12,800"), (1.5e-5, "1.5e-05"), (12345.6, "12,346"), (3.0, "3")]
)
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown


def test_large_numbers_are_short() -> None:
    assert [short(v) for v in (250_000, 1_234_567_890, 12)] == ["250k", "1.23G", "12"]
