"""Several servers behind one client: requests go round, the dead are left out, and who comes back is found again."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bet_client import (
    AsyncClient,
    Client,
    ConnectionFailedError,
    Prediction,
    UnavailableError,
    transport,
    transport_aio,
)
from bet_client.endpoints import FIRST_ABSENCE, LONGEST_ABSENCE, Endpoints
from bet_client.retries import FIRST_BACKOFF, Timing

import serve
from tests.clients.conftest import PROTOCOLS, Blocking, Protocol
from tests.clients.scripted_servers import Busy, Script, scripted
from tests.clients.test_retries import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(chance=0.0)


@pytest.fixture(params=[Client, AsyncClient])
def ask(request: pytest.FixtureRequest, protocol: Protocol, clock: Clock) -> Iterator[Callable[..., Blocking]]:
    """Make clients that keep the clock's time."""
    made: list[Blocking] = []

    def make(url: Any, **options: Any) -> Blocking:
        made.append(Blocking(request.param(url, protocol=protocol, timing=clock.timing(request.param), **options)))
        return made[-1]

    yield make
    for client in made:
        client.stop()


def taken(*scripts: Script) -> list[int]:
    """Inferences of each server since the last look."""
    counts = [len(script.inferences) for script in scripts]
    for script in scripts:
        script.inferences.clear()
    return counts


def probe_until_found(client: Blocking, clock: Clock, *scripts: Script) -> None:
    """Ask until each server has had a request: gRPC itself waits up to a second before it connects again."""
    gives_up = time.monotonic() + 20
    while not all(script.inferences for script in scripts):
        assert time.monotonic() < gives_up
        clock.now += LONGEST_ABSENCE
        client.predict("probing")


def test_requests_go_round_and_a_killed_server_costs_no_answer(ask: Any, protocol: Protocol, clock: Clock) -> None:
    first, second = Script(), Script()
    with contextlib.ExitStack() as alive:
        urls = [alive.enter_context(scripted(protocol, first))]
        dying = contextlib.ExitStack()
        urls.append(dying.enter_context(scripted(protocol, second)))
        client = ask(urls)
        client.predict_many(["warm"])
        taken(first, second)
        answer = [client.predict(f"text {number}") for number in range(20)]
        assert taken(first, second) == [10, 10]
        dying.close()
        answer = [client.predict(f"text {number}") for number in range(20)]
        assert {type(one) for one in answer} == {Prediction}
        assert taken(first) == [20]
        assert clock.slept == []  # the other server is asked at once
        alive.enter_context(scripted(protocol, second, int(urls[1].rpartition(":")[2])))
        client.predict("still left out")
        assert taken(first, second) == [1, 0]
        probe_until_found(client, clock, second)
        taken(first, second)
        for number in range(20):
            client.predict(f"text {number}")
        assert taken(first, second) == [10, 10]


def test_a_dead_server_costs_none_of_many_threads_its_answer(protocol: Protocol) -> None:
    script, dead = Script(), [f"127.0.0.1:{serve.free_port()}" for _ in range(2)]
    with (
        scripted(protocol, script) as url,
        Client([dead[0], url, dead[1]], protocol=protocol, timeout=30) as client,
        ThreadPoolExecutor(32) as pool,
    ):
        answers = list(pool.map(client.predict, (f"text {number}" for number in range(320))))
    assert len(answers) == len(script.inferences) == 320


def test_from_one_server_to_three_the_load_spreads(ask: Any, protocol: Protocol, clock: Clock) -> None:
    scripts = [Script() for _ in range(3)]
    with contextlib.ExitStack() as alive:
        ports = [serve.free_port() for _ in range(3)]
        alive.enter_context(scripted(protocol, scripts[0], ports[0]))
        client = ask(",".join(f"127.0.0.1:{port}" for port in ports))
        for number in range(10):
            client.predict(f"text {number}")
        assert taken(*scripts) == [10, 0, 0]
        for script, port in zip(scripts[1:], ports[1:], strict=True):
            alive.enter_context(scripted(protocol, script, port))
        probe_until_found(client, clock, *scripts)
        taken(*scripts)
        for number in range(30):
            client.predict(f"text {number}")
        assert taken(*scripts) == [10, 10, 10]


@contextlib.contextmanager
def unanswering() -> Iterator[str]:
    """The address of a listener whose queue is full: further connections are neither taken nor refused."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as waiting:
        for _ in range(4):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_host_that_answers_nothing_leaves_time_to_ask_another(
    ask: Any, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (transport, transport_aio):
        monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)
    with unanswering() as nowhere, scripted(protocol, Script()) as url:
        assert isinstance(ask([nowhere, url], timeout=20).predict("hello"), Prediction)
        with pytest.raises(ConnectionFailedError, match=nowhere):
            ask(nowhere, timeout=20, retries=0).predict("hello")


def test_a_server_that_is_busy_is_spared_and_another_asked(ask: Any, protocol: Protocol, clock: Clock) -> None:
    busy, idle = Script(always=Busy()), Script()
    with scripted(protocol, busy) as one, scripted(protocol, idle) as other:
        client = ask([one, other])
        for number in range(10):
            client.predict(f"text {number}")
        assert taken(busy, idle) == [1, 10]
        client.close()
    assert len(clock.slept) == 1


def test_all_servers_busy_is_told_after_the_last_retry(ask: Any, protocol: Protocol) -> None:
    scripts = [Script(always=Busy()), Script(always=Busy())]
    with scripted(protocol, scripts[0]) as one, scripted(protocol, scripts[1]) as other:
        with pytest.raises(UnavailableError):
            ask([one, other]).predict("hello")
        assert sum(taken(*scripts)) == 3


def test_a_hint_concerns_the_server_that_gave_it(ask: Any, protocol: Protocol, clock: Clock) -> None:
    hint = Busy({"Retry-After" if protocol == "http" else "retry-after": "3"})
    scripts = [Script([hint]), Script([hint])]
    with scripted(protocol, scripts[0]) as one, scripted(protocol, scripts[1]) as other:
        ask([one, other]).predict("hello")
    assert clock.slept == [0.0, 3.0]


def test_ready_is_asked_of_a_server_that_can_be_reached(ask: Any, protocol: Protocol, clock: Clock) -> None:
    dead = f"127.0.0.1:{serve.free_port()}"
    with scripted(protocol, Script()) as url:
        client = ask([dead, url])
        assert [client.is_ready() for _ in range(4)] == [True] * 4
    assert ask([dead, f"127.0.0.1:{serve.free_port()}"]).is_ready() is False
    assert clock.slept == []


def test_without_retries_nothing_is_sent_twice(ask: Any, protocol: Protocol) -> None:
    with scripted(protocol, Script()) as url:
        client = ask([f"127.0.0.1:{serve.free_port()}", url], retries=0)
        with pytest.raises(ConnectionFailedError):
            client.predict("hello")
        assert isinstance(client.predict("hello"), Prediction)


def test_one_of_two_tritons_is_killed(triton: serve.Server, stand_ins: Path) -> None:
    with contextlib.ExitStack() as clients, serve.start(stand_ins, models=["bet"]) as other:
        made = []
        for protocol in PROTOCOLS:
            urls = [s.http_url if protocol == "http" else s.grpc_url for s in (triton, other)]
            for kind in (Client, AsyncClient):
                made.append(Blocking(kind(urls, protocol=protocol)))
                clients.callback(made[-1].stop)
        for client in made:
            assert all(isinstance(client.predict(f"text {number}"), Prediction) for number in range(4))
        other.stop(drain_seconds=0)
        for client in made:
            assert all(isinstance(client.predict(f"text {number}"), Prediction) for number in range(4))


class Chosen:
    """The choices alone, by a clock that is set by hand."""

    def __init__(self, count: int) -> None:
        self.now = 0.0
        self.endpoints = Endpoints(count, Timing(print, lambda: self.now, lambda: 0.0))

    def times(self, count: int) -> Counter[int]:
        return Counter(self.endpoints.choose() for _ in range(count))


def test_clients_begin_at_different_servers() -> None:
    chances = iter([0.0, 0.3, 0.5, 0.99])
    timing = Timing(print, random=lambda: next(chances))
    assert [Endpoints(4, timing).choose() for _ in range(4)] == [0, 1, 2, 3]


def test_who_failed_is_left_out_for_longer_each_time_and_probed_by_one_request() -> None:
    chosen = Chosen(3)
    absence = FIRST_ABSENCE
    for _ in range(8):
        chosen.endpoints.failed(1)
        chosen.now += absence * 0.99
        assert chosen.times(10) == {0: 5, 2: 5}
        chosen.now += absence * 0.02
        assert chosen.times(10)[1] == 1
        absence = min(LONGEST_ABSENCE, 2 * absence)
    chosen.endpoints.worked(1)
    assert chosen.times(9) == {0: 3, 1: 3, 2: 3}
    chosen.endpoints.failed(1)
    chosen.now += FIRST_ABSENCE
    assert chosen.times(10)[1] == 1


def test_what_was_tried_is_tried_last() -> None:
    chosen = Chosen(3)
    assert chosen.endpoints.choose({0, 1}) == 2
    chosen.endpoints.failed(2)
    assert chosen.endpoints.choose({2}) in {0, 1}
    chosen.endpoints.failed(0)
    chosen.endpoints.failed(1)
    assert chosen.endpoints.choose({1, 2}) == 0


def test_where_all_failed_the_one_that_is_due_back_first_is_asked() -> None:
    chosen = Chosen(2)
    chosen.endpoints.failed(1)
    chosen.now += 0.1
    chosen.endpoints.failed(0)
    assert chosen.endpoints.choose() == 1
    assert FIRST_BACKOFF < FIRST_ABSENCE  # else a retry would go where the request has just failed


def test_a_hint_leaves_a_server_out_for_longer_but_not_for_ever() -> None:
    chosen = Chosen(2)
    chosen.endpoints.failed(0, 3.0)
    chosen.now = 2.9
    assert chosen.times(4) == {1: 4}
    chosen.endpoints.failed(0, float("inf"))
    chosen.now += LONGEST_ABSENCE
    assert chosen.times(4)[0] == 1
