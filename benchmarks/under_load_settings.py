"""What runs under load are asked to do: validated once, where it enters, with every fault in one message."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.faults_of_settings import not_above_zero, refuse

FEWEST = 4
"""Intervals after the settling ones, below which a slope means nothing."""


@dataclass(frozen=True)
class OverloadSettings:
    """One run.

    Attributes:
        factors: multiples of the peak that are offered, one after the other.
        seconds, warm_up: measured for each, and left out before.
        peak_seconds: for each number of callers in the search for the peak.
        connections, processes: of the generators together; as many as are due within a second, or the run says nothing
            where they are all taken.
        latency_p99: target of the accepted requests, such as "<= 500" (ms); None: reported alone.

    Raises:
        UsageError: with every value that cannot be right.
    """

    factors: tuple[float, ...] = (2.0, 5.0)
    seconds: float = 60.0
    warm_up: float = 5.0
    peak_seconds: float = 5.0
    connections: int = 4096
    processes: int = 2
    latency_p99: str | None = None

    def __post_init__(self) -> None:
        faults = []
        if not self.factors or min(self.factors) <= 1:
            faults.append(f"factors are {', '.join(map(str, self.factors))}, write multiples of the peak above 1")
        faults += not_above_zero(self, "seconds", "peak_seconds")
        refuse(faults)


@dataclass(frozen=True)
class SoakSettings:
    """One soak.

    Attributes:
        hours: how long.
        share: of the peak, which is measured before.
        interval: seconds of a line.
        peak_seconds: for each number of callers in the search for the peak.
        connections, processes: of the generators together.

    Raises:
        UsageError: with every value that cannot be right.
    """

    hours: float = 4.0
    share: float = 0.6
    interval: float = 60.0
    peak_seconds: float = 10.0
    connections: int = 64
    processes: int = 1

    def __post_init__(self) -> None:
        faults = []
        if not 0 < self.share < 1:
            faults.append(f"share is {self.share}, write a part of the peak between 0 and 1")
        faults += not_above_zero(self, "hours", "interval", "peak_seconds", write="a number above 0")
        if not faults and (needed := (FEWEST + 1) * self.interval) > self.seconds:
            faults.append(f"{self.seconds:g} s are too short for a slope: {needed:g} s are {FEWEST + 1} intervals")
        refuse(faults)

    @property
    def seconds(self) -> float:
        """How long, in seconds."""
        return 3600 * self.hours
