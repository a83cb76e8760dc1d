"""Each figure is what its definition says, on cases worked by hand and on any input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from train import metrics

scores = arrays(np.float64, st.integers(2, 60), elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]))


def _binary(confidences: list[float], right: list[bool]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rows whose answer is class 0, with these confidences, right or wrong."""
    p = np.array(confidences)
    return np.stack([p, 1 - p], axis=1), np.array([0 if r else 1 for r in right])


@st.composite
def answers(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rows, classes = draw(st.integers(1, 40)), draw(st.integers(2, 4))
    logits = draw(arrays(np.float64, (rows, classes), elements=st.floats(-40, 40)))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    labels = draw(arrays(np.int64, rows, elements=st.integers(0, classes - 1)))
    return p / p.sum(axis=1, keepdims=True), labels


def test_confidence_one_belongs_to_the_last_bin_of_equal_width() -> None:
    # torchmetrics#3510: an extra bin for 1.0 gives .347
    p, y = _binary([0.96, 1.0, 1.0], [True, False, True])
    assert metrics.ece(p, y, bins=10, equal_width=True) == pytest.approx(0.320)


def test_ece_by_hand() -> None:
    p, y = _binary([0.6, 0.6, 0.9, 0.9], [True, False, True, True])
    assert metrics.ece(p, y, bins=2) == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert metrics.ece(p, y, bins=1) == pytest.approx(0.0)


def test_bins_hold_equal_shares_of_distinct_confidences() -> None:
    p, y = _binary(list(np.linspace(0.5, 0.99, 150)), [True] * 150)
    assert [group.rows for group in metrics.calibration_bins(p, y)] == [10] * 15


@given(answers(), st.integers(1, 20), st.booleans())
def test_ece_is_a_share_and_does_not_depend_on_the_order_of_rows(
    case: tuple[NDArray[np.float64], NDArray[np.int64]], bins: int, equal_width: bool
) -> None:
    p, y = case
    value = metrics.ece(p, y, bins, equal_width=equal_width)
    assert 0 <= value <= 1
    assert sum(group.rows for group in metrics.calibration_bins(p, y, bins, equal_width=equal_width)) == len(y)
    shuffled = np.random.default_rng(0).permutation(len(y))
    assert metrics.ece(p[shuffled], y[shuffled], bins, equal_width=equal_width) == pytest.approx(value, abs=1e-9)


@given(answers())
def test_scores_of_any_answers_are_finite_and_in_their_ranges(
    case: tuple[NDArray[np.float64], NDArray[np.int64]],
) -> None:
    p, y = case
    assert 0 <= metrics.nll(p, y) <= -math.log(metrics.SMALLEST_PROBABILITY)
    assert 0 <= metrics.brier(p, y) <= 2
    assert (metrics.entropy(p) >= -1e-12).all()
    assert (metrics.entropy(p) <= math.log(p.shape[1]) + 1e-9).all()
    assert metrics.accuracy(p, y) == pytest.approx(1 - float((~metrics.correct(p, y)).mean()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("equal_width", [True, False])
def test_confidences_of_zero_and_one_have_a_calibration_error(dtype: type, equal_width: bool) -> None:
    # torchmetrics#1646: logits of ±40
    logits = np.array([[40, -40], [-40, 40], [40, -40], [0, 0]], dtype=dtype)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    right = (3 * abs(1 - 2 / 3) + abs(0.5 - 1)) / 4
    assert metrics.ece(p, np.array([0, 1, 1, 0]), bins=10, equal_width=equal_width) == pytest.approx(right)


def test_logits_of_forty_make_no_infinity() -> None:
    p = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    assert metrics.nll(p, np.array([1, 1])) == pytest.approx(-math.log(metrics.SMALLEST_PROBABILITY) / 2)
    assert metrics.brier(p, np.array([0, 1])) == 0
    assert metrics.entropy(p).max() < 1e-5


def test_share_accepted_by_hand() -> None:
    risk = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    right = np.array([True, True, False, True, True])
    assert metrics.share_accepted_at(risk, right, 0.0) == pytest.approx(0.4)
    assert metrics.share_accepted_at(risk, right, 0.2) == pytest.approx(1.0)
    assert metrics.share_accepted_at(risk, right, 0.25) == pytest.approx(1.0)
    assert metrics.share_accepted_at(-risk, ~right, 0.1) == 0.0


def test_aurc_by_hand() -> None:
    assert metrics.aurc(np.array([1.0, 2.0, 3.0]), np.array([True, True, False])) == pytest.approx((0 + 0 + 1 / 3) / 3)
    # Equal risk everywhere: every prefix has the overall error rate.
    assert metrics.aurc(np.zeros(4), np.array([True, False, True, True])) == pytest.approx(0.25)


@given(scores)
def test_equal_risks_are_accepted_together_whatever_their_order(risk: NDArray[np.float64]) -> None:
    rng = np.random.default_rng(len(risk))
    right = rng.random(len(risk)) < 0.7
    order = rng.permutation(len(risk))
    for budget in (0.0, 0.1, 0.5):
        share = metrics.share_accepted_at(risk, right, budget)
        assert metrics.share_accepted_at(risk[order], right[order], budget) == share
        accepted = round(share * len(risk))
        if accepted:
            chosen = risk <= np.sort(risk)[accepted - 1]
            assert chosen.sum() == accepted
            assert (~right)[chosen].mean() <= budget
    assert metrics.aurc(risk[order], right[order]) == pytest.approx(metrics.aurc(risk, right))


@given(scores)
def test_acceptance_grows_with_the_budget(risk: NDArray[np.float64]) -> None:
    right = np.random.default_rng(len(risk)).random(len(risk)) < 0.6
    shares = [metrics.share_accepted_at(risk, right, budget) for budget in np.linspace(0, 1, 11)]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_auroc_of_one_kind_is_nothing() -> None:
    assert metrics.auroc(np.array([0.1, 0.9]), np.array([False, True])) == 1
    assert metrics.auroc(np.array([0.5, 0.5]), np.array([False, True])) == 0.5
    assert metrics.auroc(np.array([0.1, 0.9]), np.array([True, True])) is None


def test_prediction_sets_by_hand() -> None:
    p = np.array([[0.97, 0.02, 0.01], [0.5, 0.3, 0.2]])
    assert metrics.prediction_sets(p, 0.7).tolist() == [[True, False, False], [True, True, False]]
    assert metrics.prediction_sets(p, 1.0).all()
    assert metrics.coverage(metrics.prediction_sets(p, 0.7), np.array([0, 2])) == 0.5


def test_clopper_pearson_agrees_with_published_values() -> None:
    # 0 of 59 is the least that proves 5 % one-sided at 95 %; two-sided intervals from Newcombe (1998), table I
    assert metrics.clopper_pearson(0, 59, 0.90)[1] == pytest.approx(0.0495, abs=1e-4)
    assert metrics.clopper_pearson(81, 263) == pytest.approx((0.2527, 0.3676), abs=1e-4)
    assert metrics.clopper_pearson(15, 148) == pytest.approx((0.0578, 0.1617), abs=1e-4)
    assert metrics.clopper_pearson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 200), st.data())
def test_clopper_pearson_holds_the_observed_share(rows: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, rows))
    low, high = metrics.clopper_pearson(successes, rows)
    assert 0 <= low <= successes / rows <= high <= 1
    assert metrics.clopper_pearson(rows - successes, rows) == pytest.approx((1 - high, 1 - low))


def test_the_bootstrap_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = metrics.bootstrap(lambda rows: float(values[rows].mean()), len(values))
    spread = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - spread, abs=0.04)
    assert high == pytest.approx(values.mean() + spread, abs=0.04)
    assert metrics.bootstrap(lambda rows: float(values[rows].mean()), 400) == (low, high)
