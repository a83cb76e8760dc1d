"""The load command against a real Triton: what it finds, and what it says."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from load_runs import TEXTS, USERS, Command, Run, write_ensemble

import serve
from benchmarks.triton_statistics import StatisticsReader

RATE, DURATION = 50, 4


@pytest.fixture(scope="module")
def runs(benchmarks: Command, triton: serve.Server, texts_file: Path, lenient: Path) -> dict[str, Run]:
    """One run over gRPC for each stand-in, three at once: together they ask for less than a slow machine can give."""
    pace = ("--rate", str(RATE), "--duration", str(DURATION))
    done: dict[str, Run] = {}
    for names in (("bet", "bet_half_percent", "bet_two_percent"), ("bet_wrong", "bet_drift", "bet_slow")):
        started = {
            name: benchmarks.load(triton.grpc_url, texts_file, lenient, "--model", name, *pace, "--json")
            for name in names
        }
        done |= {name: run.finish() for name, run in started.items()}
    return done


def test_a_right_server_within_its_targets_is_green(runs: dict[str, Run]) -> None:
    run = runs["bet"]
    assert run.process.returncode == 0, run.errors
    assert run.report["standing"] == "holds"
    assert run.values["requests"] == RATE * DURATION
    assert run.values["offered"] == 1
    assert run.values["error_rate"] == 0
    assert run.values["wrong_answers"] == 0


def test_each_user_has_a_connection_of_its_own(runs: dict[str, Run]) -> None:
    assert runs["bet"].values["connections"] == USERS


def test_executions_and_batch_size_come_from_the_classifier_step_alone(runs: dict[str, Run]) -> None:
    values, counts = runs["bet"].values, runs["bet"].report["triton"]["steps"]["bet_classifier"]
    assert counts["executions"] == values["executions"] <= counts["inferences"]
    assert values["mean_batch_size"] == pytest.approx(counts["inferences"] / counts["executions"])
    # What is under way when the counters are read counts on one side only, and a busy machine reads them late; a sum
    # over the steps would be twice as much.
    assert counts["inferences"] == pytest.approx(RATE * DURATION, rel=0.2)


def test_half_a_percent_of_failures_passes_a_limit_of_one_percent(runs: dict[str, Run]) -> None:
    run = runs["bet_half_percent"]
    assert run.process.returncode == 0, run.errors
    assert 0 < (run.values["error_rate"] or 0) <= 0.01


def test_two_percent_of_failures_miss_a_limit_of_one_percent(runs: dict[str, Run]) -> None:
    run = runs["bet_two_percent"]
    assert run.process.returncode == 1
    assert run.missed == {"error_rate"}
    assert run.values["error_rate"] == pytest.approx(0.02, abs=0.006)  # four of 200, or a neighbour
    (failure,) = run.report["failures"].values()
    assert "no memory left" in failure["first_message"]


def test_another_label_under_load_is_a_wrong_answer(runs: dict[str, Run]) -> None:
    run = runs["bet_wrong"]
    assert run.process.returncode == 1
    assert run.missed == {"wrong_answers"}
    assert run.values["wrong_answers"] == pytest.approx(RATE * DURATION / 50, abs=1)
    assert "label" in run.report["failures"]["WrongAnswer"]["first_message"]


def test_the_same_label_with_another_probability_is_a_wrong_answer(runs: dict[str, Run]) -> None:
    run = runs["bet_drift"]
    assert run.missed == {"wrong_answers"}
    assert "probability" in run.report["failures"]["WrongAnswer"]["first_message"]


def test_a_server_slower_than_the_rate_is_the_servers_miss_and_its_queue_shows(runs: dict[str, Run]) -> None:
    run = runs["bet_slow"]
    assert run.process.returncode == 1
    assert run.report["standing"] == "missed"
    assert "the server answered too slowly" in run.report["problems"][0]
    # It holds 20 of 50 requests/s: by the end, most of what was due had not been sent, and counts as waiting.
    assert (run.values["offered"] or 1) < 0.5
    assert (run.values["latency_p99"] or 0) > 1000 * DURATION / 3
    assert run.values["error_rate"] == 0


def test_a_stall_of_the_server_shows_in_the_tail_and_is_not_blamed_on_the_generator(
    benchmarks: Command, triton: serve.Server, texts_file: Path, lenient: Path
) -> None:
    reader = StatisticsReader(triton.grpc_url, "grpc", "bet")
    before = reader.snapshot().asked.requests
    run = benchmarks.load(triton.grpc_url, texts_file, lenient, "--rate", str(RATE), "--duration", str(DURATION))
    under_load = before + TEXTS + USERS + RATE  # half a second into the measured part
    while reader.snapshot().asked.requests < under_load:
        assert run.process.poll() is None, run.finish().errors
    reader.close()
    os.kill(triton.pid, signal.SIGSTOP)
    try:
        time.sleep(1)  # the stall itself
    finally:
        os.kill(triton.pid, signal.SIGCONT)
    run.finish()
    assert run.process.returncode == 0, run.errors
    # A quarter of the requests were due in the stall, evenly spread over its 1,000 ms.
    p50, p99 = run.values["latency_p50"], run.values["latency_p99"]
    assert p50 is not None
    assert p99 is not None
    assert p99 > 700
    assert p50 < 250
    assert run.values["error_rate"] == 0
    assert run.values["offered"] == 1


def test_http_in_a_closed_loop_asks_without_pause_and_checks_the_answers(
    benchmarks: Command, triton: serve.Server, texts_file: Path, lenient: Path
) -> None:
    # A closed loop takes what the machine gives, and a busy one may call its own generator too slow.
    closed = ("--protocol", "http", "--rate", "0", "--duration", "2", "--report-only")
    run = benchmarks.load(triton.http_url, texts_file, lenient, *closed).finish()
    assert run.process.returncode == 0, run.errors
    assert run.values["connections"] == USERS
    assert run.values["offered"] is None
    assert run.values["wrong_answers"] == 0
    # Ten users at once: the server joined some of their requests.
    assert (run.values["mean_batch_size"] or 0) > 1
    assert "requests/s" in run.output


def test_a_server_that_dies_makes_the_run_invalid_even_for_a_report_only(
    benchmarks: Command, tmp_path: Path, texts_file: Path, lenient: Path
) -> None:
    write_ensemble(tmp_path / "repository", "bet", {})
    with serve.start(tmp_path / "repository") as server:
        pace = ("--rate", str(RATE), "--duration", "2", "--report-only")
        run = benchmarks.load(server.grpc_url, texts_file, lenient, *pace)
        with_reader = StatisticsReader(server.grpc_url, "grpc", "bet")
        while with_reader.snapshot().asked.requests < TEXTS + USERS + RATE:
            assert run.process.poll() is None, run.finish().errors
        with_reader.close()
        os.kill(server.pid, signal.SIGKILL)
        run.finish()
    assert run.process.returncode == 1
    assert run.report["standing"] == "invalid"
    assert run.values["server_alive"] == 0
    assert "does not answer after the run" in run.output


def test_the_pages_need_no_network(runs: dict[str, Run]) -> None:
    folder = runs["bet"].folder / "build/load"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    assert not re.search(r"<script|<link|@import|url\(|(?:src|href)\s*=", page)
    locust = (folder / "locust.html").read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=\"?(?:https?:)?//", locust)
