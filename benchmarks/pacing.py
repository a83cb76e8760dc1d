"""When each user is due to ask: the load that is intended, fixed before the run and independent of the answers.

Fixed intervals with a random phase per user, so that users neither march in step nor bunch by chance. Latency is later
counted from these times; counted from the moment of sending, a stalled server would delay the very requests that ought
to show the stall ("coordinated omission": Gil Tene, How NOT to Measure Latency; wrk2).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from benchmarks.settings import LoadSettings


def due_times(settings: LoadSettings, user: int) -> list[float]:
    """The times, in seconds from the start of the warm-up, at which `user` (0 …) is due to ask.

    Users stand evenly in one interval, each displaced at random within its own share of it: any window of time
    is offered the rate that was asked for, give or take one request per user.
    """
    interval = settings.users / settings.rate
    phase = (user + random.Random(f"{settings.seed}/{user}").random()) / settings.users * interval
    count = int((settings.end - phase) / interval) + 1 if phase < settings.end else 0
    return [time for k in range(count) if (time := phase + k * interval) < settings.end]


def without_pause(settings: LoadSettings, clock: Callable[[], float]) -> Iterator[float]:
    """The closed loop: due whenever the last answer is there, until the end. It never knows a queue of its own."""
    while (now := clock()) < settings.end:
        yield now
