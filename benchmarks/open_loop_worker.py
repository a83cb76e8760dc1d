"""One generator process of the open loop: a pool of connections, and requests that leave at their due times.

It only keeps bytes and clock readings and hands them over now and then; who started it checks the answers. That leaves
its processor time to asking: it imports nothing that takes long or costs memory.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import multiprocessing.connection
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.arrivals import Arrival, arrivals
from benchmarks.http_connection import HttpConnection
from benchmarks.precise_loop import run_precisely

LOST, UNANSWERED, WAITING = -1, -2, -3
"""Instead of a reply's number: the connection was lost, the patience ended, or no connection was idle until the end."""

_TOGETHER = 64  # requests that a generator that is late sends before it reads again
_RECONNECT_AFTER = 0.1  # seconds, where the server does not accept

Exchange = tuple[float, float, float, float, int, int]
"""Intended, ready, sent and finished (seconds from the begin; see `samples.Sample`), request, reply."""


@dataclass(frozen=True)
class Part:
    """What one of `parts` generators does; rates are those of all of them, `until` the end in seconds."""

    port: int
    connections: int
    rate: float
    until: float
    warm_up: float
    arrival: Arrival
    patience: float
    report_every: float
    seed: int
    part: int
    parts: int


@dataclass(frozen=True)
class Seen:
    """One hand-over: exchanges, of which the last number says which of `replies`."""

    exchanges: list[Exchange]
    replies: list[bytes]


def work(part: Part, requests: Sequence[bytes], pipe: multiprocessing.connection.Connection) -> None:
    """Connect, say so (an empty text, or the fault), wait for the begin, ask, and end with the processor share used."""
    run_precisely(_Pool(part, requests, pipe).run())


class _Pool:
    """The connections of one generator."""

    def __init__(self, part: Part, requests: Sequence[bytes], pipe: multiprocessing.connection.Connection) -> None:
        self.part = part
        self.requests = requests
        self._pipe = pipe
        self._next = part.part * len(requests) // part.parts
        self._clients: set[_Client] = set()
        # First in, first out: each connection is used, and none rests for long.
        self._idle: collections.deque[_Client] = collections.deque()
        self._waiting: collections.deque[float] = collections.deque()
        self._exchanges: list[Exchange] = []
        self._replies: dict[bytes, int] = {}
        self._under_way = 0
        self._begin = 0.0
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._calm = asyncio.Event()

    def clock(self) -> float:
        """Seconds from the begin."""
        return time.perf_counter() - self._begin

    async def run(self) -> None:
        """The whole life of a generator."""
        due = arrivals(
            self.part.rate,
            self.part.until,
            self.part.arrival,
            seed=self.part.seed,
            part=self.part.part,
            parts=self.part.parts,
        )
        try:
            for _ in range(self.part.connections):
                await self._connect()
        except OSError as error:
            self._pipe.send(str(error))
            return
        self._pipe.send("")
        self._begin = await asyncio.to_thread(self._pipe.recv)
        reporting, using = asyncio.create_task(self._report()), asyncio.create_task(self._processor_share())
        await self._send_when_due(due)
        await asyncio.sleep(self.part.until - self.clock())
        share = await using
        self._give_up_waiting()
        if self._under_way:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._calm.wait(), self.part.patience)
        self._closing = True
        for client in list(self._clients):
            client.give_up()
        reporting.cancel()
        self._hand_over()
        self._pipe.send(share)

    async def _send_when_due(self, due: Sequence[float]) -> None:
        for number, intended in enumerate(due):
            if (left := intended - self.clock()) > 0:
                await asyncio.sleep(left)
            elif number % _TOGETHER == 0:
                await asyncio.sleep(0)
            if self._idle:
                client = self._idle.popleft()
                client.ask(intended, client.idle_since)
            else:
                self._waiting.append(intended)

    def next_request(self) -> int:
        """Requests in turn."""
        self._next += 1
        return (self._next - 1) % len(self.requests)

    def sent(self) -> None:
        """A request left."""
        self._under_way += 1
        self._calm.clear()

    def keep(self, exchange: Exchange) -> None:
        """A request has its answer, or will have none."""
        self._exchanges.append(exchange)
        self._under_way -= 1
        if not self._under_way:
            self._calm.set()

    def number_of(self, reply: bytes) -> int:
        """Of equal replies only one is handed over."""
        return self._replies.setdefault(reply, len(self._replies))

    def free(self, client: _Client) -> None:
        """A connection can be used again."""
        now = client.idle_since = self.clock()
        if self._waiting:
            client.ask(self._waiting.popleft(), now)
        else:
            self._idle.append(client)

    def replace(self, client: _Client) -> None:
        """A connection was lost: the pool keeps its size, as users would come back."""
        self._clients.discard(client)
        with contextlib.suppress(ValueError):
            self._idle.remove(client)
        if not self._closing:
            task = asyncio.create_task(self._reconnect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: _Client(self), "127.0.0.1", self.part.port)
        self._clients.add(client)
        self.free(client)

    async def _reconnect(self) -> None:
        while not self._closing:
            try:
                await self._connect()
                return
            except OSError:
                await asyncio.sleep(_RECONNECT_AFTER)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self.part.report_every)
            self._hand_over()

    async def _processor_share(self) -> float:
        await asyncio.sleep(self.part.warm_up - self.clock())
        used, since = time.process_time(), self.clock()
        await asyncio.sleep(self.part.until - self.clock())
        return (time.process_time() - used) / (self.clock() - since)

    def _give_up_waiting(self) -> None:
        now = self.clock()
        self._exchanges += [(intended, now, now, now, 0, WAITING) for intended in self._waiting]
        self._waiting.clear()

    def _hand_over(self) -> None:
        self._pipe.send(Seen(self._exchanges, list(self._replies)))
        self._exchanges, self._replies = [], {}


class _Client(HttpConnection):
    """One connection of the pool; it is the pool's while idle."""

    def __init__(self, pool: _Pool) -> None:
        super().__init__()
        self._pool = pool
        self._asked: tuple[float, float, float, int] | None = None
        self.idle_since = 0.0

    def ask(self, intended: float, ready: float) -> None:
        """Send the next request of the pool."""
        request = self._pool.next_request()
        self._asked = (intended, ready, self._pool.clock(), request)
        self._pool.sent()
        self.send(self._pool.requests[request])

    def answered(self, reply: bytes) -> None:
        self._keep(self._pool.number_of(reply))
        self._pool.free(self)

    def lost(self) -> None:
        if self._asked is not None:
            self._keep(LOST)
        self._pool.replace(self)

    def give_up(self) -> None:
        """Time is up: what has no answer gets none."""
        if self._asked is not None:
            self._keep(UNANSWERED)
        self.close()

    def _keep(self, reply: int) -> None:
        assert self._asked is not None
        intended, ready, sent, request = self._asked
        self._asked = None
        self._pool.keep((intended, ready, sent, self._pool.clock(), request, reply))
