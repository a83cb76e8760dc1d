"""Keep a server right: ask it every few seconds, restart it when it is not, give up in a way that is seen.

Triton never restarts a dead Python stub and keeps counting its model as ready, so the question is a real inference
(`Server.check`). Three kinds of trouble are told apart. A process that ended is replaced at once. Answers that are
errors or wrong are believed the second time, even with right ones in between, for where one of several instances is
dead the others still answer. No answer at all may be load and is given more time, and a full queue is a sign of life.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from serve.errors import GaveUpError, ServeError
from serve.probe import BusyError, NotReadyError
from serve.server import Server

LOG = logging.getLogger("serve")


@dataclass(frozen=True)
class Policy:
    """When to restart, and when to stop trying; times in seconds."""

    interval: float = 2.0  # between two probes
    timeout: float = 10.0  # for one probe
    failures: int = 2  # wrong or failed answers among the last `window` probes until a restart
    window: int = 10
    silences: int = 3  # probes without an answer in a row until a restart
    restarts: int = 5  # restarts in a row without `healthy` in between until the end
    back_off: float = 1.0  # before the second restart in a row; doubles with each further one
    healthy: float = 60.0  # of right answers after which earlier restarts are forgotten
    drain: float = 3.0  # for what other instances still answer while one is dead


def supervise(
    server: Server, restart: Callable[[], Server], stop: threading.Event, policy: Policy | None = None
) -> Server:
    """Probe `server` until `stop` is set, replacing it by `restart()` when needed; returns the one that runs then.

    Raises:
        GaveUpError: if it failed again after the last restart that the policy allows; no server runs then.
    """
    policy = policy or Policy()
    recent: deque[bool] = deque(maxlen=policy.window)  # of the last probes: was it answered wrongly?
    silences = restarts = 0
    right_since = time.monotonic()
    while not stop.wait(policy.interval):
        try:
            server.check(policy.timeout)
        except BusyError:
            silences = 0
            continue
        except ServeError as error:
            LOG.warning("probe failed: %s", error)
            if isinstance(error, NotReadyError):
                silences += 1
            else:
                recent.append(True)
            right_since = time.monotonic()
            if server.is_running() and sum(recent) < policy.failures and silences < policy.silences:
                continue
            server.stop(drain_seconds=policy.drain)
            replacement, restarts = _replace(restart, restarts, stop, policy, error)
            if replacement is None:
                return server
            server = replacement
            recent.clear()
            silences = 0
            right_since = time.monotonic()
            LOG.warning("the server answers rightly again (pid %d)", server.pid)
        else:
            recent.append(False)
            silences = 0
            if time.monotonic() - right_since >= policy.healthy:
                restarts = 0
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
