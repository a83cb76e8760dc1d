"""The Python environment of the peers: apart from ours, since optimum wants an older transformers than we have."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from pathlib import Path

from benchmarks.errors import PeerError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
ONNX_REQUIREMENTS = Path(__file__).with_name("requirements_onnx.txt")
"""Of the peers that execute our own graph: neither torch nor transformers, 230 MB."""

_PIP = (sys.executable, "-m", "pip")
_LOG = logging.getLogger(__name__)


def peer_python(folder: Path, requirements: Path = REQUIREMENTS) -> Path:
    """The interpreter of an environment that holds `requirements`, made on the first call (minutes, up to 1.5 GB).

    It is made anew where the requirements or our own Python have changed; pip's own settings are obeyed, so that an
    index of CPU builds of torch is given as for the project's environment (`PIP_EXTRA_INDEX_URL`).

    Raises:
        PeerError: if it cannot be made, with pip's last words.
    """
    identity = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    environment = (folder / f"environment-{identity}").resolve()
    python = environment / "bin" / "python"
    ready = environment / "ready"
    if not ready.exists():
        _LOG.info("installing the peers into %s (once: minutes, and up to 1.5 GB)", environment)
        # Our own pip installs there: a second one would take as long to unpack as all the peers but torch.
        _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(environment)])
        _run([*_PIP, "--python", str(python), "install", "--quiet", "-r", str(requirements)])
        ready.touch()
    return python


def installed_versions(python: Path) -> dict[str, str]:
    """Name and version of everything in an environment."""
    listed = _run([*_PIP, "--python", str(python), "list", "--format", "freeze"])
    return dict(line.split("==", 1) for line in listed.splitlines() if "==" in line)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        last = (errors or done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise PeerError(
            f"the peers' environment cannot be made, {' '.join(command[1:4])} ends with {done.returncode} ({last}); "
            "a package index must be reachable (see pip's PIP_INDEX_URL and PIP_EXTRA_INDEX_URL)"
        )
    return done.stdout
