"""What Triton's log says about why a server did not start: reasons by model, and the lines worth showing."""

from __future__ import annotations

import re
from pathlib import Path

_LINES = 12
_FAILED_LOAD = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*)\n")
# Python's traceback follows the message, with line breaks that glog has escaped.
_TRACEBACK = re.compile(r"\\n\\nAt:\\n.*")
_ERROR = re.compile(r"[EF]\d{4} |error:|.*error while loading shared libraries")
_PORT_IN_USE = re.compile(r"already in use|failed to bind|unable to bind", re.IGNORECASE)
_BROKEN_LOCK = "boost::interprocess::lock_exception"
_NOISE = "CudaDriverHelper"  # said by every start on a machine without a GPU


def read_log(path: Path, begin: int) -> str:
    """The log from byte `begin` on; an earlier server may have written before it."""
    with path.open("rb") as log:
        log.seek(begin)
        return log.read().decode("utf-8", errors="replace")


def tail(log: str) -> str:
    """The last errors, one a line and without tracebacks; where there is none, the last lines."""
    lines = [_TRACEBACK.sub("", line) for line in log.splitlines() if line.strip() and _NOISE not in line]
    return "\n".join(([line for line in lines if _ERROR.match(line)] or lines)[-_LINES:])


def failed_loads(log: str) -> dict[str, str]:
    """The reason by model that could not be loaded."""
    return {m["model"]: _TRACEBACK.sub("", m["reason"]).strip('" ') for m in _FAILED_LOAD.finditer(log)}


def says_port_in_use(log: str) -> bool:
    """Whether the server ended because a port was taken between our look and its own."""
    return _PORT_IN_USE.search(log) is not None


def says_lock_broke(log: str) -> bool:
    """Whether the server aborted over the lock that it shares with a stub (triton-inference-server/server#8882)."""
    return _BROKEN_LOCK in log
