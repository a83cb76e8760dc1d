"""What was seen of each request, and the exact figures over it.

Locust rounds its response times to two digits to keep them few; a run of some minutes fits into a plain list, so the
report takes every figure from here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

WRONG_ANSWER = "WrongAnswer"
NO_ANSWER = "NoAnswer"
UNSENT = "Unsent"

_SHARES = {"p10": 0.10, "p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99, "p99_9": 0.999, "max": 1.0}


class Sample(NamedTuple):
    """One request; times in seconds from the start of the warm-up.

    `ready` is when its user had been answered before and could ask again, `sent` is never before it. `fault` is None
    for a right answer, else `WRONG_ANSWER`, the name of the client's error, `NO_ANSWER`, or `UNSENT`: due before the
    end of the run and not sent by then, so that its latency up to `finished`, where that was noted, is a lower bound.
    """

    intended: float
    ready: float
    sent: float
    finished: float
    fault: str | None

    @property
    def latency(self) -> float:
        """Seconds from the intended time of sending to the answer."""
        return self.finished - self.intended

    @property
    def own_delay(self) -> float:
        """Seconds by which the generator itself, not the server, sent it late."""
        return self.sent - max(self.intended, self.ready)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` (0 < share <= 1) of the ascending values do not exceed; None of none.

    The nearest-rank definition: a latency that was seen, never one between two that were. `10 * 0.95` in floats is
    9.5, but `100 * 0.07` is above 7: the rank is rounded before the ceiling.
    """
    if not ordered:
        return None
    rank = math.ceil(round(share * len(ordered), 9))
    return ordered[max(rank, 1) - 1]


@dataclass(frozen=True)
class Second:
    """One slice of the measured part: rates in requests/s, latencies in ms of the requests due in it."""

    start: float
    due: float
    answered: float
    failed: float
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True)
class Measured:
    """The requests that were due in the measured part.

    Attributes:
        samples: the requests, in the order in which they were due.
        start, duration: the measured part, in seconds from the start of the warm-up.
    """

    samples: tuple[Sample, ...]
    start: float
    duration: float

    @classmethod
    def of(cls, samples: Sequence[Sample], start: float, duration: float) -> Measured:
        """Choose by the intended time: the warm-up is left out with all its consequences, a late start is not."""
        within = (s for s in samples if start <= s.intended < start + duration)
        chosen = sorted(within, key=lambda sample: sample.intended)
        return cls(tuple(chosen), start, duration)

    @cached_property
    def sent(self) -> list[Sample]:
        """The requests that left."""
        return [s for s in self.samples if s.fault != UNSENT]

    @cached_property
    def faults(self) -> Counter[str]:
        """Number of failed requests by kind, wrong answers among them."""
        return Counter(s.fault for s in self.samples if s.fault is not None and s.fault != UNSENT)

    @property
    def wrong_answers(self) -> int:
        """Number of answers that differ from the one asked before the load."""
        return self.faults[WRONG_ANSWER]

    @property
    def error_rate(self) -> float | None:
        """Share of the sent requests that got no answer; wrong answers are a count of their own."""
        sent = len(self.sent)
        return (self.faults.total() - self.wrong_answers) / sent if sent else None

    @property
    def offered(self) -> float | None:
        """Share of the due requests that were sent before the run was over."""
        return len(self.sent) / len(self.samples) if self.samples else None

    @property
    def throughput(self) -> float:
        """Right answers per second that arrived within the measured part."""
        end = self.start + self.duration
        return sum(s.fault is None and s.finished < end for s in self.samples) / self.duration

    @cached_property
    def latencies(self) -> list[float]:
        """Ascending milliseconds of the answers, and of what was never sent (it would flatter to leave it out)."""
        return sorted(1000 * s.latency for s in self.samples if s.fault in (None, WRONG_ANSWER, UNSENT))

    @cached_property
    def own_delays(self) -> list[float]:
        """Ascending milliseconds by which the generator was late of itself."""
        return sorted(1000 * s.own_delay for s in self.sent)

    def by_second(self, most: int = 120) -> list[Second]:
        """The course of the run in equal slices of whole seconds, at most `most` of them."""
        width = max(1, math.ceil(self.duration / most))
        slices = max(1, math.ceil(self.duration / width - 1e-9))
        due: list[list[Sample]] = [[] for _ in range(slices)]
        answered, failed = [0] * slices, [0] * slices
        for sample in self.samples:
            due[min(int((sample.intended - self.start) / width), slices - 1)].append(sample)
            index = int((sample.finished - self.start) / width)
            if index < slices and sample.fault != UNSENT:
                (answered if sample.fault is None else failed)[index] += 1
        course = []
        for index, group in enumerate(due):
            latencies = Measured(tuple(group), 0, 1).latencies
            seconds = min(width, self.duration - index * width)
            course.append(
                Second(
                    start=float(index * width),
                    due=len(group) / seconds,
                    answered=answered[index] / seconds,
                    failed=failed[index] / seconds,
                    p50=percentile(latencies, 0.50),
                    p95=percentile(latencies, 0.95),
                    p99=percentile(latencies, 0.99),
                )
            )
        return course

    def details(self, messages: Mapping[str, str]) -> dict[str, Any]:
        """Latencies, failures with the first message of each kind, and the course, for the JSON file."""
        return {
            "latency_ms": {name: percentile(self.latencies, share) for name, share in _SHARES.items()},
            "failures": {
                kind: {"count": count, "first_message": messages.get(kind)} for kind, count in self.faults.most_common()
            },
            "seconds": [asdict(second) for second in self.by_second()],
        }
