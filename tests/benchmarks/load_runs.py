"""Stand-in ensembles of two steps, right ones and faulty ones, and the command as users start it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

# The load begins after the texts were asked once each and each user connected: 20 + 10 requests in these tests.
FAULTS = {
    "bet": {},
    "bet_half_percent": {"fault": "fail", "from": "40", "every": "200"},
    "bet_two_percent": {"fault": "fail", "from": "40", "every": "50"},
    "bet_wrong": {"fault": "wrong", "from": "40", "every": "50"},
    "bet_drift": {"fault": "drift", "from": "40", "every": "50"},
    "bet_slow": {"fault": "slow", "from": "40", "every": "1"},
}
TEXTS, USERS = 20, 10

_OUTPUTS = """
output { name: "label" data_type: TYPE_STRING dims: [ 1 ] }
output { name: "probabilities" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "total" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "review" data_type: TYPE_BOOL dims: [ 1 ] }
"""


def write_ensemble(repository: Path, name: str, fault: dict[str, str]) -> None:
    """Put the ensemble `name` with a classifier of its own into a repository; the tokenizer step is shared."""
    _write(
        repository / "bet_tokenizer",
        'name: "bet_tokenizer" backend: "python" max_batch_size: 64 dynamic_batching { }\n'
        'input { name: "text" data_type: TYPE_STRING dims: [ 1 ] }\n'
        'output { name: "tokens" data_type: TYPE_INT32 dims: [ 1 ] }\n',
        HERE / "stand_in_tokenizer.py",
    )
    _write(
        repository / f"{name}_classifier",
        f'name: "{name}_classifier" backend: "python" max_batch_size: 64 dynamic_batching {{ }}\n'
        f'input {{ name: "tokens" data_type: TYPE_INT32 dims: [ 1 ] }}\n{_OUTPUTS}' + _parameters(fault),
        HERE / "stand_in_classifier.py",
    )
    outputs = "".join(
        f'output_map {{ key: "{output}" value: "{output}" }}\n'
        for output in ("label", "probabilities", "total", "review")
    )
    _write(
        repository / name,
        f'name: "{name}" platform: "ensemble" max_batch_size: 64\n'
        'input { name: "text" data_type: TYPE_STRING dims: [ 1 ] }\n'
        f'output {{ name: "tokens" data_type: TYPE_INT32 dims: [ 1 ] }}\n{_OUTPUTS}'
        + _parameters({"labels": json.dumps(["negative", "positive"]), "max_text_bytes": "4096"})
        + 'ensemble_scheduling {\nstep { model_name: "bet_tokenizer" model_version: 1\n'
        'input_map { key: "text" value: "text" } output_map { key: "tokens" value: "tokens" } }\n'
        f'step {{ model_name: "{name}_classifier" model_version: 1\n'
        f'input_map {{ key: "tokens" value: "tokens" }}\n{outputs} }}\n}}\n',
        None,
    )


def _write(folder: Path, config: str, source: Path | None) -> None:
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    if source is not None:
        shutil.copy(source, folder / "1" / "model.py")


def _parameters(values: dict[str, str]) -> str:
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}\n'
        for key, value in values.items()
    )


@dataclass
class Run:
    """One `python -m benchmarks …` in a process and a folder of its own."""

    process: subprocess.Popen[str]
    folder: Path
    output: str = ""
    errors: str = ""

    def finish(self) -> Run:
        """Wait for its end."""
        self.output, self.errors = self.process.communicate(timeout=90)
        return self

    @property
    def report(self) -> dict[str, Any]:
        """Its `report.json`."""
        content: dict[str, Any] = json.loads((self.folder / "build/load/report.json").read_text(encoding="utf-8"))
        return content

    @property
    def values(self) -> dict[str, float | None]:
        """The value of each check."""
        return {check["name"]: check["value"] for check in self.report["checks"]}

    @property
    def missed(self) -> set[str]:
        """The names of the checks that do not hold."""
        return {check["name"] for check in self.report["checks"] if check["holds"] is False}


class Command:
    """Starts `python -m benchmarks` with the project on the path and a fresh folder as the current one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: list[Run] = []

    def start(self, *arguments: str) -> Run:
        """Start it and return at once."""
        folder = self._folder / str(len(self.started))
        folder.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(Run(process, folder))
        return self.started[-1]

    def load(self, url: str, texts: Path, slo: Path, *arguments: str) -> Run:
        """Start a short load with the tests' numbers of texts and users."""
        options = ("--url", url, "--texts", str(texts), "--slo", str(slo), "--users", str(USERS), "--warm-up", "0.5")
        return self.start("load", *options, *arguments)

    def __call__(self, *arguments: str) -> Run:
        """Run it to its end."""
        return self.start(*arguments).finish()
