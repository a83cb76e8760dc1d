"""The in-process ceiling as a system of the comparison: its worker processes, started once and asked for turns."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.right_answers import RightAnswers
from benchmarks.peers.systems import Setting
from benchmarks.peers.workers import Workers, started_workers
from benchmarks.processes import busy_seconds


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
    generator_cpu: float = 0.0  # nobody asks from outside

    @property
    def faults(self) -> tuple[str, ...]:
        """What was wrong, once."""
        return ("another answer than alone",) if self.wrong else ()


@dataclass(frozen=True)
class Ceiling:
    """Started workers; each executes by itself, as the processes of an application would."""

    workers: Workers

    def turn(self, group: str, joined: int, seconds: float, tolerance: float) -> CeilingTurn:
        """All workers at once for `seconds`, `joined` texts in an execution.

        Raises:
            PeerError: if a worker has ended.
        """
        began, machine, clock = self.workers.spent(), busy_seconds(), time.perf_counter()
        asked = {"group": group, "batch": joined, "seconds": seconds, "tolerance": tolerance}
        replies = [json.loads(reply) for reply in self.workers.exchange(json.dumps(asked))]
        elapsed = time.perf_counter() - clock
        return CeilingTurn(
            throughput=sum(reply["right"] / reply["seconds"] for reply in replies),
            latencies=tuple(latency for reply in replies for latency in reply["latencies"]),
            right=sum(reply["right"] for reply in replies),
            wrong=sum(reply["wrong"] for reply in replies),
            largest_difference=max(reply["largest_difference"] for reply in replies),
            other_cpu=max(0.0, (busy_seconds() - machine - (self.workers.spent() - began)) / elapsed),
        )


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
    with started_workers("ONNX Runtime", setting, python, folder, ["in_process_onnx.py"]) as workers:
        workers.exchange(json.dumps(content))
        yield Ceiling(workers)
