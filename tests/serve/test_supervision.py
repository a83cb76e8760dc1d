"""What breaks while it runs is found by a real inference and healed on the same ports, or given up loudly."""

from __future__ import annotations

import dataclasses
import http.client
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_repository import WORDS_MODEL
from triton_http import infer
from waiting import wait_until

import serve
from serve.leftovers import SHARED_MEMORY, marked_processes
from serve.supervisor import Policy, supervise

EAGER = Policy(interval=0.05, again=0.05, timeout=10, restarts=2, back_off=0.01, drain=0)
HEALED_WITHIN = 10  # seconds from a kill to a right answer, what a caller who tries again has to bear
STOPPED_FOR = 6  # seconds


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
    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records]

    wait_until(lambda: any(text in message for message in said()), seconds, said)


def restarter(server: serve.Server) -> Callable[[], serve.Server]:
    """What `python -m serve` does: the same again, on the same ports."""
    ports = server.ports
    return lambda: serve.start(
        server.repository.path, http_port=ports.http, grpc_port=ports.grpc, metrics_port=ports.metrics
    )


def stubs(server: serve.Server) -> list[int]:
    return [pid for pid in marked_processes(server.token) if pid != server.pid]


@pytest.mark.parametrize("trouble", ["stub killed", "stub stopped", "server killed", "server stopped"])
def test_a_killed_or_stopped_stub_or_server_is_healed_on_the_same_ports(
    tiny: Path, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    caplog.set_level(logging.WARNING, logger="serve")
    server = serve.start(tiny)
    victim = stubs(server)[0] if "stub" in trouble else server.pid
    policy = dataclasses.replace(EAGER, timeout=0.5) if trouble == "server stopped" else EAGER
    with supervised(server, restarter(server), policy) as (running, stop):
        os.kill(victim, signal.SIGSTOP if "stopped" in trouble else signal.SIGKILL)
        wait_for_message(caplog, "answers rightly again")
        assert infer(server.http_url, "tiny", ["aaaa bb"], outputs=["total"]) == (200, {"total": [6]})
        stop.set()
        healed = running.result(timeout=30)
    assert healed.pid != server.pid
    assert healed.http_url == server.http_url
    assert marked_processes(server.token) == []
    assert list(SHARED_MEMORY.glob(f"bet_{server.token}_*")) == []
    healed.stop(drain_seconds=0)


def answers_within(url: str, text: str, total: int, seconds: float) -> bool:
    """Whether a caller who tries again gets the right answer in time; a wrong one fails."""
    pause, deadline = threading.Event(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            status, answer = infer(url, "tiny", [text], outputs=["total"])
        except (OSError, http.client.HTTPException):
            status, answer = 0, ""
        if status == 200:
            assert answer == {"total": [total]}
            return True
        pause.wait(0.1)
    return False


@pytest.mark.parametrize("trouble", ["stub killed", "server killed"])
def test_by_its_own_policy_a_killed_stub_or_server_answers_again_within_ten_seconds(tiny: Path, trouble: str) -> None:
    server = serve.start(tiny)
    victim = stubs(server)[0] if trouble == "stub killed" else server.pid
    with supervised(server, restarter(server), Policy()) as (running, stop):
        os.kill(victim, signal.SIGKILL)
        assert answers_within(server.http_url, "aaaa bb", 6, HEALED_WITHIN)
        stop.set()
        running.result(timeout=30).stop(drain_seconds=0)


def test_a_server_that_is_stopped_for_a_while_loses_no_answer_and_is_not_restarted(tiny: Path) -> None:
    server = serve.start(tiny)

    def restart() -> serve.Server:
        raise AssertionError("restarted")

    with supervised(server, restart, Policy()) as (running, stop), ThreadPoolExecutor(16) as pool:
        os.kill(server.pid, signal.SIGSTOP)  # with nothing in execution, which Triton fails after a second (ADR 18)
        asked = [pool.submit(infer, server.http_url, "tiny", ["a" * n], outputs=["total"]) for n in range(1, 17)]
        threading.Event().wait(STOPPED_FOR)
        os.kill(server.pid, signal.SIGCONT)
        assert [a.result(timeout=30) for a in asked] == [(200, {"total": [n]}) for n in range(1, 17)]
        assert answers_within(server.http_url, "aa", 2, 10)
        stop.set()
        assert running.result(timeout=30) is server
    server.stop(drain_seconds=0)


def hang_on(repository: Path, condition: str, config: str) -> None:
    """Have the first step hang where `condition` (over `text`, the request's first) holds."""
    step = repository / "tiny_words" / "1" / "model.py"
    texts = 'texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()'
    assert texts in WORDS_MODEL
    hang = f"{texts}\n        text = texts[0, 0].decode()\n        if {condition}:\n            time.sleep(600)"
    step.write_text(f"import time\nfrom pathlib import Path\n{WORDS_MODEL.replace(texts, hang)}", encoding="utf-8")
    with (repository / "tiny_words" / "config.pbtxt").open("a", encoding="utf-8") as file:
        file.write(config)


def test_a_model_that_hangs_before_a_full_queue_is_healed(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="serve")
    hang_on(tiny, "text == 'hang'", "dynamic_batching { default_queue_policy { max_queue_size: 4 } }")
    server = serve.start(tiny)
    healed = threading.Event()

    def traffic(text: str) -> set[int]:
        seen = set()
        while not healed.is_set():
            try:
                seen.add(infer(server.http_url, "tiny", [text])[0])
            except (OSError, http.client.HTTPException):
                seen.add(0)
            healed.wait(0.02)
        return seen

    with ThreadPoolExecutor(8) as pool:
        hanging = pool.submit(infer, server.http_url, "tiny", ["hang"])
        callers = [pool.submit(traffic, "a" * n) for n in range(1, 7)]
        with supervised(server, restarter(server), dataclasses.replace(EAGER, timeout=1)) as (running, stop):
            wait_for_message(caplog, "nothing was executed for 1 s")
            wait_for_message(caplog, "answers rightly again")
            healed.set()
            assert 503 in set.union(*(caller.result(timeout=30) for caller in callers)), "the queue was full"
            assert isinstance(hanging.exception(timeout=30), OSError | http.client.HTTPException)
            assert answers_within(server.http_url, "aaa", 3, 10)
            stop.set()
            running.result(timeout=30).stop(drain_seconds=0)


def test_one_of_two_instances_that_hangs_is_healed_though_the_other_answers(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="serve")
    once = tmp_path / "hang once"
    hang_on(tiny, f"Path({str(once)!r}).exists() and not Path({str(once)!r}).unlink()", "")
    config = tiny / "tiny_words" / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace("count: 1", "count: 2"), encoding="utf-8")
    server = serve.start(tiny)
    once.touch()
    with supervised(server, restarter(server), dataclasses.replace(EAGER, timeout=0.5)) as (running, stop):
        wait_for_message(caplog, "a model instance hangs")
        wait_for_message(caplog, "answers rightly again")
        stop.set()
        running.result(timeout=30).stop(drain_seconds=0)


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
