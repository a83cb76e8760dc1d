"""When the supervisor restarts and when it does not, told by servers that only say what they were written to say."""

from __future__ import annotations

import dataclasses
import http.client
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import cast

import pytest

import serve
from serve.health import Health
from serve.probe import BusyError, NotReadyError, SilentError, StubLostError
from serve.supervisor import Policy, supervise

QUICK = Policy(interval=0.001, again=0.001, timeout=10, restarts=2, back_off=0.001, drain=3)
AT_ONCE = dataclasses.replace(QUICK, timeout=0.0)  # every wait is over when it begins

RIGHT = None
WRONG = serve.ProbeError("label = ['short']")
SILENT = NotReadyError("timed out")
BUSY = BusyError("exceeds maximum queue size")


class Scripted:
    """A server whose probes go as written, and which then asks for the end of the test."""

    pid = 1

    def __init__(self, probes: Iterable[Exception | None], executions: Iterable[tuple[int, ...]] = ()) -> None:
        self.probes, self.counts = iter(probes), iter(executions)
        self.drained: float | None = None
        self.over = threading.Event()

    def check(self, timeout: float) -> None:
        probe = next(self.probes, "over")
        if probe == "over":
            self.over.set()
        elif isinstance(probe, Exception):
            raise probe

    def executions(self, timeout: float) -> tuple[int, ...]:
        counts = next(self.counts)
        if not counts:
            raise NotReadyError("no statistics")
        return counts

    def is_running(self) -> bool:
        return True

    def stop(self, drain_seconds: float) -> None:
        self.drained = drain_seconds


def restarted(server: Scripted, policy: Policy = QUICK) -> bool:
    """Whether the supervisor replaced the server before its script was over."""
    replacement = Scripted([])
    replacement.over = server.over
    supervise(
        cast(serve.Server, server),
        lambda: server.over.set() or cast(serve.Server, replacement),  # type: ignore[func-returns-value]
        server.over,
        policy,
    )
    return server.drained is not None


@pytest.mark.parametrize(
    ("probes", "replaced"),
    [
        ([RIGHT] * 20, False),
        ([WRONG, *[RIGHT] * 9, WRONG, *[RIGHT] * 9], False),
        ([WRONG, *[RIGHT] * 8, WRONG], True),
        ([SILENT, RIGHT, RIGHT, RIGHT, SILENT, RIGHT], False),
        ([SILENT, RIGHT, RIGHT, SILENT], True),
        ([WRONG, SILENT, RIGHT], False),
        ([StubLostError("not healthy")], True),
    ],
    ids=["right", "wrong seldom", "wrong twice", "silent seldom", "silent twice", "one of each", "a stub lost"],
)
def test_errors_and_silences_are_counted_within_their_windows(probes: list[Exception | None], replaced: bool) -> None:
    assert restarted(Scripted(probes)) is replaced


def test_other_instances_may_finish_except_beside_a_stub_whose_late_answer_would_go_to_the_next_request() -> None:
    lost, wrong = Scripted([StubLostError("not healthy")]), Scripted([WRONG, WRONG])
    assert restarted(lost)
    assert restarted(wrong)
    assert (lost.drained, wrong.drained) == (0, QUICK.drain)


def test_a_full_queue_is_a_sign_of_life_while_the_steps_execute() -> None:
    counts = [(n, 5) for n in range(9)]
    assert not restarted(Scripted([BUSY] * 9, counts), AT_ONCE)


def test_a_full_queue_before_steps_that_stand_still_is_silence() -> None:
    assert restarted(Scripted([BUSY] * 9, [(7, 5)] * 9), AT_ONCE)


def test_a_full_queue_before_an_execution_that_may_still_end_is_neither() -> None:
    assert not restarted(Scripted([BUSY] * 9, [(7, 5)] * 9), QUICK)
    between = Scripted([SILENT, *[BUSY] * 9, SILENT], [(7, 5)] * 9)
    assert restarted(between, dataclasses.replace(QUICK, silence_window=3)), "those probes push no silence out"


def test_a_full_queue_before_a_server_that_gives_no_statistics_is_silence() -> None:
    assert restarted(Scripted([BUSY, BUSY], [(), ()]))


@pytest.fixture
def asked() -> Iterator[tuple[SilentError, socket.socket]]:
    """A probe that got no answer in time, and the server's end of its connection."""
    ours, theirs = socket.socketpair()
    connection = http.client.HTTPConnection("nowhere")
    connection.sock = ours
    with theirs:
        yield SilentError("timed out", connection), theirs
    ours.close()


def test_a_probe_that_is_overtaken_and_never_answered_shows_an_instance_that_hangs(
    asked: tuple[SilentError, socket.socket],
) -> None:
    assert restarted(Scripted([asked[0], *[RIGHT] * 9]), AT_ONCE)
    assert asked[1].recv(1) == b"", "its connection was closed"


def test_a_probe_that_is_overtaken_has_twice_its_time(asked: tuple[SilentError, socket.socket]) -> None:
    assert not restarted(Scripted([asked[0], *[RIGHT] * 9]), QUICK)


def test_a_probe_that_is_answered_late_was_only_slow(asked: tuple[SilentError, socket.socket]) -> None:
    asked[1].send(b"HTTP/1.1 200 OK\r\n")
    assert not restarted(Scripted([asked[0], *[RIGHT] * 9]), AT_ONCE)


def test_the_verdict_follows_each_probe() -> None:
    health, said = Health(), []

    class Noting(Scripted):
        def check(self, timeout: float) -> None:
            said.append(health.ready()["reason"])
            super().check(timeout)

    server = Noting([RIGHT, WRONG, RIGHT, BUSY], [(1,)])
    supervise(cast(serve.Server, server), pytest.fail, server.over, QUICK, health)
    assert said == ["", "", str(WRONG), "", ""]
    assert health.ready()["reason"] == "the server is being stopped"
