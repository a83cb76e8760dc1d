"""The verdict of a comparison on one graph: ratios and differences within a round, as medians with their quartiles."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.compare_settings import GraphSettings
from benchmarks.peers.systems import OURS
from benchmarks.same_graph import ALONE, FASTAPI, GROUPS, IN_PROCESS, ONE_BY_ONE, Figure, GraphOutcome
from benchmarks.spread import Spread
from verdict import Report, align

# The targets of the project; how each came about is in docs/adr/0019-measuring-under-load.md.
RATIO = {"short": ">= 1.6", "mixed": ">= 1.35", "long": ">= 1.3"}
P99_RATIO = "<= 0.7"
SHARE_OF_CEILING = ">= 0.7"
ADDED_P50, ADDED_P99 = "<= 1.0", "<= 2.0"

_NAMES = (OURS, FASTAPI, IN_PROCESS, ONE_BY_ONE, OURS + ALONE, IN_PROCESS + ALONE)


def within_rounds(
    figures: Sequence[Figure],
    group: str,
    pair: tuple[str, str],
    value: Callable[[Figure], float],
    combine: Callable[[float, float], float],
) -> Spread:
    """`combine` of a value of both names of a pair, each time of one round: what slowed a round slowed both."""
    of = {(figure.name, figure.round): value(figure) for figure in figures if figure.group == group}
    rounds = sorted({number for name, number in of if name == pair[0]})
    return Spread.of(combine(of[pair[0], number], of[pair[1], number]) for number in rounds)


def judge_same_graph(settings: GraphSettings, outcome: GraphOutcome) -> Report:
    """The checks and details of one comparison."""
    report = Report("compare")
    figures = outcome.figures
    spreads: dict[str, Spread] = {}

    def check(name: str, spread: Spread, unit: str, target: str | None) -> None:
        spreads[name] = spread
        report.add(name, spread.median, unit, target)

    for group in GROUPS:
        for name in (OURS, FASTAPI, IN_PROCESS, ONE_BY_ONE):
            report.add(f"throughput_{name}_{group}", _spread(figures, name, group).median, "requests/s")
        against, alone = (OURS, FASTAPI), (OURS + ALONE, IN_PROCESS + ALONE)
        ratio = within_rounds(figures, group, against, _throughput, operator.truediv)
        check(f"ratio_{FASTAPI}_{group}", ratio, "", RATIO[group])
        tail = within_rounds(figures, group, against, _p99, operator.truediv)
        check(f"p99_ratio_{FASTAPI}_{group}", tail, "", P99_RATIO)
        share = within_rounds(figures, group, (OURS, IN_PROCESS), _throughput, operator.truediv)
        check(f"share_of_{IN_PROCESS}_{group}", share, "", SHARE_OF_CEILING)
        single = within_rounds(figures, group, (OURS, ONE_BY_ONE), _throughput, operator.truediv)
        check(f"share_of_{ONE_BY_ONE}_{group}", single, "", None)
        added = within_rounds(figures, group, alone, lambda figure: figure.p50, operator.sub)
        check(f"added_latency_p50_{group}", added, "ms", ADDED_P50)
        check(f"added_latency_p99_{group}", within_rounds(figures, group, alone, _p99, operator.sub), "ms", ADDED_P99)
    wrong = sum(figure.wrong for figure in figures)
    report.add("answers", sum(figure.right + figure.wrong for figure in figures), "", ">= 1")
    report.add("wrong_answers", wrong, "", "== 0")
    report.add("other_load", statistics.median(figure.other_cpu for figure in figures), "processors")
    report.details = {
        "settings": {**asdict(settings), "repository": str(settings.repository)},
        "tokens": {group: dict(zip(("min", "mean", "max"), of, strict=True)) for group, of in outcome.tokens.items()},
        "spreads": {name: asdict(spread) for name, spread in spreads.items()},
        "table": rows(figures),
        "tried": [_tried(figure) for figure in outcome.tried],
        "faults": [
            {"system": f.name, "group": f.group, "round": f.round, "faults": f.faults} for f in figures if f.faults
        ],
        "peer_versions": outcome.versions,
    }
    return report


def rows(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """One row for each group and way: rates and latencies over the rounds."""
    found = []
    for group in GROUPS:
        for name in _NAMES:
            of = [figure for figure in figures if (figure.name, figure.group) == (name, group)]
            found.append(
                {
                    "group": group,
                    "system": name,
                    "setting": of[0].setting,
                    "throughput": asdict(_spread(figures, name, group)),
                    "p50": asdict(Spread.of(figure.p50 for figure in of)),
                    "p99": asdict(Spread.of(figure.p99 for figure in of)),
                    "largest_difference": max(figure.largest_difference for figure in of),
                    "generator_cpu": statistics.median(figure.generator_cpu for figure in of),
                }
            )
    return found


def table_same_graph(outcome: GraphOutcome) -> str:
    """The same as text."""
    lines = [
        ("texts", "system", "setting", "texts/s (quartiles)", "p50 ms (quartiles)", "p99 ms (quartiles)", "asking")
    ]
    for row in rows(outcome.figures):
        spreads = (str(Spread(**row[name])) for name in ("throughput", "p50", "p99"))
        lines.append((row["group"], row["system"], row["setting"], *spreads, f"{100 * row['generator_cpu']:.0f} %"))
    return align(lines)


def _spread(figures: Sequence[Figure], name: str, group: str) -> Spread:
    return Spread.of(figure.throughput for figure in figures if (figure.name, figure.group) == (name, group))


def _throughput(figure: Figure) -> float:
    return figure.throughput


def _p99(figure: Figure) -> float:
    return figure.p99


def _tried(figure: Figure) -> dict[str, Any]:
    return {"system": figure.name, "setting": figure.setting, "group": figure.group, "throughput": figure.throughput}
