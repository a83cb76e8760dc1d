"""The commands of the README do what it says, as they stand there.

A block is run where a comment above it says `<!-- test: name -->`. Replaced are only what a shared machine forbids: the
ports, and `pip install`, which `make env` has done. The demo itself is run by `.ci/run`.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serve import Server

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- test: (?P<name>[a-z-]+)(?:, exit (?P<status>\d))? -->\n```\w+\n(?P<code>.*?)```", re.DOTALL)
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = {match["name"]: match for match in BLOCK.finditer(README)}
SECONDS = 240


def commands(name: str, **ports: str) -> list[str]:
    """The lines of a block, with a running server's addresses in place of the default ones."""
    code = BLOCKS[name]["code"]
    for written, real in ports.items():
        code = code.replace(f"localhost:{written[1:]}", real)
    return [line for line in code.splitlines() if line.strip() and not line.startswith("pip install")]


def run(command: str, folder: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def environment() -> dict[str, str]:
    """As in the activated environment; without coverage, which has seen all that runs here and halves its speed."""
    kept = {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def checkout(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as after the demo: `bet` is in the repository."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(repository, folder / "model_repository")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    return folder


@pytest.fixture(scope="module")
def ports(server: Server) -> dict[str, str]:
    return {"_8000": server.http_url, "_8001": server.grpc_url}


def test_every_journey_has_commands_that_are_run_here() -> None:
    assert README.count("\n### ") == 6
    assert set(BLOCKS) == {
        "my-data", "my-checkpoint", "my-application", "my-application-python", "my-application-curl", "my-servers",
        "my-versions", "my-promotion", "my-slo",
    }  # fmt: skip
    assert len(README.splitlines()) <= 250
    assert "@@" not in README


@pytest.fixture
def my_data(tmp_path: Path) -> Path:
    """A folder with `reviews.csv`: three classes, quotes and line ends within the texts."""
    moods = {"thrilled": "I am thrilled", "calm": "all is calm", "cross": "this makes me cross"}
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(200):
            for mood, words in moods.items():
                writer.writerow(
                    [f'{words}, said number {i} of the {i % 7} "visitors",\nand left by door {i % 11}', mood]
                )
    return tmp_path


def test_my_data_becomes_a_classifier(my_data: Path) -> None:
    for command in commands("my-data")[:-1]:
        run(command, my_data)
    assert (my_data / "build/evaluate/report.json").is_file()


@pytest.mark.heavy  # minutes: what `export add` does of a checkpoint of ours is compared elsewhere, and in the demo
def test_my_data_becomes_a_served_classifier(my_data: Path) -> None:
    for command in commands("my-data"):
        printed = run(command, my_data).stdout
    assert "version 1 of 'mine' answers from now on" in printed


def test_my_checkpoint_becomes_a_served_classifier(tmp_path: Path) -> None:
    from tiny_hugging_face import write_folder, write_rows  # noqa: PLC0415

    write_rows(write_folder(tmp_path / "their-model", "distilbert"), tmp_path / "rows.csv")
    added, listed = (run(line, tmp_path).stdout for line in commands("my-checkpoint"))
    assert "version 1 of 'theirs' answers from now on" in added
    assert "MISSED" not in added
    assert "anger, joy, neither" in listed


def test_my_application_asks_by_shell_python_and_curl(checkout: Path, ports: dict[str, str]) -> None:
    (predict,) = commands("my-application", **ports)
    assert "positive" in run(predict, checkout).stdout
    (checkout / "ask.py").write_text("\n".join(commands("my-application-python", **ports)))
    assert run("python ask.py", checkout).stdout
    (curl,) = commands("my-application-curl", **ports)
    assert '"label":"positive"' in run(curl, checkout).stdout


def test_my_servers_start_and_drain(checkout: Path) -> None:
    from serve import free_port  # noqa: PLC0415

    (line,) = commands("my-servers")
    for port in ("8000", "8001", "8002"):
        line = line.replace(port, str(free_port()))
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line} --json"], cwd=checkout, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("{")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()


def test_my_versions_are_listed_and_verified(checkout: Path, ports: dict[str, str]) -> None:
    listed, verified = (run(line, checkout).stdout for line in commands("my-versions", **ports))
    assert "answers" in listed
    assert "MISSED" not in verified


@pytest.mark.heavy  # a server of its own, a comparison and a watch; each is tested by itself
def test_my_promotion_is_compared_recorded_and_registered(checkout: Path) -> None:
    import serve  # noqa: PLC0415

    with serve.start(checkout / "model_repository") as own:
        lines = commands("my-promotion", _8001=own.grpc_url)
        promoted, audited, pushed = (run(line, checkout).stdout for line in lines)
    assert "MISSED" not in promoted
    assert "begun" in audited
    assert "version 1 of the registry" in pushed


def test_my_slo_is_judged(checkout: Path, ports: dict[str, str]) -> None:
    (line,) = commands("my-slo", **ports)
    run(f"{line} --report-only", checkout)  # how fast this machine is now is not for a test to say
    assert (checkout / "build/load/report.html").is_file()
