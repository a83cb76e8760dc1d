"""When requests are due in an open loop: fixed before the run, by a rate alone, whatever the server answers."""

from __future__ import annotations

import random
from typing import Literal

Arrival = Literal["fixed", "poisson"]


def arrivals(
    rate: float, seconds: float, arrival: Arrival, *, seed: int = 0, part: int = 0, parts: int = 1
) -> list[float]:
    """Ascending times in [0, seconds) at which one of `parts` generators is due to ask.

    All parts together offer `rate` requests/s. At a fixed rate they take turns, evenly spaced; Poisson processes of a
    part of the rate each add up to one of the whole.
    """
    if arrival == "fixed":
        interval = 1 / rate
        times = ((part + k * parts) * interval for k in range(int(seconds * rate / parts) + 2))
        return [time for time in times if time < seconds]
    draw, now, found = random.Random(f"{seed}/{part}"), 0.0, []
    while (now := now + draw.expovariate(rate / parts)) < seconds:
        found.append(now)
    return found
