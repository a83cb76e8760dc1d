"""Nothing stays behind: stub processes and shared memory of a server that ended are found and removed.

A tritonserver that is killed leaves its Python stubs running (they ignore SIGTERM) and its regions in /dev/shm. Each
server therefore has a state file with its identity, a prefix of its own for shared memory, and a marker in the
environment that its stubs inherit. The next start looks at all state files and cleans up after those whose server, or
whose launcher, is gone. A process is identified by pid, start time, boot and pid namespace, never by its name, so
nothing is touched that another program or another container owns.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from serve.cache import servers_folder

MARKER = "BET_SERVER"  # environment variable of a server and its stubs; its value is the server's token
SHARED_MEMORY = Path("/dev/shm")
_GRACE_SECONDS = 10.0  # for a server whose launcher was killed: it may finish what it has begun


@dataclass(frozen=True)
class ProcessIdentity:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    started: int  # clock ticks after boot
    namespace: str  # boot id and pid namespace in which `pid` means something

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """The identity of a running process.

        Raises:
            ProcessLookupError: if there is none.
        """
        started = _start_time(pid)
        if started is None:
            raise ProcessLookupError(f"no process {pid}")
        return cls(pid, started, _namespace())

    @property
    def local(self) -> bool:
        """Whether the number means a process of this boot and this namespace."""
        return self.namespace == _namespace()

    @property
    def alive(self) -> bool:
        """Whether that very process still runs (a zombie does not)."""
        return self.local and _start_time(self.pid) == self.started


@dataclass(frozen=True)
class ServerState:
    """The content of a state file."""

    token: str
    folder: str  # where this file lies; the environment may name another one by the time the server stops
    shm_prefix: str
    container: str
    launcher: ProcessIdentity
    server: ProcessIdentity | None  # None between the decision to start it and its start

    def write(self) -> None:
        """Write the state file, by rename."""
        unfinished = self.file("tmp")
        unfinished.write_text(json.dumps(asdict(self)), encoding="utf-8")
        unfinished.replace(self.file("json"))

    def file(self, kind: str) -> Path:
        """A file of this server: its state ("json"), its log ("log"), a link to its repository ("repository"),
        a folder of weights that its instances share ("weights")."""
        return Path(self.folder) / f"{self.token}.{kind}"

    @classmethod
    def read(cls, path: Path) -> ServerState:
        """Read a state file.

        Raises:
            ValueError: if it is not one.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            server = content.pop("server")
            launcher = ProcessIdentity(**content.pop("launcher"))
            return cls(**content, launcher=launcher, server=None if server is None else ProcessIdentity(**server))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a state file: {error!r}") from error


def sweep() -> list[str]:
    """Clean up after servers that ended without doing it, and return a line for each."""
    cleaned = []
    with _locked():
        for path in sorted(servers_folder().glob("*.json")):
            try:
                state = ServerState.read(path)
            except FileNotFoundError:  # its own launcher was faster
                continue
            except ValueError as error:
                cleaned.append(f"removed an unreadable state file: {error}")
                path.unlink(missing_ok=True)
                continue
            if not state.launcher.local or (state.launcher.alive and (state.server is None or state.server.alive)):
                continue
            processes, regions = clean(state)
            cleaned.append(
                f"cleaned up after server {state.token} that ended without doing it: "
                f"{processes} processes, {regions} shared-memory regions"
            )
    return cleaned


def clean(state: ServerState) -> tuple[int, int]:
    """End what is left of one server and remove its shared memory and state; returns (processes, regions).

    A server that still runs (its launcher was killed) is first asked to drain.
    """
    if state.container:
        # The container has its own shared memory and reaps its own processes.
        with contextlib.suppress(OSError):
            subprocess.run(["docker", "rm", "--force", state.container], capture_output=True, timeout=60, check=False)
    if state.server is not None and state.server.alive:
        _signal_marked(state.server.pid, state.token, signal.SIGTERM)
        _wait_gone([state.server.pid], _GRACE_SECONDS)
    ended: set[int] = set()
    # A stub that is being started while we look appears in a later round.
    while pids := [pid for pid in marked_processes(state.token) if pid not in ended]:
        for pid in pids:
            _signal_marked(pid, state.token, signal.SIGKILL)
        _wait_gone(pids, _GRACE_SECONDS)
        ended.update(pids)
    regions = shared_regions(state.shm_prefix)
    for region in regions:
        region.unlink(missing_ok=True)
    shutil.rmtree(state.file("weights"), ignore_errors=True)
    for kind in ("repository", "log", "tmp", "json"):
        state.file(kind).unlink(missing_ok=True)
    return len(ended), len(regions)


def shared_regions(prefix: str) -> list[Path]:
    """The shared-memory regions whose names begin so."""
    return [path for path in SHARED_MEMORY.glob(f"{prefix}*") if path.is_file()]


def marked_processes(token: str) -> list[int]:
    """The running processes whose environment carries the marker of this server."""
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _is_marked(int(p.name), token)]


def _is_marked(pid: int, token: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # ended, or another user's
        return False
    return f"{MARKER}={token}".encode() in environment.split(b"\0") and _start_time(pid) is not None


def _signal_marked(pid: int, token: str, number: signal.Signals) -> None:
    """Signal a process if it is ours: looked at through a handle, so that its number cannot change hands meanwhile."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _is_marked(pid, token):
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def _wait_gone(pids: list[int], seconds: float) -> None:
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if all(_start_time(pid) is None for pid in pids):
            return
        pause.wait(0.02)


def _start_time(pid: int) -> int | None:
    """Clock ticks after boot at which a process started (field 22 of proc(5) stat); None for none or a zombie."""
    try:
        # The second field is the command in parentheses and may itself hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _namespace() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Two starts at the same time do not clean up the same leftovers."""
    with (servers_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
