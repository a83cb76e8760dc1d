"""A real Triton with the stand-in ensembles, texts, targets and the command, once a session."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from load_runs import FAULTS, TEXTS, Command, write_ensemble

import serve


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one ensemble for each entry of `FAULTS`."""
    folder = tmp_path_factory.mktemp("stand_ins")
    for name, fault in FAULTS.items():
        write_ensemble(folder, name, fault)
    return folder


@pytest.fixture(scope="session")
def triton(stand_ins: Path) -> Iterator[serve.Server]:
    """A Triton that serves all of them."""
    with serve.start(stand_ins, models=list(FAULTS)) as server:
        yield server


@pytest.fixture(scope="session")
def texts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`TEXTS` texts of 1 to 20 sentences."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = [json.dumps({"text": "The plot moves along. " * (k + 1) + "x" * k}) for k in range(TEXTS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Targets that a busy machine meets, with a limit of 1 % on errors."""
    path = tmp_path_factory.mktemp("slo") / "lenient.toml"
    path.write_text('latency_p99 = "<= 5000"\nthroughput = ">= 20"\nerror_rate = "<= 0.01"\n', encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The command; no process of it outlives the session."""
    command = Command(tmp_path_factory.mktemp("runs"))
    yield command
    for run in command.started:
        if run.process.poll() is None:
            run.process.kill()
            run.process.communicate()
