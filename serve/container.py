"""The container engine: the same repository in NVIDIA's Triton container, with its compiled backends, on CPU or GPU.

`deploy/Dockerfile` makes the image: the base of DESIGN's "Production container" and what the tokenizer step needs. The
client `docker run` stays in the foreground and passes SIGTERM on, so that the server is held, probed, drained and
supervised as the embedded one is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from serve.errors import EngineError
from serve.leftovers import MARKER
from serve.plan import DRAIN_SECONDS, Launch, Plan, Ports, triton_arguments

IMAGE = "bet-triton:26.08"
BUILD = f"docker build --tag {IMAGE} deploy"
_INSIDE = Ports(8000, 8001, 8002)


def prepare(plan: Plan) -> Launch:
    """Check that Docker can run the image, and return what to execute.

    Raises:
        EngineError: if Docker, its daemon or the image is missing.
    """
    if shutil.which("docker") is None:
        raise EngineError("docker is not installed; install Docker, or use --engine embedded")
    version = _docker("version", "--format", "{{.Server.Version}}")
    if version.returncode != 0:
        reason = version.stderr.strip().splitlines() or ["no answer"]
        raise EngineError(f"the Docker daemon does not answer ({reason[-1]}); start it, or use --engine embedded")
    if _docker("image", "inspect", IMAGE).returncode != 0:
        raise EngineError(f"the image {IMAGE} is not built; run `{BUILD}` in the project's folder")
    name = plan.server_id
    return Launch(command(plan), {**os.environ, MARKER: plan.token}, name)


def command(plan: Plan) -> tuple[str, ...]:
    """The `docker run` for a plan."""
    published = zip((plan.ports.http, plan.ports.grpc, plan.ports.metrics), (8000, 8001, 8002), strict=True)
    return (
        "docker",
        "run",
        "--rm",
        f"--name={plan.server_id}",
        # As the caller, who can read the repository; the server writes nowhere but in /tmp and shared memory.
        f"--user={os.getuid()}:{os.getgid()}",
        "--read-only",
        "--tmpfs=/tmp:exec",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--env=ORT_DISABLE_TELEMETRY=1",  # else its ONNX Runtime may send events about what is served
        "--shm-size=1g",  # Docker's own 64 MB are too few for the stubs' regions
        f"--stop-timeout={DRAIN_SECONDS + 10}",
        *(["--gpus=all"] if plan.device == "gpu" else []),
        *(f"--publish={plan.host}:{outside}:{inside}" for outside, inside in published),
        f"--mount=type=bind,source={plan.repository.path},target=/models,readonly",
        IMAGE,
        "tritonserver",
        *triton_arguments(plan, Path("/models"), "0.0.0.0", _INSIDE),
    )


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"`docker {' '.join(arguments)}` did not answer in 30 s; see the Docker daemon") from error
