"""Which of several servers the next request goes to: in turn, past those that failed a moment ago.

A server that failed is left out for a while, longer each time that it fails again. When the while is over, one request
goes there to see; the others still pass it by until that one has its answer. Where all are left out, the one that is
due back first is asked, since a refusal without asking would help nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass

from bet_client.retries import Timing, doubled

FIRST_ABSENCE, LONGEST_ABSENCE = 0.5, 10.0
"""Seconds for which a server is left out: after its first failure, and after many in a row. A restart of Triton takes
some seconds, and what a needless look at a dead server costs is one refused connection."""


@dataclass
class _Endpoint:
    failures: int = 0
    """In a row."""
    back_at: float = float("-inf")
    """By the client's clock."""


class Endpoints:
    """The servers of one client by number, from 0; for any number of threads."""

    def __init__(self, count: int, timing: Timing) -> None:
        self._clock = timing.clock
        self._endpoints = [_Endpoint() for _ in range(count)]
        self._next = int(timing.random() * count)  # else every client of a fleet would begin with the same server
        self._lock = threading.Lock()

    def choose(self, tried: Collection[int] = ()) -> int:
        """The server for a request that has already failed at those that were tried."""
        with self._lock:
            now, count = self._clock(), len(self._endpoints)
            turn = [(self._next + i) % count for i in range(count)]
            present = [i for i in turn if self._endpoints[i].back_at <= now]
            untried = [i for i in present if i not in tried]
            if present:
                chosen = (untried or present)[0]
            else:
                chosen = min(turn, key=lambda i: (i in tried, self._endpoints[i].back_at))
            if self._endpoints[chosen].failures:
                self._leave_out(self._endpoints[chosen])
            self._next = (chosen + 1) % count
            return chosen

    def worked(self, number: int) -> None:
        """This server answered."""
        with self._lock:
            self._endpoints[number] = _Endpoint()

    def failed(self, number: int, retry_after: float | None = None) -> None:
        """This server could not be reached, or is unavailable and may have said for how many seconds."""
        with self._lock:
            self._endpoints[number].failures += 1
            self._leave_out(self._endpoints[number], retry_after or 0.0)

    def _leave_out(self, endpoint: _Endpoint, at_least: float = 0.0) -> None:
        absence = doubled(FIRST_ABSENCE, endpoint.failures - 1, LONGEST_ABSENCE)
        endpoint.back_at = self._clock() + max(absence, min(at_least, LONGEST_ABSENCE))
