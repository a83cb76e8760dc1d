"""`python -m serve` from a shell: its help, its exit statuses, what it prints."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from triton_http import call

import serve


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serve", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_help_shows_an_example() -> None:
    ran = command("--help")
    assert ran.returncode == 0
    assert "python -m serve --repository" in ran.stdout


def test_wrong_use_is_one_line_and_status_2(tmp_path: Path) -> None:
    ran = command("--repository", str(tmp_path / "nothing"))
    assert ran.returncode == 2
    assert ran.stderr.startswith("serve: ")
    assert len(ran.stderr.splitlines()) == 1
    assert command("--http-port", "70000").returncode == 2
    assert command("--http-port", "http").returncode == 2


def test_a_log_that_cannot_be_written_is_named(tiny: Path, tmp_path: Path) -> None:
    log = tmp_path / "no such folder" / "triton.log"
    with pytest.raises(serve.StartupError, match=r"triton.log cannot be used: No such file"):
        serve.start(tiny, log_path=log)


def test_a_server_that_fails_to_start_is_status_1(tiny: Path) -> None:
    (tiny / "tiny_words" / "1" / "model.py").write_text("raise OSError('disk')\n", encoding="utf-8")
    ports = [f"--{name}-port={serve.free_port()}" for name in ("http", "grpc", "metrics")]
    ran = command("--repository", str(tiny), *ports)
    assert ran.returncode == 1
    assert "model 'tiny_words' could not be loaded" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_it_prints_urls_and_a_curl_line_that_works_and_ends_with_0_on_ctrl_c(tiny: Path, tmp_path: Path) -> None:
    ports = [f"--{name}-port={serve.free_port()}" for name in ("http", "grpc", "metrics")]
    log = tmp_path / "triton.log"
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", "--repository", str(tiny), *ports, "--log", str(log)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    printed = ""
    while "try: " not in printed:
        line = process.stdout.readline()
        assert line, f"ended after {printed!r}"
        printed += line
    address, path, body = re.search(r"curl -s http://([^/]+)(\S+) -d '(.*)'", printed).groups()  # type: ignore[union-attr]
    assert address in printed.partition("try: ")[0]
    curl = subprocess.run(
        ["curl", "-s", f"http://{address}{path}", "-d", body], capture_output=True, text=True, timeout=20, check=True
    )
    assert '"label":"short"' in curl.stdout
    assert call(address, "GET", "/v2/health/ready")[0] == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    process.stdout.close()
    assert "Started HTTPService" in log.read_text(encoding="utf-8")
