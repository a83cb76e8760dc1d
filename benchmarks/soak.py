"""A soak: hours at a share of the peak, to see what grows.

    peak in a closed loop → open loop at a share of it → a line for each minute as it passes → slopes at the end

Each interval (a minute) becomes a line of `intervals.jsonl` as soon as its answers are in: resident memory of the
server's processes, its files in shared memory, rate, failures and p99. A run that is cut short keeps them. What must be
level is judged by the Theil–Sen slope (the median of the slopes between all pairs: one busy minute does not tilt it).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import psutil

from benchmarks.judgement import CPU_LIMIT
from benchmarks.open_loop import LATE, OpenLoad, OpenRun, run_open_loop
from benchmarks.processes import tree
from benchmarks.samples import Measured, Sample, percentile
from benchmarks.served import Peak, Served, find_peak
from benchmarks.under_load_settings import FEWEST, SoakSettings
from serve.leftovers import shared_regions
from serve.plan import shm_prefix
from verdict import Report

Say = Callable[[str], None]

GROWTH_MEMORY, GROWTH_LATENCY = "<= 0.05", "<= 0.2"
_SETTLING = 0.1  # share of the intervals that are left out of the slopes: caches and arenas fill


@dataclasses.dataclass(frozen=True)
class Interval:
    """One line: what was due in an interval, and the server's memory at its end.

    Attributes:
        minute: its end, in minutes from the begin.
        p99: milliseconds from the time of being due; None where nothing was answered.
        own_delay_p95: milliseconds by which the generators were late of themselves.
        rss: bytes of resident memory of all processes of the server, shared pages counted in each.
        shared_files, shared_bytes: what it holds in shared memory.
    """

    minute: float
    answered: int
    failed: int
    wrong: int
    unsent: int
    p50: float | None
    p99: float | None
    own_delay_p95: float | None
    rss: int
    processes: int
    shared_files: int
    shared_bytes: int


@dataclasses.dataclass(frozen=True)
class SoakOutcome:
    """The peak, the lines, the generators' own verdict on the load, and whether the server answers afterwards."""

    peak: Peak
    intervals: tuple[Interval, ...]
    run: OpenRun
    server_alive: bool


def soak(settings: SoakSettings, served: Served, lines: Path, say: Say) -> SoakOutcome:
    """Run it, writing each interval to `lines` as it passes."""
    peak = find_peak(served, settings.peak_seconds)
    rate = settings.share * peak.goodput
    say(f"peak: {peak.goodput:,.0f} right answers/s; {settings.hours:g} h at {rate:,.0f} requests/s")
    load = OpenLoad(
        port=served.port,
        connections=settings.connections,
        rate=rate,
        seconds=settings.seconds,
        warm_up=0.0,
        processes=settings.processes,
        report_every=min(5.0, settings.interval / 4),
    )
    with lines.open("w", encoding="utf-8") as file:
        writer = IntervalWriter(settings, served, file, say)
        run = run_open_loop(
            load, served.questions.requests, served.questions.fault, server=served.server.pid, taken=writer.take
        )
        writer.finish()
    return SoakOutcome(peak, tuple(writer.intervals), run, served.alive())


class IntervalWriter:
    """Sorts samples into intervals by the time at which they were due.

    One is written when the next but one has begun, so that its last answers are in; what comes later still, such as a
    request that hung, counts in the first interval that is not yet written.
    """

    def __init__(self, settings: SoakSettings, served: Served, file: TextIO, say: Say) -> None:
        self.intervals: list[Interval] = []
        self._settings, self._served, self._file, self._say = settings, served, file, say
        self._pending: dict[int, list[Sample]] = {}
        self._memory: dict[int, dict[str, int]] = {}
        self._written = -1
        self._latest = 0.0

    def take(self, samples: Sequence[Sample]) -> None:
        """Samples of some seconds, in any order."""
        for sample in samples:
            index = max(int(sample.intended / self._settings.interval), self._written + 1)
            self._pending.setdefault(index, []).append(sample)
            self._latest = max(self._latest, sample.finished)
        now = int(self._latest / self._settings.interval)
        if now not in self._memory:
            self._memory[now] = memory_of(self._served.server.pid, self._served.server.token)
        for index in sorted(index for index in self._pending if index < now - 1):
            self._write(index)

    def finish(self) -> None:
        """Write what is left."""
        for index in sorted(self._pending):
            self._write(index)

    def _write(self, index: int) -> None:
        length = self._settings.interval
        measured = Measured(tuple(self._pending.pop(index)), index * length, length)
        self._written = index
        late = [moment for moment in self._memory if moment > index]
        memory = self._memory[min(late)] if late else memory_of(self._served.server.pid, self._served.server.token)
        line = Interval(
            minute=(index + 1) * length / 60,
            answered=sum(sample.fault is None for sample in measured.samples),
            failed=measured.faults.total() - measured.wrong_answers,
            wrong=measured.wrong_answers,
            unsent=len(measured.samples) - len(measured.sent),
            p50=percentile(measured.latencies, 0.50),
            p99=percentile(measured.latencies, 0.99),
            own_delay_p95=percentile(measured.own_delays, 0.95),
            **memory,
        )
        self.intervals.append(line)
        self._file.write(json.dumps(dataclasses.asdict(line)) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # hours of work must outlive the machine
        self._say(
            f"{line.minute:.1f} min: {line.answered / length:,.0f} answers/s, p99 {line.p99 or 0:.1f} ms, "
            f"{line.failed + line.wrong + line.unsent} failed, {line.rss / 2**20:,.0f} MiB"
        )


def memory_of(pid: int, token: str) -> dict[str, int]:
    """Resident memory of a server's processes and its files in shared memory; zeros where it has gone."""
    rss = processes = 0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            rss += process.memory_info().rss
            processes += 1
    sizes = []
    for file in shared_regions(shm_prefix(token)):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(file.stat().st_size)
    return {"rss": rss, "processes": processes, "shared_files": len(sizes), "shared_bytes": sum(sizes)}


def growth(values: Sequence[float | None]) -> float | None:
    """By which part of its median a series grows from its begin to its end, by the Theil–Sen slope.

    None where a value is missing, or fewer than `FEWEST` are left after the settling ones.
    """
    settled = values[int(len(values) * _SETTLING) :]
    known = [value for value in settled if value is not None]
    if len(known) < FEWEST or len(known) < len(settled):
        return None
    slopes = [(known[j] - known[i]) / (j - i) for i in range(len(known)) for j in range(i + 1, len(known))]
    median = statistics.median(known)
    rise = statistics.median(slopes) * (len(known) - 1)
    return rise / median if median else 0.0 if rise == 0 else float("inf")


def judge_soak(settings: SoakSettings, outcome: SoakOutcome) -> Report:
    """The checks; a run that proves nothing does not hold."""
    report = Report("soak")
    lines = outcome.intervals
    seconds = len(lines) * settings.interval
    asked = sum(line.answered + line.failed + line.wrong for line in lines)
    invalid = problems(settings, outcome)
    report.add("goodput_peak", outcome.peak.goodput, "requests/s", "> 0")
    report.add("throughput", sum(line.answered for line in lines) / seconds if lines else None, "requests/s")
    report.add("hours", seconds / 3600, "h", f">= {0.999 * settings.hours:g}")
    report.add("error_rate", sum(line.failed for line in lines) / asked if asked else None, "", "<= 0")
    report.add("wrong_answers", sum(line.wrong for line in lines), "", "== 0")
    report.add("rss_growth", growth([line.rss for line in lines]), "of median", GROWTH_MEMORY)
    report.add("shared_memory_growth", growth([line.shared_bytes for line in lines]), "of median", GROWTH_MEMORY)
    report.add("shared_files_growth", growth([line.shared_files for line in lines]), "of median", "<= 0")
    report.add("latency_p99", max((line.p99 for line in lines if line.p99 is not None), default=None), "ms")
    report.add("latency_p99_growth", growth([line.p99 for line in lines]), "of median", GROWTH_LATENCY)
    report.add("generator_cpu", outcome.run.generator_cpu, "cores")
    report.add("valid", not invalid, "", "== 1")
    report.add("server_alive", outcome.server_alive, "", "== 1")
    report.details = {
        "settings": dataclasses.asdict(settings),
        "invalid": invalid,
        "messages": outcome.run.messages,
        "intervals": [dataclasses.asdict(line) for line in lines],
    }
    return report


def problems(settings: SoakSettings, outcome: SoakOutcome) -> list[str]:
    """Why the soak proves nothing."""
    found = list(outcome.run.invalid)
    if outcome.run.generator_cpu > CPU_LIMIT:
        found.append(f"a generator was saturated ({outcome.run.generator_cpu:.0%} of a core): use more processes")
    for line in outcome.intervals:
        if not line.answered:
            found.append(f"minute {line.minute:.1f}: nothing was answered")
        elif (line.own_delay_p95 or 0.0) > LATE:
            found.append(
                f"minute {line.minute:.1f}: the generators were {line.own_delay_p95:.0f} ms late by themselves"
            )
        elif line.unsent:
            found.append(f"minute {line.minute:.1f}: {line.unsent} requests found no connection")
    if len(outcome.intervals) < settings.seconds / settings.interval - 1:
        found.append(f"only {len(outcome.intervals)} intervals were seen")
    return found
