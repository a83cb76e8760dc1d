"""What breaks while it runs is found by a real inference and healed on the same ports, or given up loudly."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from triton_http import infer

import serve
from serve.leftovers import SHARED_MEMORY, marked_processes
from serve.supervisor import Policy, supervise

EAGER = Policy(interval=0.05, timeout=10, failures=2, silences=50, restarts=2, back_off=0.01, drain=0)


@contextmanager
def supervised(
    server: serve.Server, restart: Callable[[], serve.Server], policy: Policy = EAGER
) -> Iterator[tuple[Future[serve.Server], threading.Event]]:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(supervise, server, restart, stop, policy)
        try:
            yield running, stop
        finally:
            stop.set()


def wait_for_message(caplog: pytest.LogCaptureFixture, text: str, seconds: float = 30) -> None:
    pause = threading.Event()
    for _ in range(int(seconds / 0.05)):
        if any(text in record.getMessage() for record in caplog.records):
            return
        pause.wait(0.05)
    pytest.fail(f"{text!r} was not logged: {[r.getMessage() for r in caplog.records]}")


@pytest.mark.parametrize("trouble", ["stub killed", "server killed", "server frozen"])
def test_a_killed_stub_or_server_and_a_frozen_one_are_healed_on_the_same_ports(
    tiny: Path, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    caplog.set_level(logging.WARNING, logger="serve")
    server = serve.start(tiny)
    stub = next(pid for pid in marked_processes(server.token) if pid != server.pid)

    def restart() -> serve.Server:
        return serve.start(
            tiny, http_port=server.ports.http, grpc_port=server.ports.grpc, metrics_port=server.ports.metrics
        )

    victim = stub if trouble == "stub killed" else server.pid
    policy = dataclasses.replace(EAGER, timeout=0.5, silences=2) if trouble == "server frozen" else EAGER
    with supervised(server, restart, policy) as (running, stop):
        os.kill(victim, signal.SIGSTOP if trouble == "server frozen" else signal.SIGKILL)
        wait_for_message(caplog, "answers rightly again")
        assert infer(server.http_url, "tiny", ["aaaa bb"], outputs=["total"]) == (200, {"total": [6]})
        stop.set()
        healed = running.result(timeout=30)
    assert healed.pid != server.pid
    assert healed.http_url == server.http_url
    assert marked_processes(server.token) == []
    assert list(SHARED_MEMORY.glob(f"bet_{server.token}_*")) == []
    healed.stop(drain_seconds=0)


def test_a_server_that_cannot_be_healed_is_given_up_with_the_last_reason(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve.start(tiny)
    attempts = []

    def restart() -> serve.Server:
        attempts.append(1)
        raise serve.StartupError("the disk is gone")

    with supervised(server, restart) as (running, _):
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(serve.GaveUpError, match="2 restarts in a row; the last reason: the disk is gone"):
            running.result(timeout=30)
    assert len(attempts) == EAGER.restarts
    assert marked_processes(server.token) == []
