"""The open loop on real sockets: what it offers, what it counts, and when its run proves nothing."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from load_runs import FAULTS
from small_server import SmallServer

import serve
from benchmarks.arrivals import arrivals
from benchmarks.connections import accepted
from benchmarks.ensemble import REFUSED, Questions
from benchmarks.errors import ServerError, UsageError
from benchmarks.http_connection import body_of, http_post, status_of
from benchmarks.open_files import allow_connections
from benchmarks.open_loop import CONNECTION_LOST, OpenLoad, OpenRun, faults_of_load, run_open_loop
from benchmarks.samples import NO_ANSWER, UNSENT, WRONG_ANSWER, Measured, Sample

BODIES = tuple(f"text {i}".encode() for i in range(7))


@pytest.fixture
def small() -> Iterator[SmallServer]:
    with SmallServer() as server:
        yield server


def _run(small: SmallServer, bodies: Sequence[bytes] = BODIES, **load: Any) -> OpenRun:
    """Half a second at 100 requests/s, unless said otherwise; an answer is right if it is what was sent."""

    def check(request: int, reply: bytes) -> str | None:
        if status_of(reply) != 200:
            return f"{REFUSED}: {status_of(reply)}"
        return None if body_of(reply) == bodies[request] else f"{WRONG_ANSWER}: {body_of(reply)!r}"

    settings: dict[str, Any] = {"connections": 6, "rate": 100.0, "seconds": 0.5, "warm_up": 0.1, "arrival": "fixed"}
    requests = [http_post("/", body, {}) for body in bodies]
    return run_open_loop(OpenLoad(small.port, **settings | load), requests, check, server=os.getpid())


@pytest.mark.parametrize("parts", [1, 3])
def test_all_generators_together_offer_the_rate_evenly_spaced(parts: int) -> None:
    times = sorted(t for k in range(parts) for t in arrivals(50, 2, "fixed", part=k, parts=parts))
    assert times == pytest.approx([k / 50 for k in range(100)])


def test_poisson_arrivals_have_the_rate_and_the_irregularity_of_independent_users() -> None:
    times = sorted(t for k in range(4) for t in arrivals(500, 40, "poisson", seed=1, part=k, parts=4))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.05)  # of an exponential; 0 at a fixed rate
    assert max(times) < 40


def test_generators_share_connections_and_rate_and_every_answer_is_checked(small: SmallServer) -> None:
    run = _run(small, connections=9, processes=2)
    assert run.invalid == ()
    assert len(run.measured.samples) == 50
    assert {sample.fault for sample in run.measured.samples} == {None}
    assert run.connections == 9  # as this process, the server's, has accepted them
    assert len(small.asked) == 9  # each of them was asked on
    assert small.total == 60
    assert all(s.intended <= s.sent <= s.finished for s in run.measured.samples)


def test_connections_are_counted_on_the_side_that_is_asked_for(small: SmallServer) -> None:
    assert accepted(os.getpid(), small.port) == 0
    assert accepted(2**22 + 1, small.port) is None


def test_refusals_wrong_answers_and_lost_connections_are_told_apart(small: SmallServer) -> None:
    run = _run(small, (b"fine", b"refuse", b"drop", b"fine"), connections=3)
    assert run.measured.faults.keys() == {REFUSED, CONNECTION_LOST}
    assert sum(sample.fault is None for sample in run.measured.samples) == 25
    assert len(small.asked) > 3  # who was dropped came back
    assert run.messages[REFUSED] == "Refused: 503"


def test_a_stall_counts_for_everybody_who_was_due_in_it(small: SmallServer) -> None:
    """20 of 60 requests are due while the server stands still; from the time of sending, few would have seen it."""

    def stall() -> None:
        while small.total < 20:
            time.sleep(0.001)
        small.stall.clear()
        time.sleep(0.2)  # the stall itself
        small.stall.set()

    thread = threading.Thread(target=stall)
    thread.start()
    run = _run(small, connections=2, warm_up=0.0, seconds=0.6)
    thread.join()
    waited = sorted(s.latency for s in run.measured.samples)
    assert waited[-1] > 0.15
    assert sum(latency > 0.05 for latency in waited) >= 10
    assert max(s.own_delay for s in run.measured.samples) < waited[-1]


def test_who_never_gets_an_answer_is_counted_and_what_finds_no_connection_was_not_sent(small: SmallServer) -> None:
    run = _run(small, (b"never",), connections=3, patience=0.2)
    faults = [sample.fault for sample in run.measured.samples]
    assert faults.count(UNSENT) == len(faults) >= 45  # the three that were sent are of the warm-up
    assert any("nothing was sent" in reason for reason in run.invalid)
    run = _run(small, (b"never", *[b"fine"] * 29), connections=6, warm_up=0.0, patience=0.2)
    assert run.measured.faults == {NO_ANSWER: 2}
    assert run.invalid == ()


def test_a_pool_too_small_for_the_rate_makes_the_run_invalid_and_one_large_enough_blames_the_server(
    small: SmallServer,
) -> None:
    never = (b"fine", b"fine", b"never")
    run = _run(small, never, connections=6, warm_up=0.0, patience=0.1)
    assert any("6 connections are too few" in reason and "use 100" in reason for reason in run.invalid)
    run = _run(small, never, connections=12, rate=12, seconds=4, warm_up=0.0, patience=0.1)
    assert run.invalid == ()
    assert run.measured.faults[NO_ANSWER] == 12
    assert (run.measured.offered or 1) < 1


@pytest.mark.parametrize("victims", [1, 2])
def test_a_generator_that_dies_makes_the_run_invalid(small: SmallServer, victims: int) -> None:
    def kill() -> None:
        while small.total < 10:
            time.sleep(0.001)
        for process in multiprocessing.active_children()[:victims]:
            os.kill(process.pid or 0, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    run = _run(small, processes=2)
    thread.join()
    assert sum("died before its end" in reason for reason in run.invalid) == victims


def test_nothing_sent_is_invalid(small: SmallServer) -> None:
    run = _run(small, rate=0.1)  # one request, and that in the warm-up
    assert run.invalid == ("nothing was sent",)


def test_a_generator_without_time_makes_the_run_invalid() -> None:
    on_time = Measured(tuple(Sample(k / 10, 0, k / 10, k / 10 + 0.01, None) for k in range(20)), 0, 2)
    late = Measured(tuple(Sample(k / 10, 0, k / 10 + 0.06, k / 10 + 0.07, None) for k in range(20)), 0, 2)
    assert faults_of_load(on_time, 0.5) == []
    assert "saturated (95% of a core)" in faults_of_load(on_time, 0.95)[0]
    assert "60 ms late by themselves" in faults_of_load(late, 0.5)[0]


def test_samples_are_handed_over_as_the_run_goes(small: SmallServer) -> None:
    handed: list[int] = []
    requests = [http_post("/", body, {}) for body in BODIES]
    load = OpenLoad(small.port, 2, 100, 0.6, warm_up=0.0, arrival="fixed", report_every=0.1)
    run = run_open_loop(load, requests, lambda request, reply: None, taken=lambda samples: handed.append(len(samples)))
    assert sum(handed) == 60
    assert len([count for count in handed if count]) > 2
    assert run.measured.samples == ()


def test_a_port_that_nobody_listens_on_is_an_error() -> None:
    free = serve.free_port("127.0.0.1")
    with pytest.raises(ServerError, match=f"port {free} does not take 2 connections"):
        run_open_loop(OpenLoad(free, 2, 10, 0.1), [b""], lambda request, reply: None)


def test_wrong_settings_are_named_all_at_once() -> None:
    with pytest.raises(UsageError, match=r"1 connections of 2 processes.*rate is 0.*warm-up is -1"):
        OpenLoad(1, 1, 0, 1, warm_up=-1, processes=2)


def test_the_limit_of_open_files_is_raised_or_the_fault_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(100, 3000)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, limit: limits.append(limit))
    allow_connections(1000)
    assert limits[-1] == (1256, 3000)
    allow_connections(10)
    assert len(limits) == 2
    with pytest.raises(UsageError, match=r"5000 connections need 5256 open files and this system allows 3000"):
        allow_connections(5000)


@pytest.mark.parametrize("model", ["bet", "bet_wrong", "bet_half_percent"])
def test_answers_of_a_real_ensemble_are_held_against_those_given_alone(triton: serve.Server, model: str) -> None:
    texts = [f"A film of {'many ' * k}words." for k in range(20)]
    questions = Questions.ask(triton.http_url, model, texts)
    load = OpenLoad(triton.ports.http, 30, 200, 1.5, warm_up=0.2, processes=2)
    run = run_open_loop(load, questions.requests, questions.fault, server=triton.pid)
    assert run.connections == 30
    expected = {"bet": set(), "bet_wrong": {WRONG_ANSWER}, "bet_half_percent": {"Status500"}}[model]
    assert set(run.measured.faults) == expected, run.messages
    assert FAULTS[model].get("fault", "") or run.invalid == ()
