"""A request that failed harmlessly is sent again: how often, when, and never so that an overload grows by it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from bet_client import (
    AsyncClient,
    Client,
    ClientStateError,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidInputError,
    Prediction,
    UnavailableError,
)
from bet_client.retries import BURST, FIRST_BACKOFF, LONGEST_BACKOFF, SHARE, RetryBudget, Timing

import serve
from tests.clients.conftest import Blocking, Protocol
from tests.clients.scripted_servers import LARGEST_MESSAGE, Broken, Busy, Fault, Script, scripted


class Clock:
    """Time that passes only where a client sleeps, and a chance that is always the same."""

    def __init__(self, chance: float = 0.5) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self._chance = chance

    def pass_by(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def pass_by_in_a_loop(self, seconds: float) -> None:
        self.pass_by(seconds)

    def timing(self, kind: type) -> Timing:
        sleep = self.pass_by if kind is Client else self.pass_by_in_a_loop
        return Timing(sleep, lambda: self.now, lambda: self._chance)


@pytest.fixture(params=[Client, AsyncClient])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ask(kind: Any, protocol: Protocol, clock: Clock) -> Iterator[Callable[..., Blocking]]:
    """Make clients that keep the clock's time."""
    made: list[Blocking] = []

    def make(url: Any, **options: Any) -> Blocking:
        made.append(Blocking(kind(url, protocol=protocol, timing=clock.timing(kind), **options)))
        return made[-1]

    yield make
    for client in made:
        client.stop()


@pytest.mark.parametrize("protocol", ["grpc"])
def test_what_is_too_large_for_a_message_is_the_callers_to_mend_and_not_sent_again(
    ask: Any, protocol: Protocol, clock: Clock
) -> None:
    script = Script()
    with scripted(protocol, script) as url:
        with pytest.raises(InvalidInputError, match=r"larger than max .*send fewer or shorter texts"):
            ask(url).predict("a" * (LARGEST_MESSAGE + 1))
        assert not clock.slept
        assert isinstance(ask(url).predict("hello"), Prediction)


@pytest.mark.parametrize("fault", [Busy(), Broken()])
def test_what_failed_harmlessly_is_sent_again_a_little_later(
    ask: Any, protocol: Protocol, clock: Clock, fault: Fault
) -> None:
    script = Script([fault, fault])
    with scripted(protocol, script) as url:
        assert isinstance(ask(url).predict("hello"), Prediction)
    assert len(script.inferences) == 3
    assert clock.slept == [0.5 * FIRST_BACKOFF, 0.5 * 2 * FIRST_BACKOFF]


def test_after_the_last_retry_the_failure_is_told(ask: Any, protocol: Protocol) -> None:
    for retries in (0, 1, 2):
        script = Script(always=Busy())
        with scripted(protocol, script) as url, pytest.raises(UnavailableError, match="queue size"):
            ask(url, retries=retries).predict("hello")
        assert len(script.inferences) == 1 + retries


def test_nobody_there_is_tried_again_too(ask: Any, clock: Clock) -> None:
    client = ask(f"127.0.0.1:{serve.free_port()}")
    with pytest.raises(ConnectionFailedError):
        client.predict("hello")
    assert len(clock.slept) == 2
    assert client.is_ready() is False
    assert len(clock.slept) == 2  # how it is now is all that was asked


HINTS = {
    "http": [({"Retry-After": "3"}, 3.0), ({"Retry-After": "0"}, 0.0), ({"Retry-After": "soon"}, None)],
    "grpc": [
        ({"grpc-retry-pushback-ms": "1500"}, 1.5),
        ({"retry-after": "3"}, 3.0),
        ({"grpc-retry-pushback-ms": "1500", "retry-after": "3"}, 1.5),
        ({"grpc-retry-pushback-ms": "-1"}, math.inf),
        ({"grpc-retry-pushback-ms": "later"}, math.inf),
    ],
}


@pytest.mark.parametrize(("protocol", "hint", "seconds"), [(p, *case) for p, cases in HINTS.items() for case in cases])
def test_a_servers_hint_is_kept_to(ask: Any, protocol: Protocol, clock: Clock, hint: Any, seconds: float) -> None:
    script = Script([Busy(hint)])
    with scripted(protocol, script) as url:
        client = ask(url)
        if seconds == math.inf:
            with pytest.raises(UnavailableError) as caught:
                client.predict("hello")
            assert (caught.value.retry_after, clock.slept) == (math.inf, [])
        else:
            client.predict("hello")
            assert clock.slept == [(seconds or 0.0) + 0.5 * FIRST_BACKOFF]


@pytest.mark.parametrize("protocol", ["http"])
def test_a_hint_may_be_a_date(ask: Any, protocol: Protocol, clock: Clock) -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    with scripted(protocol, Script([Busy({"Retry-After": in_a_minute})])) as url:
        ask(url, timeout=90).predict("hello")
    assert clock.slept == [pytest.approx(60, abs=5)]


def test_no_retry_goes_beyond_the_callers_deadline(ask: Any, protocol: Protocol, clock: Clock) -> None:
    script = Script(always=Busy({"Retry-After" if protocol == "http" else "retry-after": "5"}))
    with scripted(protocol, script) as url, pytest.raises(UnavailableError) as caught:
        ask(url, timeout=4).predict("hello")
    assert (caught.value.retry_after, clock.slept, len(script.inferences)) == (5, [], 1)


def test_what_would_fail_again_or_was_too_late_is_not_sent_again(ask: Any, url: str, clock: Clock) -> None:
    client = ask(url)
    with pytest.raises(InvalidInputError):
        client.predict("boom")
    with pytest.raises(DeadlineExceededError):
        client.predict("slow 0.4", timeout=0.1)
    assert clock.slept == []


def test_closing_during_a_pause_frees_the_caller(protocol: Protocol) -> None:
    script = Script(always=Busy())
    with scripted(protocol, script) as url:
        client = Client(url, protocol=protocol, timing=Timing(lambda seconds: client.close()))
        with pytest.raises(ClientStateError, match="closed during the call"):
            client.predict("hello")
    assert len(script.inferences) == 1


def test_closing_during_a_pause_frees_the_task(protocol: Protocol) -> None:
    async def ask(url: str) -> None:
        client = AsyncClient(url, protocol=protocol, timing=Timing(lambda seconds: client.close()))
        with pytest.raises(ClientStateError, match="closed during the call"):
            await client.predict("hello")

    with scripted(protocol, Script(always=Busy())) as url:
        asyncio.run(ask(url))


def test_errors_of_a_list_stay_with_their_items(ask: Any, protocol: Protocol) -> None:
    script = Script([Busy(), Busy(), Busy(), Busy()])
    with scripted(protocol, script) as url:
        answers = ask(url, max_rows=1).predict_many(["given up", "answered at last", "", "answered"])
    assert [type(answer) for answer in answers] == [UnavailableError, Prediction, InvalidInputError, Prediction]


def test_under_an_overload_a_client_sends_a_tenth_more_and_not_a_multiple(ask: Any, protocol: Protocol) -> None:
    script, texts = Script(always=Busy()), 200
    with scripted(protocol, script) as url:
        client = ask(url, max_rows=1)
        assert {type(answer) for answer in client.predict_many(map(str, range(texts)), timeout=1e6)} == {
            UnavailableError
        }
    assert texts + BURST < len(script.inferences) <= texts + BURST + SHARE * texts


def test_the_budget_fills_up_to_a_burst_and_no_further() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.earn()
    assert [budget.spend() for _ in range(int(BURST) + 1)] == [True] * int(BURST) + [False]
    for _ in range(11):  # ten tenths are a hair less than one
        budget.earn()
    assert [budget.spend(), budget.spend()] == [True, False]


def test_a_backoff_is_anything_up_to_a_limit_that_doubles() -> None:
    highest = [Timing(print, random=lambda: 1.0).backoff(retries) for retries in range(8)]
    assert highest == [0.1, 0.2, 0.4, 0.8, 1.6, LONGEST_BACKOFF, LONGEST_BACKOFF, LONGEST_BACKOFF]
    assert Timing(print, random=lambda: 0.9).backoff(5000) == 0.9 * LONGEST_BACKOFF
    assert Timing(print, random=lambda: 0.0).backoff(3) == 0
    assert 0 <= Timing(print).backoff(0) < FIRST_BACKOFF
