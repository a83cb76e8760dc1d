"""Processor time: of a process with its children, and of everything on this machine."""

from __future__ import annotations

import contextlib

import psutil


def tree_seconds(root: int) -> float:
    """Processor seconds of a process and of its living children so far; 0 where it has ended."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(root)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system
    return total


def busy_seconds() -> float:
    """Processor seconds that this machine has spent on anything."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)
