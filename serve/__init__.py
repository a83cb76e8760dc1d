"""Serving: from a model repository to a Triton that answers, here or in a container.

`start(repository)` returns a `Server` once a real inference on every ensemble was right; `python -m serve` does the
same from a shell and keeps it so.
"""

from serve.errors import (
    BrokenLockError,
    EngineError,
    GaveUpError,
    PortTakenError,
    ProbeError,
    RepositoryError,
    ServeError,
    SharedMemoryError,
    StartupError,
)
from serve.ports import free_port
from serve.server import Server, start

__all__ = [
    "BrokenLockError",
    "EngineError",
    "GaveUpError",
    "PortTakenError",
    "ProbeError",
    "RepositoryError",
    "ServeError",
    "Server",
    "SharedMemoryError",
    "StartupError",
    "free_port",
    "start",
]
