"""The intended load: fixed before the run, at the rate that was asked for."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.pacing import due_times, without_pause
from benchmarks.settings import LoadSettings

settings_of_a_load = st.builds(
    lambda users, per_user, duration, warm_up, seed: LoadSettings(
        "localhost:8001",
        users=users,
        rate=users * per_user,
        duration=duration,
        warm_up=warm_up,
        seed=seed,
    ),
    users=st.integers(1, 40),
    per_user=st.floats(0.5, 20),
    duration=st.floats(2, 20),
    warm_up=st.floats(0, 5),
    seed=st.integers(0, 9),
)


@given(settings_of_a_load)
def test_each_user_asks_at_fixed_intervals_until_the_end(settings: LoadSettings) -> None:
    interval = settings.users / settings.rate
    for user in range(settings.users):
        times = due_times(settings, user)
        assert all(0 <= time < settings.end for time in times)
        assert times[0] < interval
        assert times[-1] + interval >= settings.end - 1e-9
        assert all(later - earlier == pytest.approx(interval) for earlier, later in itertools.pairwise(times))


@given(settings_of_a_load)
def test_the_rate_of_all_users_together_is_the_one_asked_for(settings: LoadSettings) -> None:
    due = sum(len(due_times(settings, user)) for user in range(settings.users))
    assert abs(due - settings.rate * settings.end) <= settings.users


def test_users_do_not_march_in_step_and_a_seed_repeats_them() -> None:
    settings = LoadSettings("localhost:8001", users=50, rate=50, duration=4, warm_up=0)
    phases = [due_times(settings, user)[0] for user in range(50)]
    assert len(set(phases)) == 50
    assert phases == [due_times(settings, user)[0] for user in range(50)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(sorted(phases))]
    assert max(gaps) > 2 * min(gaps)


def test_the_closed_loop_is_due_at_once_until_the_end() -> None:
    settings = LoadSettings("localhost:8001", users=1, rate=0, duration=2, warm_up=1)
    clock = iter([0.0, 1.5, 2.9, 3.0])
    assert list(without_pause(settings, lambda: next(clock))) == [0.0, 1.5, 2.9]
