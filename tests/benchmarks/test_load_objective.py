"""The file of targets: what is read from it, and that everything wrong in it is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.errors import SloError
from benchmarks.objective import SLO_FOLDER, UNITS, read_slo


def write(folder: Path, content: str) -> Path:
    path = folder / "slo.toml"
    path.write_text(content, encoding="utf-8")
    return path


def test_the_demo_promises_the_latencies_of_the_project_and_no_error() -> None:
    assert read_slo(SLO_FOLDER / "demo.toml").targets == {
        "latency_p50": "<= 100",
        "latency_p95": "<= 200",
        "latency_p99": "<= 500",
        "error_rate": "<= 0",
    }


def test_production_promises_the_same_latencies_and_a_throughput() -> None:
    demo, production = read_slo(SLO_FOLDER / "demo.toml"), read_slo(SLO_FOLDER / "production.toml")
    assert {name: production.targets[name] for name in demo.targets if name.startswith("latency")} == {
        name: target for name, target in demo.targets.items() if name.startswith("latency")
    }
    assert production.targets["throughput"] == ">= 500"
    assert production.targets["error_rate"] == "<= 0.001"


def test_all_faults_are_in_one_error(tmp_path: Path) -> None:
    path = write(tmp_path, 'latency_p59 = "<= 1"\nlatency_p50 = 100\nlatency_p95 = "200"\nthroughput = ">= fast"\n')
    with pytest.raises(SloError) as caught:
        read_slo(path)
    message = str(caught.value)
    assert str(path) in message
    for fault in ("'latency_p59' is not measured", "latency_p50 = 100", "latency_p95", "throughput"):
        assert fault in message
    for known in UNITS:
        assert known in message


@pytest.mark.parametrize("content", ["", "latency_p50 <= 100", "# nothing\n", 'error_rate = "<= nan"', "[load]\na = 1"])
def test_a_file_without_a_usable_target_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(SloError, match=r"slo\.toml"):
        read_slo(write(tmp_path, content))


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SloError, match="No such file"):
        read_slo(tmp_path / "none.toml")
    (tmp_path / "slo.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SloError, match="not TOML"):
        read_slo(tmp_path / "slo.toml")
