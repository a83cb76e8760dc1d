"""What must be true of a machine before anything is installed or started, said at once and in one sentence each.

`make` calls this before every other step. A missing interpreter, a full disk or a taken port is otherwise met minutes
later as an unreadable error of pip or of Triton. All faults are listed together, on standard error, with exit status 2;
where there are none, the path of the interpreter to build the environment with is printed on standard output.

This file runs before the environment exists, under whatever Python the machine has: standard library only, and nothing
newer than Python 3.6, so that an unsuitable interpreter can say that it is one.
"""

import argparse
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

SUITABLE = ((3, 11), (3, 12))
CANDIDATES = ("python3.11", "python3.12", "python3", "python3.13", "python3.10")  # the last two only to be named

# Measured on Debian 12 with the locked versions and a CPU build of torch: the environment takes 2.25 GB, the 127 wheels
# 0.29 GB while they are installed and as much again in pip's cache. A CUDA build of torch takes some 5 GB more; which
# one pip will choose cannot be known before it is asked.
ENVIRONMENT_GIGABYTES = 2.3
DOWNLOAD_GIGABYTES = 0.6
RUN_GIGABYTES = 0.3  # checkpoints, exported versions and reports

GLIBC = (2, 35)  # the oldest that the wheel with the embedded Triton runs on (its tag: manylinux_2_35_x86_64)

_PROBE = (
    "import sys; print('%d.%d' % sys.version_info[:2]); print(sys.executable)\n"
    "try:\n    import ensurepip, venv; print('venv')\n"
    "except ImportError: print('no venv')"
)


def probe(command: str) -> Optional[Tuple[Tuple[int, int], str, bool]]:
    """Ask an interpreter for its version, path and venv module: ((3, 11), "/usr/bin/python3.11", True), or None.

    None also where a command of that name exists but does not run, as version managers leave them behind.
    """
    try:
        answer = subprocess.run(
            [command, "-c", _PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=True
        ).stdout.decode()
        version, path, venv = answer.splitlines()[:3]
        major, minor = version.split(".")
        return (int(major), int(minor)), path, venv == "venv"
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def choose_interpreter(wanted: str, candidates: Sequence[str] = CANDIDATES) -> Tuple[Optional[str], Optional[str]]:
    """The interpreter to build the environment with: (path, None), or (None, the fault).

    `wanted` is the one that the user named, tried alone; else the first suitable of `candidates` is taken.
    """
    found = []
    for command in (wanted,) if wanted else candidates:
        answer = probe(command)
        if answer is None:
            continue
        version, path, has_venv = answer
        number = f"{version[0]}.{version[1]}"
        name = f"{command} is Python {number}"
        if version in SUITABLE and has_venv:
            return path, None
        if version in SUITABLE:
            name += f" without its venv module (on Debian and Ubuntu: apt install python{number}-venv)"
        found.append(name)
    needed = "Python 3.11 or 3.12 with its venv module is needed (PYTHON=/path/to/python names one)"
    if wanted and not found:
        return None, f"PYTHON={wanted} does not run; {needed}."
    return None, f"{needed}; found: {', '.join(found) or 'none'}."


def platform_fault(system: str, machine: str, libc: str) -> Optional[str]:
    """Why the embedded Triton cannot run here, or None; `libc` is for instance "glibc 2.36"."""
    if (system, machine) != ("Linux", "x86_64"):
        return (
            f"the embedded Triton exists for Linux on x86_64 and this is {system} on {machine}; "
            "use such a machine, or a container or virtual machine of that kind."
        )
    version = re.match(r"glibc (\d+)\.(\d+)", libc)
    if version is None or (int(version.group(1)), int(version.group(2))) < GLIBC:
        return (
            f"the embedded Triton needs glibc {GLIBC[0]}.{GLIBC[1]} or newer (Debian 12, Ubuntu 22.04) "
            f"and this system has {libc}."
        )
    return None


def c_library() -> str:
    """The running C library, for instance "glibc 2.36"."""
    # Not platform.libc_ver(): that is the version the interpreter was built for, not the one that is there.
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "another C library"
    except (AttributeError, ValueError, OSError):
        return "another C library"


def disk_faults(needs: Sequence[Tuple[Path, float]]) -> List[str]:
    """One fault for each file system with less free space than is needed in its folders, in gigabytes."""
    needed: Dict[int, Tuple[Path, float]] = {}
    for folder, gigabytes in needs:
        device = folder.stat().st_dev
        first, so_far = needed.get(device, (folder, 0.0))
        needed[device] = (first, so_far + gigabytes)
    faults = []
    for folder, gigabytes in needed.values():
        free = shutil.disk_usage(str(folder)).free / 1e9
        if free < gigabytes:
            faults.append(f"{folder} has {free:.1f} GB free and {gigabytes:.1f} GB are needed; free some space.")
    return faults


def port_fault(name: str, port: str) -> Optional[str]:
    """Why the loopback port cannot be had, or None. `name` is what the user set: HTTP_PORT, --http-port."""
    if not re.match(r"[0-9]{1,5}$", port) or not 0 < int(port) < 65536:
        return f"{name}={port} is not a port; give a number from 1 to 65535, or none for a free one."
    with socket.socket() as probe_socket:
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind(("127.0.0.1", int(port)))
        except PermissionError:
            return f"{name}={port} may not be opened by this user; choose a port above 1023."
        except OSError:
            return f"{name}={port} is in use on this machine; choose another, or none for a free one."
    return None


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Print the interpreter, or every fault found; return the exit status (0 or 2)."""
    parser = argparse.ArgumentParser(
        description="Check this machine before anything is installed or started.",
        epilog="example: python3 preflight.py --port HTTP_PORT=8000",
    )
    parser.add_argument("--python", default="", metavar="COMMAND", help="the interpreter to use, instead of a search")
    parser.add_argument("--environment", metavar="DIR", help="an environment that is ready: nothing will be installed")
    parser.add_argument("--port", action="append", default=[], metavar="NAME=N", help="a port that must be free")
    options = parser.parse_args(arguments)

    here = Path(__file__).resolve().parent
    found = [platform_fault(platform.system(), platform.machine(), c_library())]
    interpreter: Optional[str]
    if options.environment:
        interpreter = str(Path(options.environment) / "bin" / "python")
        if probe(interpreter) is None:
            found.append(f"{interpreter} does not run any more; remove {options.environment} and start again.")
        found += disk_faults([(here, RUN_GIGABYTES)])
    else:
        downloads = Path(tempfile.gettempdir())
        interpreter, fault = choose_interpreter(options.python)
        found.append(fault)
        found += disk_faults([(here, ENVIRONMENT_GIGABYTES + RUN_GIGABYTES), (downloads, DOWNLOAD_GIGABYTES)])
    for port in options.port:
        name, _, number = port.partition("=")
        if number:
            found.append(port_fault(name, number))

    faults = [fault for fault in found if fault]
    for fault in faults:
        print("preflight: " + fault, file=sys.stderr)
    if faults:
        return 2
    print(interpreter)
    return 0


if __name__ == "__main__":
    sys.exit(main())
