"""The Locust users: each asks through a `bet_client.Client` of its own, as an application does, at its due times.

The generator shares its machine with the server, so its own cost counts. Measured with 100 users and a stand-in model
on 2 busy cores, in ms of processor time a request: at 100 requests/s 1.9 over gRPC and 1.2 over HTTP, at 500 requests/s
0.8 and 0.6. Pre-encoded bytes over a bare gRPC channel cost 1.0 and 0.5, most of it for waking up: the rest is too
little to give up measuring the client that applications run. Under gevent a user is a greenlet; its blocking calls
yield, those of gRPC by `grpc.experimental.gevent`, whose asyncio API (`AsyncClient`) therefore stays unused here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import gevent
import gevent.event
from bet_client import BetClientError, Client, Prediction
from locust import User, task
from locust.exception import StopUser

from benchmarks.answers import WrongAnswer, difference
from benchmarks.pacing import due_times, without_pause
from benchmarks.samples import NO_ANSWER, UNSENT, WRONG_ANSWER, Sample
from benchmarks.settings import LoadSettings

TIMEOUT = 10.0
"""Seconds that a user waits for an answer, then it is an error; far above every target."""


@dataclass
class Session:
    """What the users of one run share: the texts, the right answers, the common clock, and what they saw.

    `begin` is set once all users are connected; the clock then starts at 0 with the warm-up. `asking` holds, by user,
    the intended time, the time it was ready and the time of sending of each request that has no answer yet.
    """

    settings: LoadSettings
    texts: Sequence[str]
    expected: Sequence[Prediction]
    samples: list[Sample] = field(default_factory=list)
    messages: dict[str, str] = field(default_factory=dict)
    joined: int = 0
    connected: int = 0
    refused: list[str] = field(default_factory=list)
    asking: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    finished: int = 0
    begin: gevent.event.Event = field(default_factory=gevent.event.Event)
    _started: float = 0.0

    def start(self) -> None:
        """Start the clock and let the users go."""
        self._started = time.perf_counter()
        self.begin.set()

    def clock(self) -> float:
        """Seconds from the start of the warm-up."""
        return time.perf_counter() - self._started

    def give_up(self) -> None:
        """Count what is still without an answer as failed, so that a client that hangs cannot hide a request."""
        now = self.clock()
        for intended, ready, sent in self.asking.values():
            self.samples.append(Sample(intended, ready, sent, now, NO_ANSWER))
            self.messages.setdefault(NO_ANSWER, f"no answer and no error {now - sent:.0f} s after it was sent")


class BetUser(User):
    """One user with one connection; asks once per due time and checks the answer.

    `session` is given to the class before the run, since Locust makes the users.
    """

    abstract = True
    session: ClassVar[Session]

    def on_start(self) -> None:
        """Connect, then wait for the others."""
        session, settings = self.session, self.session.settings
        self._number, session.joined = session.joined, session.joined + 1
        self._random = random.Random(f"{settings.seed}/texts/{self._number}")
        # Each request is counted as the server met it: a failure that a retry mends is a failure.
        self._client = Client(
            settings.url, protocol=settings.protocol, model=settings.model, timeout=TIMEOUT, retries=0
        )
        try:
            self._client.predict(session.texts[0])
        except BetClientError as error:
            session.refused.append(str(error))
            raise StopUser from error
        session.connected += 1
        session.begin.wait()
        self._ready = 0.0
        self._due: Iterator[float] = (
            iter(due_times(settings, self._number)) if settings.rate else without_pause(settings, session.clock)
        )

    @task
    def ask(self) -> None:
        """One request at its due time; what is due and cannot be sent before the end is noted as unsent."""
        session = self.session
        intended = next(self._due, None)
        if intended is None:
            session.finished += 1
            raise StopUser
        now = session.clock()
        if now < intended:
            gevent.sleep(intended - now)
            now = session.clock()
        elif now >= session.settings.end:
            session.samples.append(Sample(intended, self._ready, now, now, UNSENT))
            return
        self._send(intended, now)

    def _send(self, intended: float, sent: float) -> None:
        session = self.session
        number = self._random.randrange(len(session.texts))
        session.asking[self._number] = (intended, self._ready, sent)
        error: Exception | None = None
        fault: str | None = None
        try:
            answer = self._client.predict(session.texts[number])
        except BetClientError as raised:
            error, fault = raised, type(raised).__name__
        finished = session.clock()
        del session.asking[self._number]
        if error is None and (wrong := difference(session.expected[number], answer)) is not None:
            error, fault = WrongAnswer(f"text {number + 1}: {wrong}"), WRONG_ANSWER
        if fault is not None:
            session.messages.setdefault(fault, str(error))
        sample = Sample(intended, self._ready, sent, finished, fault)
        session.samples.append(sample)
        self._ready = finished
        self.environment.events.request.fire(
            request_type=session.settings.protocol,
            name=session.settings.model,
            response_time=1000 * sample.latency,
            response_length=0,
            exception=error,
            context={},
        )

    def on_stop(self) -> None:
        """Close the connection and forget the client (why: see `benchmarks.__main__.main`)."""
        self._client.close()
        del self._client


class GrpcUser(BetUser):
    """A user of the gRPC endpoint."""


class HttpUser(BetUser):
    """A user of the HTTP endpoint."""


USERS: dict[str, type[BetUser]] = {"grpc": GrpcUser, "http": HttpUser}
