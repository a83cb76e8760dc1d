"""Whether a failed call is sent again, and when.

An inference changes nothing on the server, so sending it twice is safe. What is not safe is a crowd of clients that
answer an overload with more load. Against that stand full jitter (Brooker, "Exponential Backoff and Jitter", AWS
Architecture Blog, 2015), which spreads a crowd out, and a budget (as in gRPC's proposal A6), which bounds what retries
add to the load however long the overload lasts.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DEFAULT_RETRIES = 2
"""Times that one request is sent again: with the first back-offs some 0.15 s on average, the length of a hiccup."""

FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 2.0
"""Seconds: the most that the first retry waits, doubled for each further one up to the second number."""

SHARE = 0.1
"""Retries for each request that is made: where everything fails, the load grows by a tenth and no more."""

BURST = 10.0
"""Retries that a client saves up for a fault which meets many of its calls at once."""


@dataclass(frozen=True)
class Timing:
    """The time and the chance by which a client retries; a test puts its own in their place."""

    sleep: Callable[[float], Any]
    """Waits so many seconds; for an `AsyncClient` what it returns is awaited."""
    clock: Callable[[], float] = time.monotonic
    """Seconds since some moment."""
    random: Callable[[], float] = random.random
    """A number from [0, 1)."""

    def backoff(self, retries: int) -> float:
        """Seconds to wait before the next retry, after so many retries of the request."""
        return self.random() * doubled(FIRST_BACKOFF, retries, LONGEST_BACKOFF)


def doubled(first: float, times: int, longest: float) -> float:
    """A number of seconds doubled so many times, up to a limit that it reaches within 30."""
    return min(longest, first * 2.0 ** min(times, 30))  # of a thousand times and more there is no float


class RetryBudget:
    """A bucket of tokens, one for each retry; every request puts a tenth of one into it. For any number of threads."""

    def __init__(self) -> None:
        self._tokens = BURST
        self._lock = threading.Lock()

    def earn(self) -> None:
        """A request is made."""
        with self._lock:
            self._tokens = min(BURST, self._tokens + SHARE)

    def spend(self) -> bool:
        """Take the token of a retry; False where none is left."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True
