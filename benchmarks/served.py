"""A server of our own for a run under load: started with room for its connections, its texts asked once alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import serve
from benchmarks.closed_loop import run_closed_loop
from benchmarks.ensemble import Questions
from benchmarks.errors import BenchmarkError, ServerError
from benchmarks.open_files import allow_connections
from benchmarks.open_loop import TIMELY
from benchmarks.peers.exported import exported_folder
from benchmarks.peers.right_answers import exact_texts
from benchmarks.samples import WRONG_ANSWER
from train.tokenizer import load_tokenizer

_CALLERS = (16, 32, 64, 128)
_START_SECONDS = 300.0


@dataclass(frozen=True)
class Served:
    """A running server and what it is asked."""

    server: serve.Server
    questions: Questions

    @property
    def port(self) -> int:
        """Of its HTTP endpoint."""
        return self.server.ports.http

    def alive(self) -> bool:
        """Whether it still answers the first text, rightly: readiness says nothing about a dead backend."""
        try:
            loop = run_closed_loop([self.port], self.questions.requests[:1], 1, 0.05, 0.0)
        except OSError:
            return False
        return any(self.questions.fault(0, e.reply) is None for e in loop.exchanges)


@contextlib.contextmanager
def serve_texts(repository: Path, model: str, texts: Sequence[str], connections: int) -> Iterator[Served]:
    """Start the ensemble and ask each text alone.

    Raises:
        UsageError: if the system does not allow as many connections.
        ServerError: if the server does not start or does not answer.
    """
    allow_connections(connections)  # before the start: the server inherits the limit
    try:
        with serve.start(repository, models=[model], timeout=_START_SECONDS) as server:
            yield Served(server, Questions.ask(server.http_url, model, texts))
    except serve.ServeError as error:
        raise ServerError(str(error)) from error


def beginnings(repository: Path, model: str, texts: Sequence[str], tokens: int, count: int) -> list[str]:
    """Beginnings of real texts with exactly so many tokens of the version that `model` serves."""
    with exported_folder(repository, model) as folder:
        return exact_texts(load_tokenizer(folder), texts, tokens, count)


@dataclass(frozen=True)
class Peak:
    """The most right answers per second that a closed loop got, each within `TIMELY`, and with how many callers."""

    goodput: float
    callers: int


def find_peak(served: Served, seconds: float) -> Peak:
    """Ask in a closed loop with more and more callers, `seconds` with each number, and take the best.

    Raises:
        BenchmarkError: if an answer differs from the one given alone, or none is right in time.
    """
    peaks = []
    for callers in _CALLERS:
        loop = run_closed_loop([served.port], served.questions.requests, callers, seconds, min(0.5, seconds))
        faults = [served.questions.fault(exchange.request, exchange.reply) for exchange in loop.exchanges]
        wrong = [fault for fault in faults if fault is not None and fault.startswith(WRONG_ANSWER)]
        if wrong:
            raise BenchmarkError(f"{len(wrong)} answers are wrong before there is any overload: {wrong[0]}")
        timely = sum(
            fault is None and exchange.end - exchange.start <= TIMELY
            for fault, exchange in zip(faults, loop.exchanges, strict=True)
        )
        peaks.append(Peak(timely / seconds, callers))
    best = max(peaks, key=lambda peak: peak.goodput)
    if not best.goodput:
        raise BenchmarkError(f"no answer came within {TIMELY:g} s in a closed loop; see the server's log")
    return best
