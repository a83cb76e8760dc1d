"""Where the launcher keeps what outlives a process: the backend directory, and one state file per running server.

`BET_CACHE`, else `$XDG_CACHE_HOME/bet`, else `~/.cache/bet`; where that cannot be written (a read-only file system) or
its name would not survive a shell, a folder under the system's temporary one.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from serve.errors import EngineError

# Triton's Python backend starts its stub by `bash -c "exec <stub> <model file> …"` without quotes.
SHELL_SAFE = re.compile(r"[A-Za-z0-9_./+@:,=-]+")


def cache_folder() -> Path:
    """The cache folder, created.

    Raises:
        EngineError: if no candidate can be written.
    """
    configured = os.environ.get("BET_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    temporary = Path(tempfile.gettempdir()) / f"bet-{os.getuid()}"
    candidates = [Path(configured)] if configured else [Path(base) / "bet", temporary]
    faults = []
    for candidate in candidates:
        folder = candidate.absolute()
        if not SHELL_SAFE.fullmatch(str(folder)):
            faults.append(f"{folder} (characters that a shell would change)")
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            faults.append(f"{folder} ({error.strerror})")
    raise EngineError(
        f"no folder for the cache can be used: {'; '.join(faults)}; set BET_CACHE to one that can be written"
    )


def servers_folder() -> Path:
    """The folder of the state files and logs of running servers, created."""
    folder = cache_folder() / "servers"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder
