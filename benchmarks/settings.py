"""What one load run is asked to do: validated once, where it enters, with every fault in one message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import urlsplit

from benchmarks.faults_of_settings import below_one, below_zero, not_above_zero, refuse

Protocol = Literal["grpc", "http"]

DEFAULT_URLS: dict[str, str] = {"grpc": "localhost:8001", "http": "localhost:8000"}


@dataclass(frozen=True)
class LoadSettings:
    """One load run.

    Attributes:
        url: `host:port` of the server, no scheme.
        protocol: `grpc` or `http`.
        model: the ensemble to ask.
        users: simultaneous users, each with a client and a connection of its own.
        rate: requests/s of all users together; 0 is a closed loop, where each user asks again once it was answered.
        duration: seconds that are measured.
        warm_up: seconds of the same load before, which are left out.
        seed: of the users' phases and of the order of the texts.

    Raises:
        UsageError: with every value that cannot be right.
    """

    url: str
    protocol: Protocol = "grpc"
    model: str = "bet"
    # For 2 cores shared with the server: 100 requests/s cost the generator 12–19 % of one core (locustfile.py) and
    # leave the server the rest; 100 users, so that requests meet in the server and are executed together.
    users: int = 100
    rate: float = 100.0
    duration: float = 20.0
    warm_up: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        faults = []
        if self.protocol not in get_args(Protocol):
            faults.append(f"protocol is {self.protocol!r}, write grpc or http")
        if "/" in self.url or _port(self.url) is None:
            faults.append(
                f"url is {self.url!r}, write host:port such as {DEFAULT_URLS.get(self.protocol, 'localhost:8001')}"
            )
        if not self.model:
            faults.append("model is empty, write the name of the ensemble such as bet")
        faults += below_one(self, "users")
        if not 0 <= self.rate < float("inf"):
            faults.append(f"rate is {self.rate}, write requests/s, or 0 for a closed loop")
        faults += not_above_zero(self, "duration")
        faults += below_zero(self, "warm_up")
        if not faults and 0 < self.rate * self.duration < self.users:
            faults.append(
                f"{self.users} users at {self.rate:g} requests/s for {self.duration:g} s would not ask once each: "
                "use fewer users, a higher rate or a longer duration"
            )
        refuse(faults)

    @property
    def port(self) -> int:
        """The server's port."""
        port = _port(self.url)
        assert port is not None  # validated above
        return port

    @property
    def end(self) -> float:
        """Seconds from the start of the warm-up to the end of the measured part."""
        return self.warm_up + self.duration


def _port(url: str) -> int | None:
    """The port of `host:port`, None where there is none."""
    try:
        return urlsplit(f"//{url}").port
    except ValueError:
        return None
