"""What is about to be started, decided once: the plan that both engines turn into a command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serve.repository import Repository

DRAIN_SECONDS = 30  # Triton's own default for --exit-timeout-secs: what is queued may take this long after SIGTERM


@dataclass(frozen=True)
class Ports:
    """The three ports of a Triton server."""

    http: int
    grpc: int
    metrics: int


def shm_prefix(token: str) -> str:
    """How the names of a server's shared-memory regions begin."""
    return f"bet_{token}_"


@dataclass(frozen=True)
class Plan:
    """One server to start."""

    token: str  # names this server in its processes' environment, its shared memory and its state file
    repository: Repository
    models: tuple[str, ...]
    device: str  # "cpu" or "gpu"
    host: str
    ports: Ports

    @property
    def server_id(self) -> str:
        """What the server calls itself at `/v2`, so that another one on the same port is not mistaken for it."""
        return f"bet-{self.token}"

    @property
    def shm_prefix(self) -> str:
        """How the names of its shared-memory regions begin."""
        return shm_prefix(self.token)


@dataclass(frozen=True)
class Launch:
    """What to execute."""

    command: tuple[str, ...]
    environment: dict[str, str]
    container: str = ""  # the name of the container, where there is one


def triton_arguments(plan: Plan, repository: Path, host: str, ports: Ports) -> list[str]:
    """The arguments of `tritonserver` that are the same in the wheel and in the container.

    Models are loaded by name (never by polling, which races with a version being copied), configurations are taken as
    written (auto-completion would set its own batch size), and no response cache is configured, so that an answer is
    always the loaded version's.
    """
    arguments = [
        f"--id={plan.server_id}",
        f"--model-repository={repository}",
        "--disable-auto-complete-config",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in plan.models),
        # "Ready" otherwise turns false for all models after one failed load of a new version.
        "--strict-readiness=false",
        f"--exit-timeout-secs={DRAIN_SECONDS}",
        f"--http-address={host}",
        f"--grpc-address={host}",
        f"--metrics-address={host}",
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        # Quantiles per model; this Triton accepts histogram_latencies and shows nothing for it.
        "--metrics-config=summary_latencies=true",
        # Python-based backends (our stand-ins) take the prefix of the python backend too.
        f"--backend-config=python,shm-region-prefix-name={plan.shm_prefix}",
    ]
    if plan.device == "gpu":
        arguments.append("--model-config-name=gpu")
    return arguments
