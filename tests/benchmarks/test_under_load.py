"""Overload, many connections and soak: against a real Triton for seconds, and what their verdicts are made of."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from bet_client import Prediction
from load_runs import Command
from tokenizers import Tokenizer

import serve
from benchmarks.__main__ import main
from benchmarks.ensemble import REFUSED, Questions
from benchmarks.errors import BenchmarkError, UsageError
from benchmarks.many_connections import hold_connections, judge_connections
from benchmarks.open_loop import OpenLoad, OpenRun
from benchmarks.overload import OverloadOutcome, goodput, judge_overload, overload, timely
from benchmarks.peers.exported import exported_folder
from benchmarks.samples import NO_ANSWER, UNSENT, WRONG_ANSWER, Measured, Sample
from benchmarks.served import Peak, Served, beginnings, find_peak
from benchmarks.soak import Interval, IntervalWriter, SoakOutcome, growth, judge_soak, memory_of, problems
from benchmarks.texts import load_texts
from benchmarks.under_load_settings import OverloadSettings, SoakSettings

TEXTS = [f"A film of {'many ' * k}words." for k in range(20)]


@pytest.fixture(scope="module")
def served(triton: serve.Server) -> Served:
    return Served(triton, Questions.ask(triton.http_url, "bet", TEXTS))


def test_many_connections_are_held_and_every_answer_is_right(served: Served) -> None:
    load = OpenLoad(served.port, 300, 100, 1.0, warm_up=0.2, processes=2)
    outcome = hold_connections(load, served)
    checks = {check.name: check for check in judge_connections(load, outcome).checks}
    assert checks["connections"].value == 300
    assert checks["error_rate"].value == 0
    assert checks["wrong_answers"].value == 0
    assert checks["valid"].holds, outcome.run.invalid
    assert checks["server_alive"].holds


def test_overload_of_a_real_server_is_answered_or_refused_and_it_lives_on(served: Served) -> None:
    """How much is left of the peak is no matter of a test on a busy machine; that nobody hangs is."""
    settings = OverloadSettings(factors=(1.5,), seconds=1.0, warm_up=0.2, peak_seconds=0.3, connections=64)
    said: list[str] = []
    outcome = overload(settings, served, said.append)
    checks = {check.name: check for check in judge_overload(settings, outcome).checks}
    assert outcome.peak.goodput > 0
    assert checks["hangs_1.5x"].holds
    assert checks["failed_1.5x"].holds
    assert checks["wrong_answers_1.5x"].holds
    assert checks["server_alive"].holds
    assert "1.5 times the peak" in said[-1]


def test_short_texts_are_beginnings_in_the_tokens_of_the_served_version(repository: Path) -> None:
    found = beginnings(repository, "bet", load_texts(sample=60).texts, tokens=12, count=9)
    with exported_folder(repository, "bet") as folder:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert len(found) == 9
    assert {len(tokenizer.encode(text).ids) for text in found} == {12}


def test_a_server_that_does_not_start_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["overload", "--repository", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("python -m benchmarks overload: ") == 1


def test_a_peak_of_wrong_answers_is_none(triton: serve.Server) -> None:
    asked = Questions.ask(triton.http_url, "bet", TEXTS[:2])
    swapped = dataclasses.replace(asked, expected=asked.expected[::-1])
    with pytest.raises(BenchmarkError, match="wrong before there is any overload"):
        find_peak(Served(triton, swapped), 0.1)
    assert not Served(triton, swapped).alive()
    assert Served(triton, asked).alive()


def _run(*faults: str | None, latency: float = 0.1, invalid: tuple[str, ...] = ()) -> OpenRun:
    """One request for each fault, due in one second."""
    samples = tuple(Sample(k / 100, 0, k / 100, k / 100 + latency, fault) for k, fault in enumerate(faults))
    return OpenRun(Measured(samples, 0, 1), {}, 0.1, 9, invalid)


def _missed(run: OpenRun, peak: float = 50, alive: bool = True) -> set[str]:
    settings = OverloadSettings(latency_p99="<= 500")
    report = judge_overload(settings, OverloadOutcome(Peak(peak, 32), {2.0: run}, alive))
    return {check.name for check in report.checks if check.holds is False}


def test_half_answered_and_half_refused_at_once_is_what_overload_should_be() -> None:
    run = _run(*(None, REFUSED) * 50)
    assert goodput(run.measured) == 50
    assert timely(run.measured) == 1
    assert _missed(run) == set()


@pytest.mark.parametrize(
    ("run", "missed"),
    [
        (_run(*(None, REFUSED, REFUSED) * 33), {"goodput_over_peak_2x"}),
        (_run(*(None,) * 50, NO_ANSWER), {"hangs_2x", "answered_or_refused_in_1s_2x"}),
        (_run(*(None,) * 50, UNSENT), {"answered_or_refused_in_1s_2x"}),
        (_run(*(None,) * 50, "Status500"), {"failed_2x", "answered_or_refused_in_1s_2x"}),
        (_run(*(None,) * 50, WRONG_ANSWER), {"wrong_answers_2x", "answered_or_refused_in_1s_2x"}),
        (_run(*(None,) * 50, latency=0.6), {"latency_p99_2x"}),
        (
            _run(*(None,) * 50, latency=1.1),
            {"latency_p99_2x", "goodput_over_peak_2x", "answered_or_refused_in_1s_2x"},
        ),
        (_run(*(None,) * 50, invalid=("a generator died",)), {"valid_2x"}),
        (_run(), {"goodput_over_peak_2x", "answered_or_refused_in_1s_2x", "latency_p99_2x"}),
    ],
)
def test_each_fault_of_an_overloaded_server_is_missed(run: OpenRun, missed: set[str]) -> None:
    assert _missed(run) == missed


def test_a_server_that_is_gone_afterwards_is_missed() -> None:
    assert _missed(_run(*(None,) * 50), alive=False) == {"server_alive"}


def _lines(count: int = 12, **series: list[float]) -> tuple[Interval, ...]:
    level = {
        "answered": 600.0,
        "failed": 0.0,
        "wrong": 0.0,
        "unsent": 0.0,
        "p50": 2.0,
        "p99": 9.0,
        "own_delay_p95": 1.0,
        "rss": 1e9,
        "processes": 5.0,
        "shared_files": 8.0,
        "shared_bytes": 9e6,
    }
    return tuple(
        Interval(minute=k + 1, **{name: series.get(name, [value] * count)[k] for name, value in level.items()})  # type: ignore[arg-type]
        for k in range(count)
    )


def _soak(lines: tuple[Interval, ...], **run: object) -> tuple[SoakSettings, SoakOutcome]:
    seen = dataclasses.replace(_run(), **run)  # type: ignore[arg-type]
    return SoakSettings(hours=len(lines) / 60), SoakOutcome(Peak(20, 32), lines, seen, True)


def _missed_of_soak(settings: SoakSettings, outcome: SoakOutcome) -> set[str]:
    return {check.name for check in judge_soak(settings, outcome).checks if check.holds is False}


def test_a_level_soak_holds_though_a_minute_is_busy() -> None:
    assert _missed_of_soak(*_soak(_lines())) == set()
    busy = [9.0] * 12
    busy[7] = 90.0
    assert _missed_of_soak(*_soak(_lines(p99=busy))) == set()


@pytest.mark.parametrize(
    ("series", "missed"),
    [
        ({"rss": [1e9 + 1e7 * k for k in range(12)]}, {"rss_growth"}),
        ({"shared_bytes": [9e6 + 1e5 * k for k in range(12)]}, {"shared_memory_growth"}),
        ({"shared_files": [8.0 + k for k in range(12)]}, {"shared_files_growth"}),
        ({"p99": [9.0 + k / 2 for k in range(12)]}, {"latency_p99_growth"}),
        ({"failed": [0.0] * 11 + [1.0]}, {"error_rate"}),
        ({"wrong": [0.0] * 11 + [1.0]}, {"wrong_answers"}),
        ({"own_delay_p95": [1.0] * 11 + [80.0]}, {"valid"}),
        ({"unsent": [0.0] * 11 + [3.0]}, {"valid"}),
        ({"answered": [600.0] * 11 + [0.0]}, {"valid"}),
    ],
)
def test_what_grows_or_fails_in_a_soak_is_missed(series: dict[str, list[float]], missed: set[str]) -> None:
    assert _missed_of_soak(*_soak(_lines(**series))) == missed


def test_a_generator_that_died_or_was_saturated_makes_a_soak_invalid() -> None:
    assert problems(*_soak(_lines(), invalid=("generator 1 died before its end",)))
    assert problems(*_soak(_lines(), generator_cpu=0.95))
    settings, outcome = _soak(_lines())
    short = dataclasses.replace(outcome, intervals=outcome.intervals[:6])
    assert "only 6 intervals" in problems(settings, short)[0]
    assert "hours" in _missed_of_soak(settings, short)


def test_a_request_that_hung_counts_though_its_minute_is_written(served: Served) -> None:
    settings = SoakSettings(hours=0.01, interval=1)
    with tempfile.TemporaryFile("w", encoding="utf-8") as file:
        writer = IntervalWriter(settings, served, file, lambda line: None)
        for second in range(6):
            writer.take([Sample(second + 0.5, 0, second + 0.5, second + 0.6, None)])
        assert [line.minute * 60 for line in writer.intervals] == pytest.approx([1, 2, 3, 4])
        writer.take([Sample(0.1, 0, 0.1, 5.9, NO_ANSWER)])
        writer.finish()
    assert [line.answered for line in writer.intervals] == [1] * 6
    assert [line.failed for line in writer.intervals] == [0, 0, 0, 0, 1, 0]


def test_growth_is_none_where_nothing_can_be_said_and_does_not_see_the_settling() -> None:
    assert growth([1.0, 2.0, 3.0]) is None
    assert growth([5.0, None, 5.0, 5.0, 5.0, 5.0]) is None
    assert growth([1.0] + [5.0] * 10) == 0
    assert growth([100.0 + k for k in range(11)][1:]) == pytest.approx(8 / 106)


def test_memory_is_that_of_the_server_with_its_stubs(triton: serve.Server) -> None:
    memory = memory_of(triton.pid, triton.token)
    assert memory["processes"] > 2
    assert memory["rss"] > 2**20
    assert memory["shared_files"] > 0
    assert memory["shared_bytes"] > 2**20
    assert memory_of(2**22 + 1, "nobody") == {"rss": 0, "processes": 0, "shared_files": 0, "shared_bytes": 0}


def test_a_soak_of_seconds_writes_its_lines_as_it_goes(benchmarks: Command, stand_ins: Path, texts_file: Path) -> None:
    hours = 6 / 3600
    options = ("--repository", str(stand_ins), "--texts", str(texts_file), "--peak-seconds", "0.2", "--share", "0.2")
    run = benchmarks.start("soak", "--hours", str(hours), "--interval", "1", *options, "--json", "--report-only")
    lines = run.folder / "build/soak/intervals.jsonl"
    while not (lines.exists() and lines.read_text(encoding="utf-8").count("\n") >= 2):
        assert run.process.poll() is None, run.finish().errors
    assert run.process.poll() is None  # written while it goes on: a crash now would lose nothing of them
    run.finish()
    assert run.process.returncode == 0, run.errors
    written = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    report = json.loads(run.output)
    assert len(written) == 6
    assert written == report["intervals"]
    assert all(line["answered"] > 0 and line["rss"] > 0 and line["processes"] > 2 for line in written)
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["error_rate"]["value"] == 0
    assert checks["wrong_answers"]["value"] == 0
    assert checks["rss_growth"]["value"] is not None


@pytest.mark.parametrize("command", ["overload", "connections"])
def test_the_commands_start_a_server_and_write_their_report(
    benchmarks: Command, stand_ins: Path, texts_file: Path, command: str
) -> None:
    options = ["--repository", str(stand_ins), "--texts", str(texts_file), "--seconds", "1", "--warm-up", "0.2"]
    if command == "overload":
        options += ["--factors", "1.5", "--peak-seconds", "0.2", "--connections", "100"]
    else:
        options += ["--tokens", "0", "--connections", "100", "--rate", "50"]
    run = benchmarks(command, *options, "--report-only")
    assert run.process.returncode == 0, run.errors
    report = json.loads((run.folder / "build" / command / "report.json").read_text(encoding="utf-8"))
    checks = {check["name"]: check["value"] for check in report["checks"]}
    assert checks["server_alive"] == 1
    assert sum(value for name, value in checks.items() if name.startswith("wrong_answers")) == 0


def test_wrong_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"factors are 0\.5.*seconds is 0"):
        OverloadSettings(factors=(0.5,), seconds=0)
    with pytest.raises(UsageError, match=r"share is 2.*hours is 0"):
        SoakSettings(share=2, hours=0)
    assert main(["soak", "--hours", "0.01"]) == 2
    assert "36 s are too short for a slope" in capsys.readouterr().err


def test_the_command_line_imports_nothing_that_must_come_after_gevent() -> None:
    code = (
        "import sys; from benchmarks.__main__ import _parser; _parser(); "
        "print([m for m in ('grpc', 'tritonclient', 'bet_client', 'torch', 'onnxruntime', 'tokenizers') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_answer_is_held_against_the_one_given_alone(served: Served) -> None:
    expected = served.questions.expected[0]
    assert isinstance(expected, Prediction)
    refused = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"
    assert (served.questions.fault(0, refused) or "").startswith(f"{REFUSED}: ")
    broken = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwhat"
    assert (served.questions.fault(0, broken) or "").startswith("UnreadableAnswer: ")
