"""Processes of the peers' environment that are asked without a network: a line in, a line out."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.errors import PeerError
from benchmarks.peers.systems import Setting, peer_environment, stop
from benchmarks.processes import tree_seconds

_HERE = Path(__file__).parent
_END_SECONDS = 10.0


@dataclass(frozen=True)
class Workers:
    """Started processes, each with the file that holds what it complains of; each works by itself."""

    name: str
    processes: tuple[subprocess.Popen[str], ...]
    logs: tuple[IO[bytes], ...]

    def exchange(self, line: str) -> list[str]:
        """A line to all workers, then one from each: all work at once.

        Raises:
            PeerError: if one has ended, with the last line that any of them said.
        """
        for worker in self.processes:
            assert worker.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # its missing reply says so below
                worker.stdin.write(f"{line}\n")
                worker.stdin.flush()
        replies = []
        for worker in self.processes:
            assert worker.stdout is not None
            reply = worker.stdout.readline()
            if not reply:
                raise PeerError(f"{self.name} in process ended with {worker.wait()}: {self._last_line()}")
            replies.append(reply.strip())
        return replies

    def spent(self) -> float:
        """Processor seconds of all workers so far."""
        return sum(tree_seconds(worker.pid) for worker in self.processes)

    def _last_line(self) -> str:
        for log in self.logs:
            log.seek(0)
            if lines := log.read().decode("utf-8", "replace").strip().splitlines():
                return lines[-1]
        return "it said nothing"


@contextlib.contextmanager
def started_workers(
    name: str, setting: Setting, python: Path, checkpoint: Path, arguments: Sequence[str]
) -> Iterator[Workers]:
    """As many processes as the setting has workers.

    Args:
        name: in errors.
        python: interpreter of the peers' environment.
        arguments: of it: a file of this folder, and its own.
    """
    script, *own = arguments
    with contextlib.ExitStack() as stack:
        processes, logs = [], []
        for _ in range(setting.workers):
            log = stack.enter_context(tempfile.TemporaryFile())
            worker = subprocess.Popen(
                [str(python), str(_HERE / script), *own],
                env=peer_environment(setting, checkpoint),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            stack.enter_context(worker)  # closes both pipes, after the process has ended
            stack.callback(_end, worker)
            processes.append(worker)
            logs.append(log)
        yield Workers(name, tuple(processes), tuple(logs))


def _end(worker: subprocess.Popen[str]) -> None:
    """A worker ends with its input; one that does not is stopped."""
    assert worker.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(_END_SECONDS)
    if worker.poll() is None:
        stop(worker)
