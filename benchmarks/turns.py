"""One turn of a comparison: a started system is asked for some seconds, and every answer is checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.closed_loop import run_closed_loop
from benchmarks.errors import PeerError
from benchmarks.peers.right_answers import RightAnswers
from benchmarks.peers.systems import Running
from benchmarks.processes import busy_seconds

Item = TypeVar("Item")
_FAULTS_KEPT = 5


@dataclass(frozen=True)
class Turn:
    """What one turn showed.

    Attributes:
        seconds: that were measured.
        latencies: milliseconds, one for each right answer of the measured part.
        wrong: answers that are missing, failed, or not the right ones; `faults` describes the first.
        largest_difference: of a probability to the right one.
        generator_cpu, server_cpu: processors that were busy with asking and with answering.
        other_cpu: processors that were busy with somebody else's work.
    """

    seconds: float
    latencies: tuple[float, ...]
    wrong: int
    faults: tuple[str, ...]
    largest_difference: float
    generator_cpu: float
    server_cpu: float
    other_cpu: float

    @property
    def right(self) -> int:
        """Right answers of the measured part."""
        return len(self.latencies)

    @property
    def throughput(self) -> float:
        """Right answers per second."""
        return self.right / self.seconds


def in_turn(items: Sequence[Item], number: int) -> tuple[Item, ...]:
    """All items, round `number` beginning with another than the round before."""
    first = number % len(items)
    return (*items[first:], *items[:first])


def take_turn(
    running: Running,
    texts: Sequence[str],
    right: RightAnswers,
    *,
    callers: int,
    seconds: float,
    warm_up: float,
    tolerance: float,
) -> Turn:
    """Ask `running` for `texts` in a closed loop.

    Raises:
        PeerError: if it gave no right answer at all.
    """
    requests = [running.request(text) for text in texts]
    began, machine = running.processor_seconds(), busy_seconds()
    loop = run_closed_loop(running.ports, requests, callers, seconds, warm_up)
    spent, busy = running.processor_seconds() - began, busy_seconds() - machine
    latencies, faults, largest = [], [], 0.0
    for exchange in loop.exchanges:
        try:
            answer = running.read(exchange)
        except ValueError as error:
            faults.append(str(error))
            continue
        difference = right.difference(exchange.request, answer.label, answer.probability)
        largest = max(largest, difference)
        if difference <= tolerance:
            latencies.append(1000 * (exchange.end - exchange.start))
        else:
            faults.append(f"{answer} instead of {right.describe(exchange.request)}")
    if not latencies:
        raise PeerError(f"{running.name} gave no right answer: {(faults or ['no answer within the time'])[0]}")
    return Turn(
        seconds=seconds,
        latencies=tuple(latencies),
        wrong=len(faults),
        faults=tuple(faults[:_FAULTS_KEPT]),
        largest_difference=largest,
        generator_cpu=loop.generator_cpu,
        server_cpu=spent / loop.elapsed,
        other_cpu=max(0.0, busy / loop.elapsed - spent / loop.elapsed - loop.generator_cpu),
    )
