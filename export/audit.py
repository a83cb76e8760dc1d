"""Who switched which version when, and what came of it: one JSON line for each step of a promotion or rollback.

The file lies in the repository's root, `<name>.audit.jsonl`: Triton takes folders for models and sees no file there; a
line in a model's folder would make it load that model again. A line is written whole and flushed to disk before the
step after it begins, so that a killed promotion ends with the last step that it had done.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.repository import Names


@dataclass(frozen=True)
class Audit:
    """The lines of one promotion or rollback."""

    path: Path
    name: str
    action: str  # "promote" or "rollback"
    from_version: int | None  # that answers before; None where none does
    to_version: int

    def write(self, step: str, outcome: str, **counts: Any) -> None:
        """Append a line and flush it.

        Args:
            step: such as "compared".
            outcome: "done", "refused", "failed" or "returned".
            counts: what was counted or measured in the step.
        """
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "user": _user(),
            "name": self.name,
            "action": self.action,
            "from": self.from_version,
            "to": self.to_version,
            "step": step,
            "outcome": outcome,
            "counts": counts,
        }
        _append(self.path, json.dumps(entry, ensure_ascii=False).encode() + b"\n")


def audit_file(repository: Path, names: Names) -> Path:
    """Where the lines of a name are kept."""
    return repository / f"{names.ensemble}.audit.jsonl"


def read_audit(repository: Path, names: Names) -> list[Mapping[str, Any]]:
    """All lines, oldest first; a line that a crash cut off says so instead of what it would have said."""
    path = audit_file(repository, names)
    if not path.exists():
        return []
    entries: list[Mapping[str, Any]] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            entries.append(json.loads(line))
        except ValueError:
            entries.append({"step": f"line {number}", "outcome": "cut off"})
    return entries


def _append(path: Path, line: bytes) -> None:
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a crash cut the last line off: begin a new one
            line = b"\n" + line
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if new:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id without a name
        return str(os.getuid())
