"""Processes of this machine: one with its children, and what time they and everything else have had."""

from __future__ import annotations

import contextlib

import psutil


def tree(root: int) -> list[psutil.Process]:
    """A process and its living children; empty where it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    return []


def tree_seconds(root: int) -> float:
    """Processor seconds of a process and of its living children so far; 0 where it has ended."""
    total = 0.0
    for process in tree(root):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def busy_seconds() -> float:
    """Processor seconds that this machine has spent on anything."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)
