"""What can go wrong between a repository folder and a server that answers, as one small tree.

    ServeError
    ├── EngineError          the engine cannot run here: wheel, interpreter, library or Docker missing
    ├── RepositoryError      the folder holds nothing that can be served, or a model that this engine cannot run
    ├── PortTakenError       another process listens on a port that was asked for
    ├── SharedMemoryError    /dev/shm is too small for the model instances
    ├── StartupError         the server ended, or was not ready in time; carries the end of its log
    │   ├── ProbeError       it runs, and a real inference failed or answered wrongly
    │   └── BrokenLockError  Triton aborted while starting, over a lock of its own, as it may on a loaded machine
    └── GaveUpError          the supervisor restarted it too often

All of them say what was wrong, with which value, and what to do.
"""

from __future__ import annotations


class ServeError(Exception):
    """Base of everything that this package raises on purpose."""


class EngineError(ServeError):
    """The engine (embedded Triton or Docker) is missing here, or cannot run."""


class RepositoryError(ServeError):
    """The model repository cannot be served as it lies."""


class PortTakenError(ServeError):
    """A port that was asked for is in use."""

    def __init__(self, port: int, owner: str = "") -> None:
        by = f" by {owner}" if owner else ""
        super().__init__(f"port {port} is already in use{by}; stop that process or choose another port")
        self.port = port
        self.owner = owner


class SharedMemoryError(ServeError):
    """The shared memory of this machine or container is too small."""


class StartupError(ServeError):
    """The server did not become ready; `log_tail` holds the lines of its log that say why."""

    def __init__(self, message: str, log_tail: str = "") -> None:
        super().__init__(f"{message}\n{log_tail}" if log_tail else message)
        self.log_tail = log_tail


class ProbeError(StartupError):
    """A real inference failed, or its answer is not the one that the version's manifest records."""


class BrokenLockError(StartupError):
    """Triton aborted while starting because of a lock that it shares with its stubs; another start may well work."""


class GaveUpError(ServeError):
    """The server kept failing after every restart that the supervisor allows."""
