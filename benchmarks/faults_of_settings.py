"""The faults of settings, as their owner is told them; each is a list, so that all of them make one message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.errors import UsageError


def below_one(settings: Any, *names: str) -> list[str]:
    """Counts that must be 1 at least."""
    return [f"{_said(settings, name)}, at least 1 is needed" for name in names if getattr(settings, name) < 1]


def not_above_zero(settings: Any, *names: str, write: str = "seconds above 0") -> list[str]:
    """Numbers that must be above 0 and finite."""
    wrong = [name for name in names if not 0 < getattr(settings, name) < float("inf")]
    return [f"{_said(settings, name)}, write {write}" for name in wrong]


def below_zero(settings: Any, *names: str) -> list[str]:
    """Seconds that must be finite, and may be 0."""
    wrong = [name for name in names if not 0 <= getattr(settings, name) < float("inf")]
    return [f"{_said(settings, name)}, write seconds, 0 for none" for name in wrong]


def refuse(faults: Sequence[str]) -> None:
    """Raise a `UsageError` that names all faults, if there are any."""
    if faults:
        raise UsageError("; ".join(faults))


def _said(settings: Any, name: str) -> str:
    return f"{name.replace('_', '-')} is {getattr(settings, name)}"
