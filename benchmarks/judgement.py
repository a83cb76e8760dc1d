"""From what a run saw to its verdict: do the targets hold, is one missed, or does the run prove nothing?

A run is *invalid*, not green and not an accusation of the server, where the load was not what was asked for: nothing
was sent, the server went away, or the generator had no processor time left, so that it measured itself.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import verdict
from benchmarks.objective import UNITS, Slo
from benchmarks.outcome import Outcome
from benchmarks.samples import percentile
from benchmarks.settings import LoadSettings
from benchmarks.texts import Texts

Standing = Literal["holds", "missed", "invalid"]

CPU_LIMIT = 0.9
"""Of one core: Python runs on one at a time, and near its limit answers wait in the generator, not in the server."""

OFFERED_LIMIT = 0.95
"""Share of the intended requests that must have been sent for the rate to have been offered."""

_LATE = 50.0  # ms of the generator's own lateness at p95 above which it, not the server, held the load back

_BOTTLENECK = (
    "the load generator was the bottleneck ({evidence}): run it on another machine than the server, or lower --rate "
    "or --users"
)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The report, how the run stands, and a sentence for each thing that is wrong."""

    report: verdict.Report
    standing: Standing
    problems: tuple[str, ...]
    broken: bool

    def exit_status(self, *, report_only: bool) -> int:
        """0 where all holds, else 1. `report_only` forgives missed targets and a busy machine, not a broken run."""
        return 1 if self.broken else self.report.exit_status(report_only=report_only)


def judge(settings: LoadSettings, texts: Texts, slo: Slo, outcome: Outcome) -> Judgement:
    """Fill the report and say how the run stands.

    `broken` is set where the service is at fault whatever the machine: no answer, a server that went away, or a wrong
    answer.
    """
    measured, triton = outcome.measured, outcome.triton
    latencies = measured.latencies
    sent = len(measured.sent)
    offered = measured.offered if settings.rate else None
    values: dict[str, float | None] = {
        "latency_p50": percentile(latencies, 0.50),
        "latency_p95": percentile(latencies, 0.95),
        "latency_p99": percentile(latencies, 0.99),
        "throughput": measured.throughput,
        "error_rate": measured.error_rate,
        "mean_batch_size": triton.classifier.mean_batch_size if triton else None,
    }
    report = verdict.Report("load")
    for name, unit in UNITS.items():
        report.add(name, values[name], unit, slo.targets.get(name))
    report.add("wrong_answers", measured.wrong_answers, "", "== 0")
    report.add("requests", sent, "", ">= 1")
    report.add("executions", triton.classifier.executions if triton else None)
    if outcome.connections is None:
        report.add("connections", None)
    else:
        report.add("connections", outcome.connections, "", f">= {settings.users}")
    report.add("server_alive", outcome.server_alive, "", "== 1")
    report.add("offered", offered, "", f">= {OFFERED_LIMIT}" if settings.rate else None)
    report.add("generator_cpu", outcome.generator_cpu, "cores", f"<= {CPU_LIMIT}")
    report.add("generator_delay_p95", percentile(measured.own_delays, 0.95), "ms")

    invalid, missed = _problems(settings, outcome, offered)
    for check in report.checks:
        if check.name in slo.targets and check.holds is False:
            value = "no value" if check.value is None else f"{check.value:.4g} {check.unit}".strip()
            missed.append(f"{check.name} is {value}, the target is {check.target}")
    if outcome.connections is not None and outcome.connections < settings.users:
        missed.append(f"{settings.users} users held {outcome.connections} connections")
    standing: Standing = "invalid" if invalid else "holds" if report.holds else "missed"
    problems = (*invalid, *missed)
    report.details = {
        "standing": standing,
        "problems": list(problems),
        "load": dataclasses.asdict(settings),
        "texts": {**texts.summary(), **outcome.tokens},
        "slo": {"source": slo.source, "targets": dict(slo.targets)},
        **measured.details(outcome.messages),
        "triton": dataclasses.asdict(triton) if triton else None,
    }
    broken = not outcome.server_alive or measured.wrong_answers > 0 or not _answered(outcome)
    return Judgement(report, standing, problems, broken)


def _answered(outcome: Outcome) -> bool:
    return any(sample.fault is None for sample in outcome.measured.samples)


def _problems(settings: LoadSettings, outcome: Outcome, offered: float | None) -> tuple[list[str], list[str]]:
    """What makes the run invalid, and what the service got wrong beside its targets."""
    measured = outcome.measured
    invalid, missed = [], []
    sent = len(measured.sent)
    if sent == 0:
        invalid.append("nothing was sent: use a higher --rate or a longer --duration")
    elif not _answered(outcome):
        invalid.append(f"none of {sent} requests got a right answer")
    if not outcome.server_alive:
        invalid.append("the server does not answer after the run: it died or was stopped; see its log")
    own_delay = percentile(measured.own_delays, 0.95) or 0.0
    if outcome.generator_cpu > CPU_LIMIT:
        invalid.append(_BOTTLENECK.format(evidence=f"it used {outcome.generator_cpu:.0%} of a core"))
    elif offered is not None and offered < OFFERED_LIMIT and own_delay > _LATE:
        evidence = f"it sent {offered:.0%} of the intended requests and was {own_delay:.0f} ms late by itself at p95"
        invalid.append(_BOTTLENECK.format(evidence=evidence))
    elif offered is not None and offered < OFFERED_LIMIT:
        missed.append(
            f"the server answered too slowly for {settings.users} users to ask {settings.rate:g} times a second "
            f"({offered:.0%} was sent; the latencies count the rest as still waiting): "
            "lower --rate to find what it holds"
        )
    if measured.wrong_answers:
        missed.append(f"{measured.wrong_answers} answers differ from the ones given alone")
    return invalid, missed
