"""One load run, start to end, in this process: Locust as a library with its local runner.

    right answers, one by one → users connect → warm-up (left out) → measured part → last answers → verdict

`benchmarks.__main__` must have made the process cooperative (gevent) before this module is imported.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing

import gevent
from bet_client import BetClientError, Client
from locust.env import Environment
from locust.html import get_html_report
from locust.stats import stats_history

from benchmarks.answers import ask_each, describe_length
from benchmarks.connections import established
from benchmarks.errors import ServerError, UsageError
from benchmarks.locustfile import TIMEOUT, USERS, Session
from benchmarks.outcome import Outcome
from benchmarks.samples import Measured, percentile
from benchmarks.settings import LoadSettings
from benchmarks.texts import Texts
from benchmarks.triton_statistics import Snapshot, StatisticsReader

Say = Callable[[str], None]

_SPAWN_RATE = 100.0  # users/s; Locust warns above it
_CONNECT_TIMEOUT = 60.0  # seconds for all users together
_LOOK_EVERY = 5.0  # seconds


def run_load(settings: LoadSettings, texts: Texts, say: Say) -> Outcome:
    """Run one load and return what it saw.

    Args:
        say: gets a line of progress now and then.

    Raises:
        ServerError: if the server is not there, does not know the model, or refuses users.
        TextsError: if it refuses a text.
        UsageError: if the client cannot be made from the settings.
    """
    # Locust reports each failed request and its own spawning; here the report does.
    logging.getLogger("locust").setLevel(logging.ERROR)
    say(f"asking each of {len(texts.texts)} texts once for its right answer")
    with _client(settings) as client:
        expected = ask_each(client, texts, lambda done: None)
    session = Session(settings, texts.texts, expected)
    user_class = USERS[settings.protocol]
    user_class.session = session
    environment = Environment(user_classes=[user_class], host=settings.url)
    runner = environment.create_local_runner()
    history = gevent.spawn(stats_history, runner)
    try:
        runner.start(settings.users, spawn_rate=_SPAWN_RATE)
        _wait_for_users(session)
        pace = f"{settings.rate:g} requests/s" if settings.rate else "no pause between requests"
        say(f"{settings.users} users connected; warming up for {settings.warm_up:g} s at {pace}")
        session.start()
        _sleep_until(session, settings.warm_up)
        environment.stats.reset_all()
        before = _snapshot(settings)
        cpu, clock = time.process_time(), session.clock()
        connections = _watch(session, say)
        generator_cpu = (time.process_time() - cpu) / (session.clock() - clock)
        _wait_for_last_answers(session)
        after = _snapshot_if_alive(settings)
        runner.stop()
        html = get_html_report(environment, show_download_link=False)
    finally:
        runner.quit()
        history.kill()
    return Outcome(
        measured=Measured.of(session.samples, settings.warm_up, settings.duration),
        messages=session.messages,
        generator_cpu=generator_cpu,
        connections=connections,
        triton=None if after is None or after.asked.requests < before.asked.requests else after.since(before),
        server_alive=_answers(settings, texts),
        tokens=describe_length(expected),
        locust_html=html,
    )


def _client(settings: LoadSettings) -> Client:
    try:
        return Client(settings.url, protocol=settings.protocol, model=settings.model, timeout=TIMEOUT, retries=0)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _wait_for_users(session: Session) -> None:
    """Wait until each user has connected or was refused."""
    users = session.settings.users
    deadline = time.perf_counter() + _CONNECT_TIMEOUT
    while session.connected + len(session.refused) < users:
        if time.perf_counter() > deadline:
            raise ServerError(
                f"only {session.connected} of {users} users connected within {_CONNECT_TIMEOUT:g} s: use fewer --users"
            )
        gevent.sleep(0.02)
    if session.refused:
        raise ServerError(f"{len(session.refused)} of {users} users got no first answer: {session.refused[0]}")


def _sleep_until(session: Session, moment: float) -> None:
    gevent.sleep(max(0.0, moment - session.clock()))


def _watch(session: Session, say: Say) -> int | None:
    """Let the measured part pass; say how it goes; return the most connections seen at once."""
    settings, most, then = session.settings, None, session.clock()
    while then < settings.end:
        # Looked at before the pause: a user that has asked for the last time gives its connection back. With 100 users
        # it costs some 15 ms of processor time (the kernel's table is long), hence not every second.
        seen = established(settings.port)
        if seen is not None:
            most = max(most or 0, seen)
        _sleep_until(session, min(then + _LOOK_EVERY, settings.end))
        now = session.clock()
        part = Measured.of(session.samples, then, now - then)
        p99 = percentile(part.latencies, 0.99)
        say(
            f"{now - settings.warm_up:3.0f} of {settings.duration:g} s: {part.throughput:,.0f} answers/s"
            + (f", p99 {p99:.0f} ms" if p99 is not None else "")
            + (f", {part.faults.total()} failed" if part.faults else "")
        )
        then = now
    return most


def _wait_for_last_answers(session: Session) -> None:
    """Nobody is cut off: the slowest answers are the ones that count. The clients' own time limit bounds it."""
    deadline = time.perf_counter() + 2 * TIMEOUT
    while session.finished < session.settings.users and time.perf_counter() < deadline:
        gevent.sleep(0.02)
    session.give_up()


def _snapshot(settings: LoadSettings) -> Snapshot:
    """Triton's counters now; over a connection of its own that is closed again, so that it is not counted as a user."""
    with closing(StatisticsReader(settings.url, settings.protocol, settings.model)) as reader:
        return reader.snapshot()


def _snapshot_if_alive(settings: LoadSettings) -> Snapshot | None:
    try:
        return _snapshot(settings)
    except ServerError:
        return None  # reported as `server_alive`


def _answers(settings: LoadSettings, texts: Texts) -> bool:
    """Whether a real inference succeeds: readiness alone says nothing about a dead backend."""
    with _client(settings) as client:
        try:
            client.predict(texts.texts[0])
        except BetClientError:
            return False
        return True
