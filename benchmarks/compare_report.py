"""The verdict of a comparison: medians over rounds, and ratios between systems that were measured in the same round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.compare import Cell, Outcome
from benchmarks.compare_settings import CompareSettings
from benchmarks.peers.systems import OURS, PEERS
from benchmarks.samples import percentile
from benchmarks.spread import Spread
from verdict import Report, align

PUBLISHED = {
    "what": "HF Infinity, DistilBERT, 2 cores of an Intel Ice Lake processor, as published; not run here",
    "source": "huggingface.co/blog/infinity-cpu-performance",
    "requests_per_second": {"16": 212, "64": 97, "128": 55, "256": 27},
}
AHEAD = "> 1"


def ratio(cells: Sequence[Cell], system: str, length: int) -> Spread:
    """Requests/s of ours over those of a peer, each pair of one round: what slowed a round slowed both."""
    rate = {(cell.system, cell.round): cell.throughput for cell in cells if cell.length == length}
    rounds = sorted({number for name, number in rate if name == OURS})
    return Spread.of(rate[OURS, number] / rate[system, number] for number in rounds)


def judge(settings: CompareSettings, outcome: Outcome) -> Report:
    """The checks and details of one comparison."""
    report = Report("compare")
    for length in settings.lengths:
        for name in (OURS, *(system.name for system in PEERS)):
            of = Spread.of(c.throughput for c in _cells(outcome.cells, name, length))
            report.add(f"throughput_{name}_{length}", of.median, "requests/s")
        for system in PEERS:
            report.add(f"ratio_{system.name}_{length}", ratio(outcome.cells, system.name, length).median, "", AHEAD)
    asked = sum(len(cell.turn.latencies) + cell.turn.wrong for cell in outcome.cells)
    report.add("error_rate", sum(cell.turn.wrong for cell in outcome.cells) / asked, "", "<= 0")
    report.add("other_load", statistics.median(cell.turn.other_cpu for cell in outcome.cells), "processors")
    if outcome.accuracy is not None:
        report.add("accuracy_served", outcome.accuracy.served)
        report.add("accuracy_pytorch", outcome.accuracy.pytorch)
        report.add("accuracy_differs", outcome.accuracy.differ, "rows", "<= 0")
    report.details = {
        "settings": {
            **asdict(settings),
            "checkpoint": str(settings.checkpoint),
            "repository": str(settings.repository),
        },
        "table": rows(settings, outcome),
        "ratios": {
            f"{system.name}_{length}": asdict(ratio(outcome.cells, system.name, length))
            for system in PEERS
            for length in settings.lengths
        },
        "in_process": outcome.in_process,
        "tried": [
            {"system": c.system, "setting": c.setting, "length": c.length, "throughput": c.throughput}
            for c in outcome.tried
        ],
        "accuracy": None if outcome.accuracy is None else asdict(outcome.accuracy),
        "faults": [
            {"system": c.system, "length": c.length, "faults": c.turn.faults} for c in outcome.cells if c.turn.faults
        ],
        "published": PUBLISHED,
        "peer_versions": outcome.versions,
    }
    return report


def rows(settings: CompareSettings, outcome: Outcome) -> list[dict[str, Any]]:
    """One row for each length and system: rates over the rounds, latencies over all of their answers."""
    found = []
    for length in settings.lengths:
        for name in (OURS, *(system.name for system in PEERS)):
            cells = _cells(outcome.cells, name, length)
            latencies = sorted(latency for cell in cells for latency in cell.turn.latencies)
            found.append(
                {
                    "length": length,
                    "system": name,
                    "setting": cells[0].setting,
                    "throughput": asdict(Spread.of(cell.throughput for cell in cells)),
                    "latency_p50": percentile(latencies, 0.50),
                    "latency_p95": percentile(latencies, 0.95),
                    "latency_p99": percentile(latencies, 0.99),
                    "wrong": sum(cell.turn.wrong for cell in cells),
                    "largest_difference": max(cell.turn.largest_difference for cell in cells),
                    "generator_cpu": statistics.median(cell.turn.generator_cpu for cell in cells),
                    "server_cpu": statistics.median(cell.turn.server_cpu for cell in cells),
                    "other_cpu": statistics.median(cell.turn.other_cpu for cell in cells),
                    "server_cpu_ms_per_request": statistics.median(
                        1000 * cell.turn.server_cpu / cell.throughput for cell in cells
                    ),
                }
            )
    return found


def table(settings: CompareSettings, outcome: Outcome) -> str:
    """The same as text, with the ratio of ours to each peer."""
    head = ("tokens", "system", "processes × threads", "requests/s (quartiles)", "ours/peer (quartiles)")
    lines = [(*head, "in process", "p50", "p95", "p99 ms", "cpu ms/request", "generator")]
    for row in rows(settings, outcome):
        rate = Spread(**row["throughput"])
        ours = "" if row["system"] == OURS else str(ratio(outcome.cells, row["system"], row["length"]))
        lines.append(
            (
                str(row["length"]),
                row["system"],
                row["setting"],
                str(rate),
                ours,
                "" if row["system"] == OURS else f"{outcome.in_process[row['system']][row['length']]:.3g}",
                *(f"{row[f'latency_{p}'] or 0:.0f}" for p in ("p50", "p95", "p99")),
                f"{row['server_cpu_ms_per_request']:.1f}",
                f"{100 * row['generator_cpu']:.0f} %",
            )
        )
    return align(lines)


def _cells(cells: Sequence[Cell], system: str, length: int) -> list[Cell]:
    return [cell for cell in cells if cell.system == system and cell.length == length]
