"""How many connections this process really holds to the server, from the kernel's own table.

gRPC shares one connection between channels that look alike, and HTTP pools may do the same, so that "100 users" can be
one socket. Linux only (`/proc/net/tcp`, proc(5)).
"""

from __future__ import annotations

import os
from pathlib import Path

_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_ESTABLISHED = "01"


def established(port: int) -> int | None:
    """Number of established TCP connections of this process to `port` of any host; None where /proc is missing."""
    tables = [table for table in _TABLES if table.exists()]
    if not tables:
        return None
    own = _own_sockets()
    count = 0
    for table in tables:
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            # sl local remote state tx:rx timer retransmits uid timeout inode …; addresses as HEX:PORT
            fields = line.split()
            if fields[3] == _ESTABLISHED and int(fields[2].rpartition(":")[2], 16) == port and fields[9] in own:
                count += 1
    return count


def _own_sockets() -> set[str]:
    """The inodes of the sockets that this process has open."""
    inodes = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(descriptor)  # noqa: PTH115 (`socket:[4711]` is no path)
        except FileNotFoundError:
            continue  # closed since it was listed, as the one that lists the folder always is
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    return inodes
