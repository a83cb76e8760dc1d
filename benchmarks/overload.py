"""Overload: many times what a server can answer, and whether it still answers what it can and refuses the rest at once.

    peak in a closed loop → open loop at each multiple of it → goodput over peak, who was left waiting, who hangs

Goodput are right answers within a second of the time at which they were due. A server without a bounded queue has none
left after a while: it works on requests whose callers have gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.ensemble import REFUSED
from benchmarks.open_loop import TIMELY, OpenLoad, OpenRun, run_open_loop
from benchmarks.samples import NO_ANSWER, WRONG_ANSWER, Measured, Sample, percentile
from benchmarks.served import Peak, Served, find_peak
from benchmarks.under_load_settings import OverloadSettings
from verdict import Report

Say = Callable[[str], None]

GOODPUT_OVER_PEAK = ">= 0.9"


@dataclasses.dataclass(frozen=True)
class OverloadOutcome:
    """The peak, the run at each factor, and whether the server answers afterwards."""

    peak: Peak
    runs: dict[float, OpenRun]
    server_alive: bool


def overload(settings: OverloadSettings, served: Served, say: Say) -> OverloadOutcome:
    """Find the peak and offer multiples of it."""
    peak = find_peak(served, settings.peak_seconds)
    say(f"peak: {peak.goodput:,.0f} right answers/s with {peak.callers} callers")
    runs = {}
    for factor in settings.factors:
        load = OpenLoad(
            port=served.port,
            connections=settings.connections,
            rate=factor * peak.goodput,
            seconds=settings.seconds,
            warm_up=settings.warm_up,
            processes=settings.processes,
        )
        run = run_open_loop(load, served.questions.requests, served.questions.fault, server=served.server.pid)
        say(
            f"{factor:g} times the peak: {goodput(run.measured):,.0f} right answers/s, "
            f"{run.measured.faults[REFUSED]:,} refused, {run.measured.faults[NO_ANSWER]} without an answer"
        )
        runs[factor] = run
    return OverloadOutcome(peak, runs, served.alive())


def goodput(measured: Measured) -> float:
    """Right answers per second, each within `TIMELY` of the time at which its request was due."""
    return sum(s.fault is None and s.latency <= TIMELY for s in measured.samples) / measured.duration


def timely(measured: Measured) -> float | None:
    """Share of the due requests that were rightly answered or refused within `TIMELY`; None where none was due."""
    decided = sum(_decided(sample) for sample in measured.samples)
    return decided / len(measured.samples) if measured.samples else None


def judge_overload(settings: OverloadSettings, outcome: OverloadOutcome) -> Report:
    """The checks for each factor; a run that proves nothing does not hold."""
    report = Report("overload")
    report.add("goodput_peak", outcome.peak.goodput, "requests/s", "> 0")
    for factor, run in outcome.runs.items():
        measured, of = run.measured, f"{factor:g}x"
        accepted = sorted(1000 * s.latency for s in measured.samples if s.fault in (None, WRONG_ANSWER))
        failed = {kind: n for kind, n in measured.faults.items() if kind not in (REFUSED, NO_ANSWER, WRONG_ANSWER)}
        report.add(f"goodput_{of}", goodput(measured), "requests/s")
        report.add(f"throughput_{of}", measured.throughput, "requests/s")  # late answers too: work thrown away
        report.add(f"goodput_over_peak_{of}", goodput(measured) / outcome.peak.goodput, "", GOODPUT_OVER_PEAK)
        report.add(f"answered_or_refused_in_1s_{of}", timely(measured), "", ">= 1")
        report.add(f"latency_p99_{of}", percentile(accepted, 0.99), "ms", settings.latency_p99)
        report.add(f"hangs_{of}", measured.faults[NO_ANSWER], "", "== 0")
        report.add(f"failed_{of}", sum(failed.values()), "", "== 0")
        report.add(f"wrong_answers_{of}", measured.wrong_answers, "", "== 0")
        report.add(f"refused_{of}", measured.faults[REFUSED] / len(measured.sent) if measured.sent else None)
        report.add(f"offered_{of}", len(measured.sent) / measured.duration, "requests/s")
        report.add(f"valid_{of}", not run.invalid, "", "== 1")
    report.add("server_alive", outcome.server_alive, "", "== 1")
    report.details = {
        "settings": dataclasses.asdict(settings),
        "peak": dataclasses.asdict(outcome.peak),
        "runs": {f"{factor:g}x": describe(run) for factor, run in outcome.runs.items()},
    }
    return report


def describe(run: OpenRun) -> dict[str, Any]:
    """An open run for the JSON file: latencies of all answers, failures, the load itself, and its course."""
    measured = run.measured
    return {
        "invalid": list(run.invalid),
        **measured.details(run.messages),
        "connections": run.connections,
        "generator_cpu": run.generator_cpu,
        "generator_delay_p95_ms": percentile(measured.own_delays, 0.95),
    }


def broken(runs: Sequence[OpenRun], *, server_alive: bool) -> bool:
    """Whether the service is at fault whatever the machine: a wrong answer, or a server that went away."""
    return not server_alive or any(run.measured.wrong_answers for run in runs)


def _decided(sample: Sample) -> bool:
    return sample.fault in (None, REFUSED) and sample.latency <= TIMELY
