"""Many connections at once: a rate of requests on a large pool, each connection counted where the server holds it."""

from __future__ import annotations

import dataclasses

from benchmarks.open_loop import OpenLoad, OpenRun, run_open_loop
from benchmarks.overload import describe
from benchmarks.samples import percentile
from benchmarks.served import Served
from verdict import Report

ERROR_RATE, LATENCY_P95 = "< 0.001", "< 200"
_RATE_KEPT = 0.99  # of the rate: what was due in the last milliseconds is answered after the end


@dataclasses.dataclass(frozen=True)
class ManyOutcome:
    """The run, and whether the server answers afterwards."""

    run: OpenRun
    server_alive: bool


def hold_connections(load: OpenLoad, served: Served) -> ManyOutcome:
    """Offer the load."""
    run = run_open_loop(load, served.questions.requests, served.questions.fault, server=served.server.pid)
    return ManyOutcome(run, served.alive())


def judge_connections(load: OpenLoad, outcome: ManyOutcome) -> Report:
    """The checks; a run that proves nothing does not hold."""
    report = Report("connections")
    run, measured = outcome.run, outcome.run.measured
    report.add("connections", run.connections, "", f">= {load.connections}")
    report.add("throughput", measured.throughput, "requests/s", f">= {_RATE_KEPT * load.rate:g}")
    report.add("latency_p50", percentile(measured.latencies, 0.50), "ms")
    report.add("latency_p95", percentile(measured.latencies, 0.95), "ms", LATENCY_P95)
    report.add("latency_p99", percentile(measured.latencies, 0.99), "ms")
    report.add("error_rate", measured.error_rate, "", ERROR_RATE)
    report.add("wrong_answers", measured.wrong_answers, "", "== 0")
    report.add("generator_cpu", run.generator_cpu, "cores")
    report.add("valid", not run.invalid, "", "== 1")
    report.add("server_alive", outcome.server_alive, "", "== 1")
    report.details = {"load": dataclasses.asdict(load), **describe(run)}
    return report
