"""No late answers: a stub that was stopped while a request waited for it ends itself instead of answering.

Triton gives up on a stub that shows no sign of life for a second, and fails the request. If the process was only
stopped (a paused container, a suspended machine, SIGSTOP) it goes on where it stood, and Triton hands its late answer
to the *next* request: on 2.51 another caller's answer was delivered. A stub that is gone gives its callers an error
instead, which they may retry, and the supervisor replaces the server. What this cannot prevent is that Triton itself
ends, over memory that it took back from the stub: its callers see a broken connection, and no wrong answer.

`in_time` decorates `execute`. A thread that ticks shows for how long the process stood still; what runs in `execute`
must therefore not hold Python's lock for `_STOPPED` seconds (ONNX Runtime, torch and tokenizers release it).
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_TICK = 0.1  # seconds
# Seconds without a tick. Triton gives up after 1 s without a sign of life, which a stub gives every 0.3 s.
_STOPPED = 0.7
_AFTER = 0.5  # seconds after a stop in which a request is taken for one that waited from before it


class _Clock:
    """When this process last went on after it had been stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ticked = time.monotonic()
        self._resumed = float("-inf")

    def resumed(self) -> float:
        """The time of the last resumption in `time.monotonic`; minus infinity where there was none."""
        with self._lock:
            now = time.monotonic()
            if now - self._ticked >= _STOPPED:
                self._resumed = now
            self._ticked = now
            return self._resumed

    def tick(self) -> None:
        """Run for ever."""
        while True:
            time.sleep(_TICK)
            self.resumed()


def in_time(execute: Callable[[Any, list[Any]], list[Any]]) -> Callable[[Any, list[Any]], list[Any]]:
    """Decorate `TritonPythonModel.execute` so that it answers in time or never: the process ends where it was stopped
    while the requests waited, or while they were executed."""

    @functools.cache  # from the first request on: loading a model may hold Python's lock for long
    def clock() -> _Clock:
        started = _Clock()
        threading.Thread(target=started.tick, name="stops", daemon=True).start()
        return started

    @functools.wraps(execute)
    def answer_in_time(model: Any, requests: list[Any]) -> list[Any]:
        began = time.monotonic()
        if clock().resumed() > began - _AFTER:
            _end()
        responses = execute(model, requests)
        if clock().resumed() >= began:
            _end()
        return responses

    return answer_in_time


def _end() -> None:
    print("this stub was stopped while a request waited; it ends, for Triton would mix up its answer", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)  # at once: no answer may leave while Python is finalised
