"""A closed loop over HTTP/1.1: so many callers, each on a connection of its own, asking again once it was answered.

Made to cost little, since on a small machine the generator takes processor time from the server that it measures: the
bytes of every request are made beforehand, answers are kept as bytes and read when the clock has stopped, and one event
loop writes and reads without a client library (60–90 µs an exchange). It is the same for every system that is
compared, and says what it cost.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.http_connection import HttpConnection, body_of, header_of, status_of

_LAST_ANSWERS = 60.0  # seconds that the answers under way are waited for when time is up


@dataclass(frozen=True)
class Exchange:
    """One request and its answer.

    Attributes:
        request: its index in the requests that were given.
        start, end: seconds since the loop began.
        reply: status line, headers and body; empty where the connection was lost.
    """

    request: int
    start: float
    end: float
    reply: bytes

    @property
    def status(self) -> int:
        """The HTTP status; 0 where there was no answer."""
        return status_of(self.reply)

    @property
    def body(self) -> bytes:
        """What follows the headers."""
        return body_of(self.reply)

    def header(self, name: str) -> str | None:
        """The value of a header of the answer."""
        return header_of(self.reply, name)


@dataclass(frozen=True)
class Loop:
    """What a closed loop saw.

    Attributes:
        exchanges: those that ended in the measured part, and those that never ended.
        elapsed: seconds from the first request to the last answer, warm-up included.
        generator_cpu: processor seconds of this process per second of the measured part.
    """

    exchanges: tuple[Exchange, ...]
    elapsed: float
    generator_cpu: float


def run_closed_loop(
    ports: Sequence[int], requests: Sequence[bytes], callers: int, seconds: float, warm_up: float
) -> Loop:
    """Ask servers on this machine for `warm_up + seconds` seconds, and keep what ended in the last `seconds`.

    Args:
        ports: callers are spread evenly over them, as a perfect load balancer in front would.
        requests: asked in turn, each caller beginning at another.

    Raises:
        OSError: if nothing listens on a port.
    """
    return asyncio.run(_run(ports, requests, callers, seconds, warm_up))


async def _run(ports: Sequence[int], requests: Sequence[bytes], callers: int, seconds: float, warm_up: float) -> Loop:
    loop = asyncio.get_running_loop()
    run = _Run(requests, time.perf_counter(), warm_up + seconds, callers)
    for index in range(callers):
        connect = functools.partial(_Caller, run, index * len(requests) // callers)
        await loop.create_connection(connect, "127.0.0.1", ports[index % len(ports)])
    run.begin = time.perf_counter()
    for caller in run.callers:
        caller.ask()
    await asyncio.sleep(warm_up)
    cpu, since = time.process_time(), time.perf_counter()
    await asyncio.sleep(run.begin + run.until - time.perf_counter())
    generator_cpu = (time.process_time() - cpu) / (time.perf_counter() - since)
    try:
        await asyncio.wait_for(run.idle.wait(), _LAST_ANSWERS)
    except TimeoutError:
        for caller in run.callers:
            caller.give_up()
    elapsed = time.perf_counter() - run.begin
    for caller in run.callers:
        caller.close()
    kept = [e for e in run.exchanges if not e.reply or warm_up < e.end <= run.until]
    return Loop(tuple(kept), elapsed, generator_cpu)


class _Run:
    """What the callers of one loop share."""

    def __init__(self, requests: Sequence[bytes], begin: float, until: float, callers: int) -> None:
        self.requests = requests
        self.begin = begin
        self.until = until
        self.exchanges: list[Exchange] = []
        self.callers: list[_Caller] = []
        self.asking = callers
        self.idle = asyncio.Event()

    def leave(self) -> None:
        self.asking -= 1
        if not self.asking:
            self.idle.set()


class _Caller(HttpConnection):
    """One connection, with one request under way at a time."""

    def __init__(self, run: _Run, first: int) -> None:
        super().__init__()
        self._run = run
        self._next = first
        self._asked: tuple[int, float] | None = None
        run.callers.append(self)

    def ask(self) -> None:
        """Send the next request, or leave where time is up."""
        run = self._run
        now = time.perf_counter() - run.begin
        if now >= run.until:
            run.leave()
            return
        index = self._next % len(run.requests)
        self._next += 1
        self._asked = (index, now)
        self.send(run.requests[index])

    def answered(self, reply: bytes) -> None:
        self._keep(reply)
        self.ask()

    def lost(self) -> None:
        self.give_up()

    def give_up(self) -> None:
        """Record what was asked and not answered."""
        if self._asked is not None:
            self._keep(b"")
            self._run.leave()

    def _keep(self, reply: bytes) -> None:
        assert self._asked is not None
        index, start = self._asked
        self._asked = None
        self._run.exchanges.append(Exchange(index, start, time.perf_counter() - self._run.begin, reply))
