"""Keep a server right: ask it every second, restart it when it is not, give up in a way that is seen.

Triton never restarts a dead Python stub and keeps counting its model as ready, so the question is a real inference
(`Server.check`). What it says is told apart (docs/adr/0018-supervision.md):

- A process that ended, and a stub that Triton gave up on, are replaced at once: such a stub, if it was only stopped and
  goes on, has its late answer delivered to the next request.
- Other errors and wrong answers are believed the second time within a window, even with right ones in between, for
  where one of several instances is broken the others still answer.
- No answer may be load and is given more time. A full queue is a sign of life only while the steps execute; when none
  has for as long as a probe may take, it is one more probe without an answer.
- A probe that is still unanswered after twice its time, while later ones are answered, is held by an instance that
  hangs beside others that work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from serve.errors import GaveUpError, ServeError
from serve.health import Health
from serve.probe import BusyError, NotReadyError, SilentError, StubLostError
from serve.server import Server

LOG = logging.getLogger("serve")


@dataclass(frozen=True)
class Policy:
    """When to restart, and when to stop trying; times in seconds."""

    interval: float = 1.0  # between two probes: with a second until Triton gives up on a stub and three for a start,
    again: float = 0.2  # and a second look after a wrong answer, a dead stub is healed within 10 s
    # For one probe. A batch of 64 long texts takes a base-sized model on a CPU some seconds, and a server that is
    # stopped for 6 s and goes on has lost nothing.
    timeout: float = 10.0
    failures: int = 2  # wrong or failed answers among the last `window` probes until a restart
    window: int = 10
    silences: int = 2  # probes without an answer among the last `silence_window` until a restart
    silence_window: int = 4
    restarts: int = 5  # restarts in a row without `healthy` in between until the end
    back_off: float = 1.0  # before the second restart in a row; doubles with each further one
    healthy: float = 60.0  # of right answers after which earlier restarts are forgotten
    drain: float = 3.0  # for what other instances still answer while one is broken


class _Evidence:
    """What the last probes of one server said."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._wrong: deque[bool] = deque(maxlen=policy.window)
        self._silent: deque[bool] = deque(maxlen=policy.silence_window)
        self._executed: tuple[int, ...] = ()  # when the queue was found full, and since when it stands there
        self._since = 0.0
        self._unanswered: SilentError | None = None  # the oldest probe that got no answer, and when it was sent
        self._sent = 0.0

    def ask(self, server: Server) -> ServeError | None:
        """Probe once; returns what is wrong, None for a right answer or a full queue that moves."""
        sent = time.monotonic()
        try:
            server.check(self._policy.timeout)
        except BusyError as error:
            return self._busy(server, error)
        except SilentError as error:
            self._silent.append(True)
            if self._unanswered is None:
                self._unanswered, self._sent = error, sent
            else:
                error.close()
            return error
        except NotReadyError as error:
            self._silent.append(True)
            return error
        except ServeError as error:
            self._wrong.append(True)
            return error
        self._executed = ()
        self._wrong.append(False)
        self._silent.append(False)
        return self._overtaken()

    def suffices(self, error: ServeError) -> bool:
        """Whether what was seen, `error` the last of it, is enough for a restart."""
        return (
            isinstance(error, StubLostError | _HangsError)
            or sum(self._wrong) >= self._policy.failures
            or sum(self._silent) >= self._policy.silences
        )

    def close(self) -> None:
        """Let go of the probe that was not answered."""
        if self._unanswered is not None:
            self._unanswered.close()
            self._unanswered = None

    def _busy(self, server: Server, error: BusyError) -> ServeError | None:
        now = time.monotonic()
        try:
            executed = server.executions(self._policy.timeout)
        except NotReadyError as silent:
            silent.close()
            self._silent.append(True)
            return silent
        if executed != self._executed:
            self._silent.append(False)
            self._executed, self._since = executed, now
            return None
        if now - self._since < self._policy.timeout:
            return None  # one execution may take that long: neither a sign of life nor of the opposite
        self._since = now
        self._silent.append(True)
        return NotReadyError(f"{error}; and nothing was executed for {self._policy.timeout:g} s")

    def _overtaken(self) -> ServeError | None:
        if self._unanswered is None:
            return None
        if self._unanswered.answered():
            self.close()
            return None
        waited = time.monotonic() - self._sent
        if waited < 2 * self._policy.timeout:
            return None
        return _HangsError(
            f"a model instance hangs: of two probes the later one is answered, not that {waited:.0f} s old"
        )


class _HangsError(ServeError):
    """One of several instances does not come back."""


def supervise(
    server: Server,
    restart: Callable[[], Server],
    stop: threading.Event,
    policy: Policy | None = None,
    health: Health | None = None,
) -> Server:
    """Probe `server` until `stop` is set, replacing it by `restart()` when needed; returns the one that runs then.

    Args:
        health: is told after each probe, for whoever asks from outside.

    Raises:
        GaveUpError: if it failed again after the last restart that the policy allows; no server runs then.
    """
    policy, health = policy or Policy(), health or Health()
    evidence = _Evidence(policy)
    restarts = 0
    right_since = time.monotonic()
    pause = policy.interval
    health.right()
    try:
        while not stop.wait(pause):
            error = evidence.ask(server)
            pause = policy.interval
            if error is None:
                health.right()
                if time.monotonic() - right_since >= policy.healthy:
                    restarts = 0
                continue
            LOG.warning("probe failed: %s", error)
            health.wrong(str(error))
            right_since = time.monotonic()
            if server.is_running() and not evidence.suffices(error):
                pause = policy.interval if isinstance(error, NotReadyError) else policy.again
                continue
            # No draining beside a stub that was given up on: its late answer would go to another request.
            server.stop(drain_seconds=0 if isinstance(error, StubLostError) else policy.drain)
            evidence.close()
            replacement, restarts = _replace(restart, restarts, stop, policy, error)
            if replacement is None:
                return server
            server, evidence = replacement, _Evidence(policy)
            right_since = time.monotonic()
            health.right()
            LOG.warning("the server answers rightly again (pid %d)", server.pid)
    finally:
        evidence.close()
        health.wrong("the server is being stopped")
    return server


def _replace(
    restart: Callable[[], Server], restarts: int, stop: threading.Event, policy: Policy, reason: ServeError
) -> tuple[Server | None, int]:
    """A new server and the number of restarts in a row; None where `stop` was set meanwhile.

    Raises:
        GaveUpError: at the policy's limit.
    """
    while restarts < policy.restarts:
        if restarts and stop.wait(policy.back_off * 2 ** (restarts - 1)):
            return None, restarts
        restarts += 1
        LOG.warning("restarting the server (%d of %d)", restarts, policy.restarts)
        try:
            return restart(), restarts
        except ServeError as error:
            LOG.warning("restart failed: %s", error)
            reason = error
    raise GaveUpError(f"the server failed after {restarts} restarts in a row; the last reason: {reason}") from reason
