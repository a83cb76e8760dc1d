"""The container engine composes the same server; where Docker cannot run it, it says what is missing.

No Docker daemon runs in the tests: a script named `docker` stands in for its client.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_repository import write_repository

import serve
from serve import container, embedded
from serve.plan import Plan, Ports
from serve.repository import read_repository


def plan(repository: Path, device: str) -> Plan:
    return Plan("0123", read_repository(repository), ("tiny",), device, "127.0.0.1", Ports(9000, 9001, 9002))


def fake_docker(folder: Path, script: str) -> None:
    (folder / "docker").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / "docker").chmod(0o755)


def test_the_command_publishes_the_ports_and_mounts_the_repository_read_only(tiny: Path) -> None:
    command = container.command(plan(tiny, "gpu"))
    assert command[:3] == ("docker", "run", "--rm")
    assert "--name=bet-0123" in command
    assert {f"--publish=127.0.0.1:{9000 + i}:{8000 + i}" for i in range(3)} <= set(command)
    assert f"--mount=type=bind,source={tiny},target=/models,readonly" in command
    assert "--gpus=all" in command
    assert "--shm-size=1g" in command
    assert "--env=ORT_DISABLE_TELEMETRY=1" in command
    assert f"--user={os.getuid()}:{os.getgid()}" in command
    inside = command[command.index("tritonserver") :]
    assert command[command.index("tritonserver") - 1] == container.IMAGE
    assert {"--model-repository=/models", "--model-config-name=gpu", "--http-port=8000", "--load-model=tiny"} <= set(
        inside
    )


def test_without_a_gpu_none_is_asked_for(tiny: Path) -> None:
    command = container.command(plan(tiny, "cpu"))
    assert not any(argument.startswith(("--gpus", "--model-config-name")) for argument in command)


def test_both_engines_start_triton_with_the_same_settings(tiny: Path, tmp_path: Path) -> None:
    places = ("--model-repository", "--backend-directory", "--http-", "--grpc-", "--metrics-address", "--metrics-port")
    inside = container.command(plan(tiny, "cpu"))
    inside = inside[inside.index("tritonserver") + 1 :]
    outside = embedded.prepare(plan(tiny, "cpu")).command[1:]
    assert {a for a in inside if not a.startswith(places)} == {a for a in outside if not a.startswith(places)}


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "docker is not installed"),
        ("echo 'Cannot connect to the Docker daemon' >&2; exit 1", "daemon does not answer .*Cannot connect"),
        ('[ "$1" = version ]', "image bet-triton:26.08 is not built; run `docker build"),
    ],
    ids=["no docker", "no daemon", "no image"],
)
def test_what_is_missing_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, message: str
) -> None:
    repository = write_repository(tmp_path / "repository")
    folder = tmp_path / "bin"
    folder.mkdir()
    if script is not None:
        fake_docker(folder, script)
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(serve.EngineError, match=message):
        serve.start(repository, engine="container")


def test_a_container_that_ends_is_a_startup_error_with_its_words_and_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = write_repository(tmp_path / "repository")
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    fake_docker(folder, f'echo "$@" >> {calls}\n[ "$1" != run ] || {{ echo "error: no such device" >&2; exit 125; }}')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with pytest.raises(serve.StartupError, match=r"ended with status 125(.|\n)*no such device"):
        serve.start(repository, engine="container")
    assert calls.read_text(encoding="utf-8").splitlines()[-1].startswith("rm --force bet-")
