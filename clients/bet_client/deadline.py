"""The time that is left to a call: one deadline covers everything the call does, however many requests that takes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

from bet_client.errors import DeadlineExceededError


class Deadline:
    """A point in time, made from a timeout in seconds, and whose answer it is that must come by then."""

    def __init__(self, timeout: float, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.address = address
        self._timeout = timeout
        self._clock = clock
        self._end = clock() + timeout

    def remaining(self) -> float:
        """Seconds left, always positive.

        Raises:
            DeadlineExceededError: if none are left.
        """
        left = self._end - self._clock()
        if left <= 0:
            raise self.exceeded()
        return left

    def allows(self, seconds: float) -> bool:
        """Whether so many seconds pass before the time is up."""
        return self._clock() + seconds < self._end

    def microseconds(self) -> int:
        """What is left as Triton takes it, in whole microseconds and never 0, which would be no limit at all.

        Raises:
            DeadlineExceededError: if nothing is left.
        """
        return max(1, int(self.remaining() * 1e6))

    def at(self, address: str) -> Deadline:
        """The same moment, where it is the answer of this address that must come."""
        moved = copy.copy(self)
        moved.address = address
        return moved

    def exceeded(self) -> DeadlineExceededError:
        """The error for a call whose time ran out."""
        return DeadlineExceededError(
            f"no answer from {self.address} within {self._timeout:g} s; give the call a longer timeout, or see whether "
            "the server is overloaded"
        )
