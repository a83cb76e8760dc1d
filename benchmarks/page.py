"""The report of a load run as one HTML page that opens anywhere: no script, no network, light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import verdict
from benchmarks.charts import Axis, Line, Mark, Point, bar_chart, line_chart, linear_axis, percentile_axis
from benchmarks.judgement import Judgement
from benchmarks.outcome import Outcome
from benchmarks.samples import Second, percentile

_STYLE = Path(__file__).with_name("page.css")
_HEADLINES = {
    "holds": ("✓", "The targets hold"),
    "missed": ("✗", "A target is missed"),
    "invalid": ("!", "The run is invalid: it proves nothing"),
}
_TILES = ("latency_p50", "latency_p95", "latency_p99", "throughput", "error_rate", "mean_batch_size")
_CURVE_POINTS = 300


def render(judgement: Judgement, outcome: Outcome) -> str:
    """The whole page as text."""
    report = judgement.report
    sign, headline = _HEADLINES[judgement.standing]
    problems = "".join(f"<li>{escape(problem)}</li>" for problem in judgement.problems)
    checks = {check.name: check for check in report.checks}
    load, texts = report.details["load"], report.details["texts"]
    pace = f"{load['rate']:g} requests/s" if load["rate"] else "a closed loop"
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Load test of {escape(load['model'])}</title>",
            f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>",
            f'<p class="quiet">Load test of {escape(load["model"])} over {load["protocol"]}</p>',
            f'<h1 class="standing {judgement.standing}">{sign} {headline}</h1>',
            f'<p class="quiet">{load["users"]} users, {pace}, {load["duration"]:g} s measured after '
            f"{load['warm_up']:g} s of warm-up; {texts['texts']} texts of {texts['words_min']}–{texts['words_max']} "
            f"words (mean {texts['words_mean']:g}) from {escape(str(texts['source']))}</p>",
            f'<ul class="problems">{problems}</ul>' if problems else "",
            f'<section class="tiles">{"".join(_tile(checks[name]) for name in _TILES)}</section>',
            f'<section class="charts">{"".join(_charts(report.details["slo"]["targets"], outcome))}</section>',
            f'<section class="charts facts">{_checks_card(report.checks)}',
            f"<div>{_failures_card(report.details['failures'])}{_facts_card('Load', load)}",
            f"{_facts_card('Machine', verdict.machine())}</div>{_facts_card('Versions', verdict.versions())}</section>",
            "</main>\n</body>\n</html>\n",
        )
    )


def _tile(check: verdict.Check) -> str:
    standing = {None: "", True: "holds", False: "missed"}[check.holds]
    target = f"target {check.target} {check.unit}" if check.target else "no target"
    return (
        f'<div class="card tile"><span class="quiet">{escape(check.name)}</span>'
        f"<b>{_number(check.value)} <small>{escape(check.unit)}</small></b>"
        f'<span class="quiet {standing}">{escape(target)}</span></div>'
    )


def _charts(targets: Mapping[str, str], outcome: Outcome) -> list[str]:
    measured = outcome.measured
    latencies, course = measured.latencies, measured.by_second()
    time = linear_axis("seconds of the measured part", measured.duration)
    cards = [_card("Requests per second", "due, answered rightly, and failed", _rates(course, time))]
    if latencies:
        cards = [
            _card("Latency over time", "ms from the intended time of sending", _latency_over_time(course, time)),
            *cards,
            _card(
                "Latency by percentile",
                "ms; red: the targets; each nine takes equal space",
                _by_percentile(latencies, targets),
            ),
            _card("How often each latency", "requests by ms, logarithmic", _histogram(latencies)),
        ]
    return cards


def _latency_over_time(course: Sequence[Second], time: Axis) -> str:
    def line(name: str) -> Line:
        values = ((_middle(course, index), getattr(second, name)) for index, second in enumerate(course))
        return Line(name, name, tuple(None if value is None else (at, value) for at, value in values))

    highest = max((second.p99 for second in course if second.p99 is not None), default=1.0)
    return line_chart("Latency over time", [line("p99"), line("p95"), line("p50")], time, linear_axis("ms", highest))


def _rates(course: Sequence[Second], time: Axis) -> str:
    def line(name: str) -> Line:
        return Line(name, name, tuple((_middle(course, i), getattr(second, name)) for i, second in enumerate(course)))

    names = ["due", "answered"] + ["failed"] * any(second.failed for second in course)
    highest = max(max(second.due, second.answered, second.failed) for second in course)
    return line_chart(
        "Requests per second", [line(name) for name in names], time, linear_axis("requests/s", max(highest, 1.0))
    )


def _by_percentile(latencies: Sequence[float], targets: Mapping[str, str]) -> str:
    # Only as far as the sample reaches: of 1,000 requests one lies above 99.9 %.
    most = min(1 - 1 / len(latencies), 0.9999) if len(latencies) > 1 else 0.5
    nines = -math.log10(1 - max(most, 0.5))
    points: list[Point] = []
    for index in range(_CURVE_POINTS + 1):
        share = 1 - 10 ** (-nines * index / _CURVE_POINTS)
        value = percentile(latencies, max(share, 1e-9))
        assert value is not None  # there are latencies
        points.append((share, value))
    marks = []
    for name, share in (("latency_p50", 0.50), ("latency_p95", 0.95), ("latency_p99", 0.99)):
        if name in targets and share <= max(most, 0.5):
            _, bound = verdict.parse_target(targets[name])
            marks.append(Mark(f"{bound:g}", (share, bound)))
    highest = max([points[-1][1], *(mark.at[1] for mark in marks)])
    line = Line("latency", "p95", tuple(points))
    return line_chart(
        "Latency by percentile", [line], percentile_axis("share of requests", most), linear_axis("ms", highest), marks
    )


def _histogram(latencies: Sequence[float]) -> str:
    # Ten bars a decade, over the decades that occur.
    low = 10 ** math.floor(math.log10(max(latencies[0], 1e-3)))
    high = 10 ** math.ceil(math.log10(max(latencies[-1], low * 1.001)) + 1e-9)
    decades = round(math.log10(high / low))
    counts = [0] * (10 * decades)
    for latency in latencies:
        counts[min(max(int(10 * math.log10(max(latency, low) / low)), 0), len(counts) - 1)] += 1
    bars = [(low * 10 ** (k / 10), low * 10 ** ((k + 1) / 10), float(count)) for k, count in enumerate(counts)]
    ticks = tuple((low * 10**k, f"{low * 10**k:,g}") for k in range(decades + 1))
    x = Axis("ms", low, high, ticks, math.log10)
    return bar_chart("How often each latency", bars, x, linear_axis("requests", max(counts)))


def _middle(course: Sequence[Second], index: int) -> float:
    width = course[1].start - course[0].start if len(course) > 1 else 1.0
    return course[index].start + width / 2


def _checks_card(checks: Sequence[verdict.Check]) -> str:
    rows = "".join(
        f'<tr><td>{escape(check.name)}</td><td class="number">{_number(check.value)}</td><td>{escape(check.unit)}</td>'
        f"<td>{escape(check.target or '')}</td>"
        + {None: "<td></td>", True: '<td class="holds">✓ holds</td>', False: '<td class="missed">✗ missed</td>'}[
            check.holds
        ]
        + "</tr>"
        for check in checks
    )
    head = '<tr><th>check</th><th class="number">value</th><th>unit</th><th>target</th><th></th></tr>'
    return f'<div class="card"><h2>Checks</h2><table>{head}{rows}</table></div>'


def _failures_card(failures: Mapping[str, Mapping[str, Any]]) -> str:
    if not failures:
        return '<div class="card"><h2>Failures</h2><p class="quiet">None: every request got its right answer.</p></div>'
    rows = "".join(
        f'<tr><td>{escape(kind)}</td><td class="number">{failure["count"]}</td>'
        f"<td>{escape(failure['first_message'])}</td></tr>"
        for kind, failure in failures.items()
    )
    head = '<tr><th>kind</th><th class="number">requests</th><th>first message</th></tr>'
    return f'<div class="card"><h2>Failures</h2><table>{head}{rows}</table></div>'


def _facts_card(title: str, facts: Mapping[str, object]) -> str:
    rows = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    return f'<div class="card"><h2>{title}</h2><table>{rows}</table></div>'


def _card(title: str, subtitle: str, content: str) -> str:
    return f'<div class="card"><h2>{title}</h2><p class="quiet">{subtitle}</p>{content}</div>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
