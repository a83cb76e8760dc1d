"""Ports: free ones for a server that may listen anywhere, and the owner of one that is taken.

Triton asks for its ports after it has loaded every model, and a readiness request is then answered by whoever owns the
port, so a taken port is looked for before anything starts.
"""

from __future__ import annotations

import socket
from collections import deque
from pathlib import Path

from serve.errors import PortTakenError

_given: deque[int] = deque(maxlen=1000)
_LISTEN = "0A"  # the state of a listening socket in /proc/net/tcp


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port on `host` that nobody uses now and that this process was not given lately.

    Another process may still take it before the caller does.
    """
    while True:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
        if port not in _given:  # the kernel may hand out again at once what was just closed
            _given.append(port)
            return port


def require_free(host: str, port: int) -> None:
    """Raise where `port` cannot be listened on.

    Raises:
        PortTakenError: naming the process that listens there, where this user may know it.
    """
    with socket.socket() as probe:
        # As Triton does it: a connection of an earlier server that lingers in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTakenError(port, owner(port) or f"({error.strerror})") from error


def owner(port: int) -> str:
    """Who listens on `port`, as "pid 123 (command line)"; empty where this user may not see it."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not sockets:
        return ""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            found = any(str(link.readlink()) in sockets for link in (process / "fd").iterdir())
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # the process ended, or belongs to another user
            continue
        if found:
            return f"pid {process.name} ({command[:120]})"
    return ""


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if not table.exists():
            continue
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes
