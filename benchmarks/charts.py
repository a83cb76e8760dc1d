"""Charts as inline SVG: lines and bars over two axes, coloured by the page's style sheet and so by its theme.

Small code of our own instead of a plotting library: the page must open without network, in light and in dark, and
the load generator must not import a library of 50 MB for four pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

_WIDTH, _HEIGHT = 640.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 78.0, 14.0, 40.0
_LABEL_GAP = 13.0  # least distance in px between the names at the ends of lines


@dataclass(frozen=True)
class Axis:
    """One axis: its title, its range, the marked values with their text, and a scale that is linear by default."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    scale: Callable[[float], float] = float

    def place(self, value: float) -> float:
        """Where `value` stands between the ends of the axis, 0 … 1."""
        low, high = self.scale(self.low), self.scale(self.high)
        return (self.scale(min(max(value, self.low), self.high)) - low) / (high - low)


@dataclass(frozen=True)
class Line:
    """A named line through points; a None breaks it. `style` is a class of the style sheet."""

    name: str
    style: str
    points: tuple[Point | None, ...]


@dataclass(frozen=True)
class Mark:
    """A labelled target at one point of a chart."""

    text: str
    at: Point


def linear_axis(title: str, high: float, low: float = 0.0) -> Axis:
    """An axis over round numbers that reaches at least `high`."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 4 >= span * (1 - 1e-9))
    count = math.ceil((high - low) / step - 1e-9) or 1
    ticks = tuple((low + k * step, f"{low + k * step:,g}") for k in range(count + 1))
    return Axis(title, low, low + count * step, ticks)


def percentile_axis(title: str, most: float) -> Axis:
    """Percentiles from 0 up to the share `most` < 1, stretched so that each further nine takes equal space."""
    marked = [(0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")]
    ticks = tuple((share, text) for share, text in marked if share <= most + 1e-12)
    return Axis(title, 0.0, max(most, 0.5), ticks, lambda share: -math.log10(1 - share))


def line_chart(name: str, lines: Sequence[Line], x: Axis, y: Axis, marks: Sequence[Mark] = ()) -> str:
    """Lines over two axes, each named at its end; `name` is what a screen reader says."""
    parts = [_grid(x, y)]
    ends: list[tuple[float, float, Line]] = []
    for line in lines:
        path = _path(line.points, x, y)
        if path:
            parts.append(f'<path class="line {line.style}" d="{path}"><title>{escape(line.name)}</title></path>')
            last = next(point for point in reversed(line.points) if point is not None)
            ends.append((_y(y, last[1]), _x(x, last[0]), line))
    # From the lowest line upwards, so that no name slips below the axis or over another.
    limit = _HEIGHT - _BOTTOM
    for top, left, line in sorted(ends, key=lambda end: -end[0]):
        height = min(top, limit)
        limit = height - _LABEL_GAP
        parts.append(
            f'<path class="line {line.style}" d="M{left + 4:.1f} {height:.1f}h8"/>'
            f'<text class="name" x="{left + 15:.1f}" y="{height + 4:.1f}">{escape(line.name)}</text>'
        )
    for mark in marks:
        left, top = _x(x, mark.at[0]), _y(y, mark.at[1])
        parts.append(
            f'<path class="target" d="M{left - 16:.1f} {top:.1f}H{left + 16:.1f}"/>'
            f'<text class="target" x="{left - 20:.1f}" y="{top + 4:.1f}">{escape(mark.text)}</text>'
        )
    return _svg(name, parts)


def bar_chart(name: str, bars: Sequence[tuple[float, float, float]], x: Axis, y: Axis) -> str:
    """Bars `(from, to, height)` over two axes."""
    parts = [_grid(x, y)]
    for start, end, height in bars:
        if height:
            left, right, top = _x(x, start), _x(x, end), _y(y, height)
            parts.append(
                f'<rect class="bar" x="{left + 0.75:.1f}" y="{top:.1f}" width="{max(right - left - 1.5, 1):.1f}" '
                f'height="{_y(y, y.low) - top:.1f}"><title>{start:.3g}–{end:.3g}: {height:,g}</title></rect>'
            )
    return _svg(name, parts)


def _grid(x: Axis, y: Axis) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value, text in y.ticks:
        top = _y(y, value)
        parts.append(f'<path class="grid" d="M{_LEFT} {top:.1f}H{right}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{top + 4:.1f}">{text}</text>')
    for value, text in x.ticks:
        parts.append(f'<text class="tick middle" x="{_x(x, value):.1f}" y="{bottom + 16}">{text}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
    parts.append(f'<text class="tick middle" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}">{escape(x.title)}</text>')
    return "".join(parts)


def _path(points: Sequence[Point | None], x: Axis, y: Axis) -> str:
    commands, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        commands.append(f"{pen}{_x(x, point[0]):.1f} {_y(y, point[1]):.1f}")
        pen = "L"
    return "".join(commands)


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.place(value) * (_HEIGHT - _TOP - _BOTTOM)


def _svg(name: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(name, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )
