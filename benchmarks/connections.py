"""How many connections are really held between users and a server, from the kernel's own tables.

gRPC shares one connection between channels that look alike, and HTTP pools may do the same, so that "100 users" can be
one socket; and a client that has connected may still wait for the server to accept it. Linux only (`/proc/net/tcp`,
proc(5)).
"""

from __future__ import annotations

import os
from pathlib import Path

_ESTABLISHED = "01"
_LOCAL, _REMOTE, _STATE, _INODE = 1, 2, 3, 9  # columns: sl local remote state tx:rx timer retransmits uid timeout inode


def established(port: int) -> int | None:
    """Number of established TCP connections of this process to `port` of any host; None where /proc is missing."""
    return _count(os.getpid(), port, _REMOTE)


def accepted(pid: int, port: int) -> int | None:
    """Number of established connections that the process `pid` has accepted on its `port`: the server's side.

    None where /proc is missing, the process has ended, or it is another user's.
    """
    return _count(pid, port, _LOCAL)


def _count(pid: int, port: int, column: int) -> int | None:
    process = Path("/proc") / str(pid)
    tables = [table for name in ("tcp", "tcp6") if (table := process / "net" / name).exists()]
    if not tables:
        return None
    try:
        own = _sockets(process)
    except (PermissionError, FileNotFoundError):
        return None
    count = 0
    for table in tables:
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            at_port = int(fields[column].rpartition(":")[2], 16) == port
            if at_port and fields[_STATE] == _ESTABLISHED and fields[_INODE] in own:
                count += 1
    return count


def _sockets(process: Path) -> set[str]:
    """The inodes of the sockets that a process has open."""
    inodes = set()
    for descriptor in (process / "fd").iterdir():
        try:
            target = os.readlink(descriptor)  # noqa: PTH115 (`socket:[4711]` is no path)
        except FileNotFoundError:
            continue  # closed since it was listed, as the one that lists the folder always is
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    return inodes
