"""The closed forms are those of the distributions that they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special
from scipy.stats import norm

from train.calibration import calibrate, start_posterior
from train.errors import CalibrationError
from train.evidence import EvidenceTables, HeldOut, OutOfFold
from train.model import BetConfig, BetForSequenceClassification
from train.model.budget import evidence_budget
from train.model.posterior import Posterior, class_logits, digamma1p, normal_nodes

LOGITS = st.floats(-8, 8)


def answer(evidence: list[list[float]], novelty: float = 0.0, variance: float = -30.0) -> object:
    """The posterior at scale 1 without a trunk, for rows of evidence."""
    posterior = Posterior(len(evidence[0]), 9)
    posterior.log_variance.fill_(variance)
    rows = torch.tensor(evidence)
    return posterior(rows, torch.full((len(evidence), 2), novelty), torch.zeros(len(evidence), 1, rows.shape[1]))


@given(st.floats(1e-2, 1e4))
def test_digamma_is_within_a_millionth(x: float) -> None:
    found = digamma1p(torch.tensor([x], dtype=torch.float32)).item()
    assert found == pytest.approx(float(special.digamma(1 + float(np.float32(x)))), abs=2e-6, rel=2e-6)


@pytest.mark.parametrize("columns", [1, 3, 5, 40])
def test_the_nodes_have_the_moments_of_a_standard_normal(columns: int) -> None:
    x, w = normal_nodes(columns, 9)
    assert w.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(w @ x, 0, atol=1e-6)
    np.testing.assert_allclose((x * w[:, None]).T @ x, np.eye(columns), atol=1e-5)


@given(LOGITS, st.floats(-3, 1.5))
@settings(max_examples=40)
def test_two_classes_integrate_the_logistic_over_the_normal(mean: float, log_variance: float) -> None:
    deviation = math.exp(log_variance / 2)
    exact, _ = integrate.quad(lambda z: special.expit(mean + deviation * z) * norm.pdf(z), -8, 8)
    found = answer([[mean]], variance=log_variance)
    # exp(1.5) three times: the constant and both novelties, of which the last two are 0
    assert found.probabilities[0, 1].item() == pytest.approx(exact, abs=2e-3)


@given(st.lists(LOGITS, min_size=3, max_size=3))
@settings(max_examples=40)
def test_without_variance_more_classes_are_a_softmax(logits: list[float]) -> None:
    found = answer([logits])
    torch.testing.assert_close(found.probabilities[0], torch.tensor(logits).softmax(-1), atol=2e-5, rtol=1e-4)
    assert found.epistemic.item() < 1e-3


@given(st.floats(-4, 4), st.floats(-2, 1))
@settings(max_examples=40)
def test_the_dirichlet_has_the_mean_and_the_variance_of_the_mixture(mean: float, log_variance: float) -> None:
    found = answer([[mean]], variance=log_variance)
    strength = found.concentration.sum().item()
    p = found.probabilities[0, 1].item()
    x, w = normal_nodes(1, 9)
    sampled = special.expit(mean + math.exp(log_variance / 2) * x[:, 0])
    variance = float(w @ (sampled - p) ** 2)
    assert p * (1 - p) / (strength + 1) == pytest.approx(variance, rel=2e-3, abs=1e-6)
    a, b = found.concentration[0].tolist()
    entropy = special.digamma(a + b + 1) - p * special.digamma(b + 1) - (1 - p) * special.digamma(a + 1)
    assert found.aleatoric.item() == pytest.approx(float(entropy), abs=1e-4)


@given(st.floats(-3, 3), st.floats(0, 50), st.floats(0.5, 50))
@settings(max_examples=40)
def test_more_novelty_never_makes_an_answer_surer(mean: float, novelty: float, more: float) -> None:
    known, strange = answer([[mean]], novelty, -4.0), answer([[mean]], novelty + more, -4.0)
    assert strange.total.item() >= known.total.item() - 1e-6
    assert strange.epistemic.item() >= known.epistemic.item() - 1e-4


def test_class_logits_of_two_classes_give_the_log_odds() -> None:
    both = class_logits(torch.tensor([[1.5]])).softmax(-1)
    assert both[0, 1].item() == pytest.approx(1 / (1 + math.exp(-1.5)))


@given(st.integers(1, 512), st.floats(0, 4), st.floats(1e-5, math.log(2)))
def test_the_evidence_budget_stays_between_one_order_and_all(tokens: int, variance: float, entropy: float) -> None:
    found = evidence_budget(
        torch.tensor([tokens]), torch.tensor([variance]), torch.tensor([entropy]), gap=1.0, epsilon=0.05, orders=8
    ).item()
    expected = math.sqrt(tokens * variance / (entropy + 1e-6)) * math.log2(20)
    assert 1 <= found <= 8
    assert abs(found - min(max(expected, 1), 8)) <= 0.5 + 1e-3


def test_orders_that_agree_deserve_one() -> None:
    assert evidence_budget(
        torch.tensor([300]), torch.tensor([0.0]), torch.tensor([0.4]), gap=1.0, epsilon=0.05, orders=8
    ).tolist() == [1]


def test_the_start_finds_the_scale_that_the_out_of_fold_rows_have() -> None:
    random = np.random.default_rng(0)
    evidence = random.normal(0, 2, (4000, 1)).astype(np.float32)
    labels = (random.random(4000) < special.expit(1.7 * evidence[:, 0])).astype(np.int64)
    honest = OutOfFold(evidence, np.zeros((4000, 2), np.float32))
    empty = np.zeros((1, 1), np.float32)
    tables = EvidenceTables(
        empty, {}, {}, empty[0], whole=honest, crops=honest, held_out=HeldOut(np.zeros((0, 3, 1), np.float16), empty)
    )
    posterior = Posterior(1, 9)
    start_posterior(posterior, tables, labels, crop_weight=0.5)
    constant = posterior.log_variance[0].exp().item()
    found = posterior.log_evidence_scale.exp().item() / math.sqrt(1 + math.pi * constant / 8)
    assert found == pytest.approx(1.7, rel=0.08)
    assert posterior.bias.item() == pytest.approx(0, abs=0.1)
    before = {name: value.clone() for name, value in posterior.named_parameters()}
    start_posterior(posterior, tables, labels, crop_weight=0.5)  # from the optimum, where float32 lost its way
    for name, value in posterior.named_parameters():
        assert value.numpy() == pytest.approx(before[name].numpy(), abs=0.02), name


def test_a_class_without_calibration_rows_is_named() -> None:
    config = BetConfig(
        vocab_size=50, embedding_size=8, hidden_size=8, num_attention_heads=2, intermediate_size=8, hash_slots=64,
        id2label={0: "dull", 1: "fair", 2: "fine"},
    )  # fmt: skip
    documents = [np.array([3, 4, 5]), np.array([6, 7]), np.array([8, 9]), np.array([3, 9])]
    with pytest.raises(CalibrationError, match="labelled 'fine'"):
        calibrate(
            BetForSequenceClassification(config), documents, np.array([0, 0, 1, 1]), crop_weight=0.5,
            novelty_quantile=0.99, seed=0,
        )  # fmt: skip
