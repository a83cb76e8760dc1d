"""The systems that are compared, each started for one turn and stopped after it: two cores carry one at a time.

Another peer is a file beside this one, with a FastAPI application or whatever starts it, and an entry in `PEERS`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import serve
from benchmarks.closed_loop import Exchange
from benchmarks.ensemble import Ensemble
from benchmarks.errors import PeerError
from benchmarks.http_connection import http_post
from benchmarks.processes import tree_seconds

OURS = "ours"
_HERE = Path(__file__).parent
_START_SECONDS = 300.0  # for torch, transformers and an export, also on a busy machine
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Setting:
    """How a peer is run: so many processes, each with so many threads for its model."""

    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{self.workers} × {self.threads}"


@dataclass(frozen=True)
class Peer:
    """A system beside ours.

    Attributes:
        name: in the names of checks.
        application: a file in this folder, whose `app` answers POST /predict as FastAPI's applications do here.
        settings: the ones to choose the best from.
    """

    name: str
    application: str
    settings: tuple[Setting, ...]


def processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))


def _settings(cores: int) -> tuple[Setting, ...]:
    """A process for each processor, or one process with all of them."""
    return tuple(dict.fromkeys((Setting(cores, 1), Setting(1, cores))))


PEERS = tuple(
    Peer(name, application, _settings(processors()))
    for name, application in (("fastapi", "fastapi_transformers"), ("optimum", "fastapi_optimum"))
)


@dataclass(frozen=True)
class Answer:
    """The most probable label and its probability."""

    label: str
    probability: float

    def __str__(self) -> str:
        return f"{self.label} {self.probability:.4f}"


@dataclass(frozen=True)
class Running:
    """A system that answers.

    Attributes:
        name, setting: which, and how it is run.
        calibrated: whether its probabilities are those of the logits divided by the fitted temperature.
        ports: one for each of its processes that accept connections.
        roots: the process ids it was started with; their children belong to it.
        request: the bytes that ask for one text.
        read: the answer in an exchange; raises `ValueError` for one that cannot be read.
    """

    name: str
    setting: str
    calibrated: bool
    ports: tuple[int, ...]
    roots: tuple[int, ...]
    request: Callable[[str], bytes]
    read: Callable[[Exchange], Answer]

    def processor_seconds(self) -> float:
        """Processor time of all its processes so far."""
        return sum(tree_seconds(root) for root in self.roots)


@contextlib.contextmanager
def ours(repository: Path, model: str) -> Iterator[Running]:
    """Our ensemble in Triton: asked with the very bytes that `bet_client` sends, for all that a `Prediction` holds."""
    with serve.start(repository, models=[model], timeout=_START_SECONDS) as server:
        ensemble = Ensemble.read(server.http_url, model)

        def read(exchange: Exchange) -> Answer:
            answer = ensemble.read_answer(exchange.reply)
            if answer.label is None or answer.probabilities is None:
                raise ValueError(f"{model!r} names no single label, and nothing else is compared")
            return Answer(answer.label, max(answer.probabilities.values()))

        yield Running(OURS, "", True, (server.ports.http,), (server.pid,), ensemble.request, read)


@contextlib.contextmanager
def peer(system: Peer, setting: Setting, python: Path, checkpoint: Path) -> Iterator[Running]:
    """A peer under `uvicorn`, each worker a process on a port of its own: connections are then spread evenly over
    them, which workers on one port do not promise.

    Raises:
        PeerError: if a process ends or does not answer in time, with its last line.
    """
    environment = peer_environment(setting, checkpoint)
    ports = tuple(serve.free_port("127.0.0.1") for _ in range(setting.workers))
    with contextlib.ExitStack() as stack:
        processes = []
        for port in ports:
            log = stack.enter_context(tempfile.TemporaryFile())
            command = [str(python), "-m", "uvicorn", f"{system.application}:app", "--app-dir", str(_HERE)]
            process = subprocess.Popen(
                [*command, "--port", str(port), "--no-access-log", "--log-level", "warning"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(stop, process)
            processes.append((process, port, log))
        deadline = time.monotonic() + _START_SECONDS
        for process, port, log in processes:
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    lines = log.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
                    state = "did not listen in time" if process.poll() is None else "ended while starting"
                    raise PeerError(f"the peer {system.name} {state}: {lines[-1]}")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
        roots = tuple(process.pid for process, _, _ in processes)
        yield Running(system.name, str(setting), False, ports, roots, _ask, _read)


def peer_environment(setting: Setting, checkpoint: Path) -> dict[str, str]:
    """The environment variables of one process of a peer."""
    environment = {
        **os.environ,
        "CHECKPOINT": str(checkpoint.resolve()),
        "THREADS": str(setting.threads),
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": str(setting.threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    # Nothing of ours is imported there, and OpenMP waits as it does by default.
    for name in ("PYTHONPATH", "OMP_WAIT_POLICY"):
        environment.pop(name, None)
    return environment


def _ask(text: str) -> bytes:
    body = json.dumps({"text": text}).encode()
    return http_post("/predict", body, {"Content-Type": "application/json"})


def _read(exchange: Exchange) -> Answer:
    if exchange.status != 200:
        raise ValueError(f"status {exchange.status}: {exchange.body[:200]!r}")
    content = json.loads(exchange.body)
    return Answer(content["label"], content["score"])


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process, and wait until it has ended."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
