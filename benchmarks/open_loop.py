"""An open loop over HTTP/1.1: requests leave when they are due, on any idle connection of a large pool.

Arrivals do not wait for answers, as those of many independent users do not, so that a slow server meets a queue and not
fewer questions; latency counts from the time at which a request was due. Several generator processes share connections
and rate, since one Python process asks some thousand times a second, and hand their raw samples to this one, which
checks every answer. A run whose load was not the one that was asked for is invalid: a generator died, had no processor
time left or sent late by itself, or nothing was sent or rightly answered.
"""

from __future__ import annotations

import math
import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.arrivals import Arrival
from benchmarks.connections import accepted
from benchmarks.errors import ServerError
from benchmarks.faults_of_settings import below_zero, not_above_zero, refuse
from benchmarks.judgement import CPU_LIMIT, OFFERED_LIMIT
from benchmarks.open_loop_worker import LOST, UNANSWERED, WAITING, Part, Seen, work
from benchmarks.samples import NO_ANSWER, UNSENT, Measured, Sample, percentile

CONNECTION_LOST = "ConnectionLost"
LATE = 50.0
"""Milliseconds of the generators' own lateness at p95 above which they, not the server, held the load back."""

TIMELY = 1.0
"""Seconds within which a request is to be answered or refused; a later answer is none that somebody waited for."""

_CONNECT_TIMEOUT = 60.0  # seconds
_LOOK_EVERY = 2.0  # seconds between two counts of connections
_REMEMBERED = 50_000  # answers that were checked; a server gives few different ones to a text

Check = Callable[[int, bytes], str | None]


@dataclass(frozen=True)
class OpenLoad:
    """One load.

    Attributes:
        port: of a server on this machine.
        connections: held by all generators together.
        rate: requests/s of all together.
        seconds, warm_up: measured, and the same load before it, which is left out.
        patience: seconds that the last answers are waited for; what then has none never gets one.
        report_every: seconds between two hand-overs of samples.

    Raises:
        UsageError: with every value that cannot be right.
    """

    port: int
    connections: int
    rate: float
    seconds: float
    warm_up: float = 1.0
    arrival: Arrival = "poisson"
    processes: int = 1
    patience: float = 10.0
    report_every: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        faults = []
        if self.processes < 1 or self.connections < self.processes:
            faults.append(
                f"{self.connections} connections of {self.processes} processes: at least one process, and a connection "
                "for each, are needed"
            )
        faults += not_above_zero(self, "rate", "seconds", "patience", "report_every", write="a number above 0")
        faults += below_zero(self, "warm_up")
        refuse(faults)

    def parts(self) -> list[Part]:
        """What each generator process does."""
        of = self.processes
        return [
            Part(
                port=self.port,
                connections=self.connections // of + (k < self.connections % of),
                rate=self.rate,
                until=self.warm_up + self.seconds,
                warm_up=self.warm_up,
                arrival=self.arrival,
                patience=self.patience,
                report_every=self.report_every,
                seed=self.seed,
                part=k,
                parts=of,
            )
            for k in range(of)
        ]


@dataclass
class OpenRun:
    """What an open loop saw.

    Attributes:
        measured: the requests due in the measured part.
        messages: per kind of failure the first message.
        generator_cpu: processors that the busiest generator used in the measured part.
        connections: the fewest that the server was seen to hold from the start to the end; None where not told.
        invalid: why the run proves nothing; empty where it does.
    """

    measured: Measured
    messages: dict[str, str]
    generator_cpu: float
    connections: int | None
    invalid: tuple[str, ...]


def run_open_loop(
    load: OpenLoad,
    requests: Sequence[bytes],
    check: Check,
    *,
    server: int | None = None,
    taken: Callable[[Sequence[Sample]], None] | None = None,
) -> OpenRun:
    """Offer a load and return what came of it.

    Args:
        requests: asked in turn, each generator beginning at another.
        check: the fault of an answer to a request, of which the head is `Kind: message`; None where it is right.
        server: its process id, to count the connections on its side.
        taken: gets the samples of each hand-over and then owns them, so that a run of hours needs no memory; the
            result then holds no sample and is not judged by them.

    Raises:
        ServerError: if the generators cannot connect.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks, those of gRPC among them
    gathered = _Gathered(check, taken)
    generators = []
    try:
        for part in load.parts():
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(part, tuple(requests), theirs), daemon=True)
            process.start()
            theirs.close()
            generators.append(_Generator(process, ours))
        _wait_until_connected(generators, load)
        begin = time.perf_counter() + 0.05  # the clock is the machine's: it means the same in every process
        for generator in generators:
            generator.pipe.send(begin)
        fewest = _gather(generators, gathered, load, server, begin)
    finally:
        for generator in generators:
            generator.process.kill()
            generator.process.join()
            generator.pipe.close()
    measured = Measured.of(gathered.samples, load.warm_up, load.seconds)
    cpu = max((generator.cpu for generator in generators), default=0.0)
    invalid = [f"generator {k} died before its end" for k, g in enumerate(generators, start=1) if not g.done]
    if taken is None:
        invalid += [*faults_of_load(measured, cpu), *fault_of_pool(measured, load)]
    return OpenRun(measured, gathered.messages, cpu, fewest, tuple(invalid))


def faults_of_load(measured: Measured, generator_cpu: float) -> list[str]:
    """Why a load was not the one that was asked for."""
    found = []
    if not measured.sent:
        found.append("nothing was sent")
    elif not any(sample.fault is None for sample in measured.samples):
        found.append(f"none of {len(measured.sent)} requests got a right answer")
    late = percentile(measured.own_delays, 0.95) or 0.0
    if generator_cpu > CPU_LIMIT:
        found.append(f"a generator was saturated ({generator_cpu:.0%} of a core): use more processes or a lower rate")
    elif late > LATE:
        found.append(f"the generators sent {late:.0f} ms late by themselves at p95: the machine has no time for them")
    return found


def fault_of_pool(measured: Measured, load: OpenLoad) -> list[str]:
    """Whether it was the pool's size that held requests back.

    A pool for the requests of `TIMELY` that is exhausted says that the server answers more slowly than that: what could
    not be sent then counts against the server, as still waiting. A smaller pool says nothing.
    """
    short = measured.sent and (measured.offered or 0.0) < OFFERED_LIMIT
    if not short or load.connections >= load.rate * TIMELY:
        return []
    return [
        f"{measured.offered:.1%} of the load was sent, since {load.connections} connections are too few to have the "
        f"requests of {TIMELY:g} s under way: use {math.ceil(load.rate * TIMELY)}"
    ]


@dataclass
class _Generator:
    """One process and what it said of itself."""

    process: multiprocessing.process.BaseProcess
    pipe: multiprocessing.connection.Connection
    done: bool = False
    cpu: float = 0.0


@dataclass
class _Gathered:
    """Samples of all generators, with every answer checked."""

    check: Check
    taken: Callable[[Sequence[Sample]], None] | None
    samples: list[Sample] = field(default_factory=list)
    messages: dict[str, str] = field(default_factory=dict)
    _known: dict[tuple[int, bytes], str | None] = field(default_factory=dict)

    def add(self, seen: Seen) -> None:
        """Turn what a generator saw into samples."""
        samples = []
        for intended, ready, sent, finished, request, reply in seen.exchanges:
            fault = self._fault(request, reply, seen.replies)
            kind = None if fault is None else fault.partition(":")[0]
            if kind is not None and fault is not None:
                self.messages.setdefault(kind, fault)
            samples.append(Sample(intended, ready, sent, finished, kind))
        if self.taken is None:
            self.samples += samples
        else:
            self.taken(samples)

    def _fault(self, request: int, reply: int, replies: Sequence[bytes]) -> str | None:
        if reply in _MISSING:
            return _MISSING[reply]
        key = (request, replies[reply])
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = self.check(*key)
        return self._known[key]


_MISSING = {LOST: CONNECTION_LOST, UNANSWERED: NO_ANSWER, WAITING: UNSENT}


def _wait_until_connected(generators: Sequence[_Generator], load: OpenLoad) -> None:
    deadline = time.perf_counter() + _CONNECT_TIMEOUT
    for generator in generators:
        try:
            if not generator.pipe.poll(max(0.0, deadline - time.perf_counter())):
                raise ServerError(f"{load.connections} connections were not made within {_CONNECT_TIMEOUT:g} s")
            fault: str = generator.pipe.recv()
        except EOFError as error:
            raise ServerError("a generator died while it connected") from error
        if fault:
            raise ServerError(f"port {load.port} does not take {load.connections} connections: {fault}")


def _gather(
    generators: Sequence[_Generator], gathered: _Gathered, load: OpenLoad, server: int | None, begin: float
) -> int | None:
    """Take what the generators hand over until all have ended; returns the fewest connections seen at the server."""
    open_pipes = {generator.pipe: generator for generator in generators}
    fewest: int | None = None
    look_at = begin
    while open_pipes:
        now = time.perf_counter()
        if server is not None and look_at <= now < begin + load.warm_up + load.seconds:
            count = accepted(server, load.port)
            fewest = count if fewest is None or count is None else min(fewest, count)
            look_at = now + _LOOK_EVERY
        for pipe in multiprocessing.connection.wait([*open_pipes], timeout=max(0.02, look_at - now)):
            assert isinstance(pipe, multiprocessing.connection.Connection)
            try:
                message = pipe.recv()
            except (EOFError, ConnectionResetError):
                del open_pipes[pipe]
                continue
            if isinstance(message, Seen):
                gathered.add(message)
            else:
                open_pipes[pipe].done, open_pipes[pipe].cpu = True, message
    return fewest
