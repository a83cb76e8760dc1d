"""The verdict: holds, missed, or invalid, from what a run saw."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.judgement import Judgement, judge
from benchmarks.objective import Slo
from benchmarks.outcome import Outcome
from benchmarks.page import render
from benchmarks.samples import UNSENT, WRONG_ANSWER, Measured, Sample
from benchmarks.settings import LoadSettings
from benchmarks.texts import Texts
from benchmarks.triton_statistics import ModelCounts, Snapshot

SLO = Slo("slo.toml", {"latency_p99": "<= 500", "error_rate": "<= 0.01"})
TEXTS = Texts("texts.jsonl", ("a text", "and another one"))


def samples(count: int, fault: str | None = None, *, latency: float = 0.01, own_delay: float = 0.0) -> list[Sample]:
    """Requests due evenly over ten seconds."""
    due = [10 * k / max(count, 1) for k in range(count)]
    return [Sample(t, 0.0, t + own_delay, t + own_delay + latency, fault) for t in due]


def judged(
    seen: list[Sample],
    *,
    rate: float = 100.0,
    users: int = 10,
    cpu: float = 0.2,
    connections: int | None = 10,
    alive: bool = True,
    slo: Slo = SLO,
) -> Judgement:
    asked = LoadSettings("localhost:8001", users=users, rate=rate, duration=10.0, warm_up=0.0)
    measured = Measured.of(seen, 0.0, 10.0)
    counts = ModelCounts(requests=len(seen), failures=0, inferences=len(seen), executions=max(len(seen) // 2, 1))
    outcome = Outcome(
        measured=measured,
        messages={fault: f"first {fault} <b>" for fault in measured.faults},
        generator_cpu=cpu,
        connections=connections,
        triton=Snapshot(counts, {"tokenizer": counts, "classifier": counts}) if alive else None,
        server_alive=alive,
        tokens={},
        locust_html="",
    )
    result = judge(asked, TEXTS, slo, outcome)
    page = render(result, outcome)  # whatever was seen, there is a page of it
    assert "<b>" not in page.replace("<b>", "", 6), "a message reached the page unescaped"
    return result


def test_a_run_within_its_targets_holds() -> None:
    result = judged(samples(1000))
    assert (result.standing, result.problems) == ("holds", ())
    assert result.exit_status(report_only=False) == 0
    values = {check.name: check.value for check in result.report.checks}
    assert values["latency_p50"] == pytest.approx(10)
    assert values["throughput"] == pytest.approx(100, rel=0.01)
    assert values["mean_batch_size"] == 2
    assert values["requests"] == 1000


def test_nothing_sent_is_invalid_and_never_green() -> None:
    result = judged([])
    assert result.standing == "invalid"
    assert "nothing was sent" in result.problems[0]
    assert result.exit_status(report_only=False) == 1
    assert result.exit_status(report_only=True) == 1
    assert {"latency_p99", "error_rate", "requests"} <= {c.name for c in result.report.checks if c.holds is False}


@pytest.mark.parametrize(("failures", "status"), [(5, 0), (10, 0), (11, 1), (20, 1)])
def test_failures_are_judged_against_their_limit(failures: int, status: int) -> None:
    seen = samples(1000)
    for k in range(failures):
        seen[k * 7] = seen[k * 7]._replace(fault="UnavailableError")
    result = judged(seen)
    assert result.exit_status(report_only=False) == status
    assert result.standing == ("missed" if status else "holds")


def test_a_slow_server_misses_its_target_and_the_sentence_says_by_how_much() -> None:
    result = judged(samples(1000, latency=0.75))
    assert result.standing == "missed"
    assert result.problems == ("latency_p99 is 750 ms, the target is <= 500",)
    assert result.exit_status(report_only=True) == 0


def test_one_wrong_answer_fails_the_run_even_for_a_report_only() -> None:
    seen = samples(1000)
    seen[500] = seen[500]._replace(fault=WRONG_ANSWER)
    result = judged(seen)
    assert result.standing == "missed"
    assert result.exit_status(report_only=True) == 1
    assert result.report.details["failures"][WRONG_ANSWER]["count"] == 1


def test_a_generator_without_processor_time_left_makes_the_run_invalid() -> None:
    result = judged(samples(1000), cpu=0.95)
    assert result.standing == "invalid"
    assert "the load generator was the bottleneck (it used 95% of a core)" in result.problems[0]
    assert "another machine" in result.problems[0]
    assert result.exit_status(report_only=False) == 1


def late_by(own_delay: float) -> list[Sample]:
    """A tenth of the intended requests was never sent."""
    seen = samples(1000, own_delay=own_delay)
    return [s._replace(fault=UNSENT) if k >= 900 else s for k, s in enumerate(seen)]


def test_sends_that_slipped_by_the_generators_own_delay_make_the_run_invalid() -> None:
    result = judged(late_by(own_delay=0.2))
    assert result.standing == "invalid"
    assert "the load generator was the bottleneck (it sent 90% of the intended requests" in result.problems[0]


def test_sends_that_slipped_because_users_waited_for_the_server_are_the_servers_miss() -> None:
    result = judged(late_by(own_delay=0.001))
    assert result.standing == "missed"
    assert "the server answered too slowly" in result.problems[0]
    assert result.exit_status(report_only=False) == 1


def test_a_closed_loop_offers_no_rate_that_could_be_missed() -> None:
    result = judged(samples(1000), rate=0)
    assert result.standing == "holds"
    (offered,) = [check for check in result.report.checks if check.name == "offered"]
    assert offered.target is None


def test_a_server_that_went_away_makes_the_run_invalid() -> None:
    result = judged(samples(1000), alive=False)
    assert result.standing == "invalid"
    assert "does not answer after the run" in result.problems[0]
    assert result.exit_status(report_only=True) == 1


def test_users_that_share_connections_are_not_the_users_that_were_asked_for() -> None:
    result = judged(samples(1000), connections=1)
    assert result.standing == "missed"
    assert result.problems == ("10 users held 1 connections",)


def test_where_the_system_does_not_count_connections_nothing_is_claimed_of_them() -> None:
    assert judged(samples(1000), connections=None).standing == "holds"


@settings(max_examples=40)  # each draws a whole page
@given(
    count=st.integers(0, 60),
    faults=st.lists(st.sampled_from([None, WRONG_ANSWER, UNSENT, "DeadlineExceededError"]), min_size=60, max_size=60),
    cpu=st.floats(0, 2),
    connections=st.none() | st.integers(0, 12),
    alive=st.booleans(),
)
def test_standing_exit_status_and_problems_never_contradict_each_other(
    count: int, faults: list[str | None], cpu: float, connections: int | None, alive: bool
) -> None:
    seen = [s._replace(fault=fault) for s, fault in zip(samples(count), faults, strict=False)]
    result = judged(seen, cpu=cpu, connections=connections, alive=alive)
    green = result.standing == "holds"
    assert green == result.report.holds == (not result.problems) == (result.exit_status(report_only=False) == 0)
    assert result.report.as_dict()["standing"] == result.standing
