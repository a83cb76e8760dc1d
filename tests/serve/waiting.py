"""Waiting on what comes true by itself, without sleeping longer than it takes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest


def wait_until(holds: Callable[[], object], seconds: float = 20, seen: Callable[[], object] | None = None) -> None:
    """Wait on a condition; fails where it does not come true, with what was `seen` instead."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if holds():
            return
        pause.wait(0.02)
    pytest.fail(f"not within {seconds} s{f': {seen()}' if seen else ''}")
