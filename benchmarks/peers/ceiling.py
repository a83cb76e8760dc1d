"""The in-process ceiling as a system of the comparison: its worker processes, started once and asked for turns."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import PeerError
from benchmarks.peers.right_answers import RightAnswers
from benchmarks.peers.systems import Setting, peer_environment, stop
from benchmarks.processor_time import busy_seconds, tree_seconds

_WORKER = Path(__file__).with_name("in_process_onnx.py")
_END_SECONDS = 10.0


@dataclass(frozen=True)
class CeilingTurn:
    """What all workers did in one turn, at once.

    Attributes:
        throughput: right texts per second.
        latencies: milliseconds of each execution, tokenizing included.
        other_cpu: processors that were busy with somebody else's work.
    """

    throughput: float
    latencies: tuple[float, ...]
    right: int
    wrong: int
    largest_difference: float
    other_cpu: float


@dataclass(frozen=True)
class Ceiling:
    """Started workers; each executes by itself, as the processes of an application would."""

    workers: tuple[subprocess.Popen[str], ...]

    def turn(self, group: str, joined: int, seconds: float, tolerance: float) -> CeilingTurn:
        """All workers at once for `seconds`, `joined` texts in an execution.

        Raises:
            PeerError: if a worker has ended.
        """
        began, machine, clock = self._spent(), busy_seconds(), time.perf_counter()
        asked = {"group": group, "batch": joined, "seconds": seconds, "tolerance": tolerance}
        replies = _exchange(self.workers, json.dumps(asked))
        elapsed = time.perf_counter() - clock
        return CeilingTurn(
            throughput=sum(reply["right"] / reply["seconds"] for reply in replies),
            latencies=tuple(latency for reply in replies for latency in reply["latencies"]),
            right=sum(reply["right"] for reply in replies),
            wrong=sum(reply["wrong"] for reply in replies),
            largest_difference=max(reply["largest_difference"] for reply in replies),
            other_cpu=max(0.0, (busy_seconds() - machine - (self._spent() - began)) / elapsed),
        )

    def _spent(self) -> float:
        return sum(tree_seconds(worker.pid) for worker in self.workers)


@contextlib.contextmanager
def started_ceiling(
    setting: Setting, python: Path, folder: Path, groups: Mapping[str, tuple[Sequence[str], RightAnswers]]
) -> Iterator[Ceiling]:
    """Workers that have answered every text once.

    Args:
        folder: holds the graph, its tokenizer and its manifest.
        groups: texts by name, with what is right for them.

    Raises:
        PeerError: if one ends while starting, with its last line.
    """
    content = {
        name: {
            "texts": list(texts),
            "answers": [(right.labels[int(row.argmax())], row.tolist()) for row in right.probabilities],
        }
        for name, (texts, right) in groups.items()
    }
    with contextlib.ExitStack() as stack:
        workers = []
        for _ in range(setting.workers):
            log = stack.enter_context(tempfile.TemporaryFile())
            worker = subprocess.Popen(
                [str(python), str(_WORKER)],
                env=peer_environment(setting, folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            stack.enter_context(worker)  # closes both pipes, after the process has ended
            stack.callback(_end, worker)
            workers.append((worker, log))
        started = tuple(worker for worker, _ in workers)
        try:
            _exchange(started, json.dumps(content))
        except PeerError as error:
            lines = []
            for _, log in workers:
                log.seek(0)
                lines += log.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            raise PeerError(f"{error}: {(lines or ['it said nothing'])[0]}") from error
        yield Ceiling(started)


def _end(worker: subprocess.Popen[str]) -> None:
    """A worker ends with its input; one that does not is stopped."""
    assert worker.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(_END_SECONDS)
    if worker.poll() is None:
        stop(worker)


def _exchange(workers: Sequence[subprocess.Popen[str]], line: str) -> list[dict[str, Any]]:
    """A line to all workers, then a line of JSON from each."""
    for worker in workers:
        assert worker.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its missing reply says so below
            worker.stdin.write(f"{line}\n")
            worker.stdin.flush()
    replies = []
    for worker in workers:
        assert worker.stdout is not None
        reply = worker.stdout.readline()
        if not reply:
            raise PeerError(f"ONNX Runtime in process ended with {worker.wait()}")
        replies.append(json.loads(reply))
    return replies
