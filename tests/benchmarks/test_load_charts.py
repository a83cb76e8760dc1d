"""The charts: whatever is drawn stays inside its picture and is valid SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.charts import Axis, Line, Mark, bar_chart, line_chart, linear_axis, percentile_axis

SVG = "{http://www.w3.org/2000/svg}"


@given(st.floats(1e-6, 1e9))
def test_an_axis_reaches_the_highest_value_with_few_round_steps(high: float) -> None:
    axis = linear_axis("ms", high)
    assert axis.high >= high * (1 - 1e-9)
    assert axis.high <= 2.5 * high
    assert 2 <= len(axis.ticks) <= 6
    assert [axis.place(value) for value, _ in axis.ticks] == pytest.approx(
        [k / (len(axis.ticks) - 1) for k in range(len(axis.ticks))]
    )


def test_each_nine_takes_equal_space() -> None:
    axis = percentile_axis("share", 0.999)
    assert [text for _, text in axis.ticks] == ["0", "50 %", "90 %", "99 %", "99.9 %"]
    assert [axis.place(share) for share in (0, 0.9, 0.99, 0.999)] == pytest.approx([0, 1 / 3, 2 / 3, 1])


points = st.lists(st.none() | st.tuples(st.floats(-10, 200), st.floats(-10, 1e4)), max_size=30)


@given(points, points)
def test_lines_stay_inside_the_picture_and_their_names_are_escaped(
    first: list[tuple[float, float] | None], second: list[tuple[float, float] | None]
) -> None:
    lines = [Line("a < b", "p50", tuple(first)), Line("p99", "p99", tuple(second))]
    drawn = line_chart("name", lines, linear_axis("s", 100), linear_axis("ms", 1000), [Mark("500", (50, 500))])
    root = ElementTree.fromstring(drawn.replace("<svg", f'<svg xmlns="{SVG[1:-1]}"', 1))
    width, height = (float(number) for number in root.attrib["viewBox"].split()[2:])
    for path in root.iter(f"{SVG}path"):
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.attrib["d"]):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height


def test_a_gap_breaks_the_line() -> None:
    drawn = line_chart("n", [Line("l", "p50", ((0, 1), None, (2, 1)))], linear_axis("s", 2), linear_axis("ms", 1))
    path = re.findall(r'class="line p50" d="([^"]*)"', drawn)[0]
    assert path.count("M") == 2


def test_an_empty_bar_is_not_drawn() -> None:
    drawn = bar_chart("n", [(0, 1, 3), (1, 2, 0)], Axis("ms", 0, 2, ()), linear_axis("requests", 3))
    assert drawn.count("<rect") == 1
