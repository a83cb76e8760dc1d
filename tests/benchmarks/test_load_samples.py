"""The figures over the requests: exact, and without what would flatter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.samples import NO_ANSWER, UNSENT, WRONG_ANSWER, Measured, Sample, percentile

latencies = st.lists(st.floats(0, 1e5), min_size=1, max_size=300)


def sample(intended: float, latency: float = 0.01, fault: str | None = None, late: float = 0.0) -> Sample:
    return Sample(intended, 0.0, intended + late, intended + latency, fault)


@given(latencies, st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999, 1.0]))
def test_a_percentile_is_a_value_that_was_seen_at_the_nearest_rank(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values)


@given(latencies)
def test_the_median_agrees_with_numpy(values: list[float]) -> None:
    assert percentile(sorted(values), 0.5) == np.percentile(values, 50, method="inverted_cdf")


def test_the_rank_does_not_suffer_from_floats() -> None:
    # 0.07 * 100 is 7.000000000000001 in floats
    assert percentile([float(k) for k in range(1, 101)], 0.07) == 7
    assert percentile([float(k) for k in range(1, 101)], 0.99) == 99


def test_nothing_has_no_percentile() -> None:
    assert percentile([], 0.5) is None


def test_latency_counts_from_the_intended_time_and_the_generators_part_is_told_apart() -> None:
    # Due at 1.0; its user had its last answer at 1.5 and sent at 1.6: the server made it late by .5, we by .1.
    late = Sample(intended=1.0, ready=1.5, sent=1.6, finished=1.7, fault=None)
    assert late.latency == pytest.approx(0.7)
    assert late.own_delay == pytest.approx(0.1)


def test_what_was_due_in_the_warm_up_is_left_out_however_late_it_was_answered() -> None:
    measured = Measured.of([sample(0.9, latency=5.0), sample(1.0), sample(2.9), sample(3.0)], start=1.0, duration=2.0)
    assert [s.intended for s in measured.samples] == [1.0, 2.9]


def test_errors_and_wrong_answers_are_counted_apart_and_neither_is_throughput() -> None:
    faults = [None] * 6 + [WRONG_ANSWER] * 2 + ["UnavailableError", NO_ANSWER]
    measured = Measured.of([sample(k / 10, fault=fault) for k, fault in enumerate(faults)], 0.0, 2.0)
    assert measured.error_rate == pytest.approx(0.2)
    assert measured.wrong_answers == 2
    assert measured.throughput == pytest.approx(3.0)
    assert measured.faults == {WRONG_ANSWER: 2, "UnavailableError": 1, NO_ANSWER: 1}


def test_an_answer_after_the_end_is_no_throughput_of_the_run() -> None:
    assert Measured.of([sample(1.9, latency=0.5)], 0.0, 2.0).throughput == 0


def test_what_was_never_sent_lengthens_the_tail_instead_of_vanishing() -> None:
    sent = [sample(k / 100) for k in range(50)]
    unsent = [sample(0.5 + k / 100, latency=1.5 - k / 100, fault=UNSENT) for k in range(50)]
    measured = Measured.of([*sent, *unsent], 0.0, 2.0)
    assert measured.offered == 0.5
    assert len(measured.sent) == 50
    assert measured.error_rate == 0
    assert percentile(measured.latencies, 0.5) == pytest.approx(10)
    assert percentile(measured.latencies, 0.99) == pytest.approx(1490)


def test_a_failure_has_no_latency_to_flatter_with() -> None:
    measured = Measured.of([sample(0.1, latency=0.5), sample(0.2, latency=1e-4, fault="UnavailableError")], 0.0, 1.0)
    assert measured.latencies == [pytest.approx(500)]


def test_of_nothing_every_figure_is_missing_rather_than_good() -> None:
    measured = Measured.of([], 0.0, 2.0)
    assert measured.error_rate is None
    assert measured.offered is None
    assert measured.latencies == []


times = st.floats(0, 9.99)


@given(st.lists(st.tuples(times, st.floats(0, 3), st.sampled_from([None, "DeadlineExceededError"])), max_size=200))
def test_the_course_of_the_run_holds_every_request_once(seen: list[tuple[float, float, str | None]]) -> None:
    measured = Measured.of([sample(*one) for one in seen], 0.0, 10.0)
    course = measured.by_second()
    assert [second.start for second in course] == [float(k) for k in range(10)]
    assert sum(second.due for second in course) == pytest.approx(len(seen))
    within = [s for s in measured.samples if s.finished < 10]
    assert sum(second.answered + second.failed for second in course) == pytest.approx(len(within))


def test_rates_of_a_last_slice_that_is_shorter_are_per_second_too() -> None:
    course = Measured.of([sample(k / 10, latency=0) for k in range(25)], 0.0, 2.5).by_second()
    assert [second.due for second in course] == pytest.approx([10, 10, 10])
    assert [second.answered for second in course] == pytest.approx([10, 10, 10])


def test_a_long_run_is_drawn_in_wider_slices() -> None:
    course = Measured.of([sample(float(k)) for k in range(3600)], 0.0, 3600.0).by_second()
    assert len(course) == 120
    assert {second.due for second in course} == {1.0}
