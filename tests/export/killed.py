"""Run one of `export`'s functions and die by SIGKILL at the n-th change of the file system, for each n.

    python killed.py install REPOSITORY FOLDER         one copy of the repository in FOLDER for each n
    python killed.py promote REPOSITORY NAME TEXTS     reads lines `HOST:PORT n`, 0 for no kill, or
                                                       `HOST:PORT what` to die at the change after that of a file

Python announces each file that is opened for writing, each rename, new folder and removal to audit hooks before it does
it; so nothing in the product knows of the kill. Imports are slow and a fork is not: one process forks for each n, and
prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}


def die_at(moment: str, below: Path) -> None:
    """From now on, die at the n-th change at or below a folder, or at the one after the change that names `moment`."""
    number, armed = 0, False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number, armed
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | Path) or not str(path).startswith(str(below)):
            return
        number += 1
        if armed or str(number) == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        armed = not moment.isdecimal() and moment in f"{event} {path}"

    sys.addaudithook(hook)


def forked(work: Callable[[], object]) -> int:
    """Do it in a fork; returns the wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(json.dumps({"error": repr(error)}), flush=True)
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def install(original: Path, folder: Path) -> None:
    """What `add` does with a version that has passed the gate, killed at each change, each time on a fresh copy."""
    from export import versions  # noqa: PLC0415
    from export.manifest import read_manifest  # noqa: PLC0415
    from export.repository import Names, Pins, write_configurations  # noqa: PLC0415

    names, number, killed = Names("bet"), 0, True
    while killed:
        number += 1
        models = folder / str(number) / "models"
        shutil.copytree(original, models, copy_function=os.link)  # nothing is written in place

        def work(models: Path = models, number: int = number) -> None:
            die_at(str(number), models.parent)
            with versions.staging_folder(models) as staging:
                manifest = read_manifest(models / "bet_classifier" / "1")
                write_configurations(staging, names, manifest["labels"], Pins(1))
                for model in names.versioned:
                    shutil.copytree(models / model / "1", staging / model / "1")
                versions.install(models, names, staging, 1, manifest)

        killed = os.WIFSIGNALED(forked(work))
        print(json.dumps({"models": str(models), "killed": killed}), flush=True)


def promote(models: Path, name: str, texts: str, url: str, moment: str) -> None:
    """A promotion to version 2, killed at one change."""

    def work() -> None:
        from export.__main__ import main  # noqa: PLC0415

        die_at(moment, models)
        where = ["--repository", str(models), "--url", url, "--watch", "0", "--max-latency-ratio", "50"]
        main(["promote", name, "2", *where, "--max-flips", "1", "--texts", texts])

    print(json.dumps({"killed": os.WIFSIGNALED(forked(work))}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "install":
        install(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        import export.__main__  # noqa: F401  # before the first fork

        for line in sys.stdin:
            url, moment = line.rstrip("\n").split(" ", 1)
            promote(Path(sys.argv[2]), sys.argv[3], sys.argv[4], url, moment)
