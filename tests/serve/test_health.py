"""`/ready` says what a real inference said last, `/live` that the supervisor works."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from triton_http import call
from waiting import wait_until

import serve
from serve import health as module
from serve.health import Health, published
from serve.leftovers import MARKER


def test_ready_is_503_with_the_reason_until_an_answer_was_right_and_after_one_was_not() -> None:
    health, port = Health(), serve.free_port()
    url = f"127.0.0.1:{port}"
    with published(health, "127.0.0.1", port):
        assert call(url, "GET", "/ready") == (
            503,
            {"ready": False, "reason": "the server is starting", "right_seconds_ago": None},
        )
        assert call(url, "GET", "/live")[0] == 200
        health.right()
        assert call(url, "GET", "/ready?verbose")[0] == 200
        health.wrong("the stub is dead")
        status, content = call(url, "GET", "/ready")
        assert (status, content["reason"]) == (503, "the stub is dead")
        assert call(url, "GET", "/live")[0] == 200
        assert call(url, "GET", "/v2/health/ready")[0] == 404
    with pytest.raises(ConnectionRefusedError):
        call(url, "GET", "/live")


def test_an_old_answer_is_none_and_a_supervisor_that_stands_still_is_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health()
    health.right()
    assert health.ready()["ready"]
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.FRESH_SECONDS + 1)
    assert (health.ready()["ready"], health.live()["live"]) == (False, True)
    assert "no right answer for" in health.ready()["reason"]
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.LIVE_SECONDS + 1)
    assert not health.live()["live"]


def test_a_caller_that_says_nothing_keeps_nobody_else_waiting() -> None:
    port = serve.free_port()
    with published(Health(), "127.0.0.1", port), socket.create_connection(("127.0.0.1", port)):
        assert call(f"127.0.0.1:{port}", "GET", "/live")[0] == 200


def test_a_port_in_use_is_wrong_use() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(serve.PortTakenError), published(Health(), "127.0.0.1", port):
            pass


def stub_of(server: int) -> int:
    """A stub of the server with this process id."""
    for process in Path("/proc").iterdir():
        try:
            named = f"{MARKER}=".encode() in (process / "environ").read_bytes()
            parent = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
        except OSError:
            continue
        if named and int(parent) == server:
            return int(process.name)
    raise AssertionError("no stub")


def test_a_dead_stub_is_ready_to_triton_and_not_to_us_and_is_healed(tiny: Path) -> None:
    ports = {name: serve.free_port() for name in ("http", "grpc", "metrics", "health")}
    command = subprocess.Popen(
        [sys.executable, "-m", "serve", "--repository", str(tiny), "--json"]
        + [f"--{name}-port={port}" for name, port in ports.items()],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    ready = json.loads(command.stdout.readline())
    health = f"127.0.0.1:{ports['health']}"
    assert call(health, "GET", "/ready")[0] == 200
    os.kill(stub_of(ready["pid"]), signal.SIGKILL)
    assert call(ready["http"], "GET", "/v2/models/tiny/ready")[0] == 200, "Triton counts it as ready"
    wait_until(lambda: call(health, "GET", "/ready")[0] == 503, 30)
    assert call(health, "GET", "/live")[0] == 200
    wait_until(lambda: call(health, "GET", "/ready")[0] == 200, 30)
    command.send_signal(signal.SIGTERM)
    assert command.wait(timeout=30) == 0
    command.stdout.close()
