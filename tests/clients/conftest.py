"""A real Triton on free ports with stand-in models, so that the client's tests need no trained checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytriton

MODEL_SOURCE = Path(__file__).with_name("stand_in_model.py")

OUTPUTS = {
    "label": ("TYPE_STRING", 1),
    "probabilities": ("TYPE_FP32", 2),
    "total": ("TYPE_FP32", 1),
    "aleatoric": ("TYPE_FP32", 1),
    "epistemic": ("TYPE_FP32", 1),
    "review": ("TYPE_BOOL", 1),
    "reason": ("TYPE_STRING", 1),
    "prediction_set": ("TYPE_BOOL", 2),
    "tokens": ("TYPE_INT32", 1),
    "truncated": ("TYPE_BOOL", 1),
    "concentration": ("TYPE_FP32", 2),
    "order_dispersion": ("TYPE_FP32", 1),
    "evidence_budget": ("TYPE_INT32", 1),
}
FEW_OUTPUTS = ("label", "probabilities", "total", "tokens", "truncated")


def model_config(name: str, outputs: tuple[str, ...] = tuple(OUTPUTS), *, rows: int = 64, extra: str = "") -> str:
    """A `config.pbtxt` with the ensemble's input, a choice of its outputs and its parameters."""
    declared = "\n".join(
        f'output {{ name: "{output}" data_type: {OUTPUTS[output][0]} dims: [ {OUTPUTS[output][1]} ] }}'
        for output in outputs
    )
    labels = json.dumps(json.dumps(["negative", "positive"]))
    return f"""name: "{name}"
backend: "python"
max_batch_size: {rows}
input {{ name: "text" data_type: TYPE_STRING dims: [ 1 ] }}
{declared}
parameters {{ key: "labels" value {{ string_value: {labels} }} }}
parameters {{ key: "max_text_bytes" value {{ string_value: "65536" }} }}
{extra}
"""


@dataclass(frozen=True)
class RunningTriton:
    """Where the tests' Triton listens, and the folder of its models."""

    http_url: str
    grpc_url: str
    repository: Path
    pid: int

    def url(self, protocol: str) -> str:
        return self.http_url if protocol == "http" else self.grpc_url


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    folder = tmp_path_factory.mktemp("triton")
    repository = folder / "models"
    queue = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }"
    configs = {
        "bet": model_config("bet", extra="instance_group [ { count: 2 kind: KIND_CPU } ]"),
        "plain": model_config("plain", FEW_OUTPUTS),
        "narrow": model_config("narrow", rows=4),
        "busy": model_config("busy", rows=1, extra=f"instance_group [ {{ count: 1 kind: KIND_CPU }} ]\n{queue}"),
        "mislabelled": model_config("mislabelled").replace('\\"negative\\", \\"positive\\"', '\\"good\\", \\"bad\\"'),
        "unlabelled": model_config("unlabelled", ("tokens",)),
    }
    for name, config in configs.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")
        shutil.copy(MODEL_SOURCE, repository / name / "1" / "model.py")
    wheel = Path(pytriton.__file__).parent / "tritonserver"
    backend = folder / "backends" / "python"
    shutil.copytree(wheel / "backends" / "python", backend)
    stub = f"{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
    shutil.copy(wheel / "python_backend_stubs" / stub, backend)
    http_port, grpc_port = free_ports(2)
    environment = os.environ | {
        "LD_LIBRARY_PATH": f"{wheel.parents[1] / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [
        str(wheel / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={folder / 'backends'}",
        f"--http-port={http_port}",
        f"--grpc-port={grpc_port}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--allow-metrics=false",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        *(f"--load-model={name}" for name in configs),
    ]
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{http_port}/v2/health/ready", log)
        yield RunningTriton(f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", repository, process.pid)
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
    finally:
        process.terminate()
        process.wait(30)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait for Triton's readiness, or fail with what it said."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    pytest.fail(f"Triton is not ready after 60 s: {log.read_text(errors='replace')[-3000:]}")
