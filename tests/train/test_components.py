"""The seed's remaining components keep their invariants: the description length, and positional debiasing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from train.model.debiasing import PositionalDebiasing, mean_profile
from train.model.loss import MDLRegularizedLoss


def concentrations(rows: int, orders: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, orders, classes, generator=generator).mul(1.5).exp() + 0.05
    return drawn.double(), torch.randint(0, classes, (rows,), generator=generator)


def of_two_classes(alpha: Tensor, y: Tensor, beta: float, gamma: float) -> float:
    """The formula for two classes, written out."""
    strength = alpha.sum(-1)
    p = (alpha[..., 1] / strength).mean(1)
    of_label = torch.where(y[:, None] > 0, alpha[..., 1], alpha[..., 0])
    answer = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    expected = (torch.digamma(strength) - torch.digamma(of_label)).mean()
    belief = torch.lgamma(strength) - torch.lgamma(alpha).sum(-1)
    belief = belief + ((alpha - 1) * (torch.digamma(alpha) - torch.digamma(strength)[..., None])).sum(-1)
    ratio = alpha[..., 1].log() - alpha[..., 0].log()
    disagreement = ratio.var(1, unbiased=False).mean()
    return float(0.5 * answer + 0.5 * expected + beta * belief.mean() + 0.1 * gamma * disagreement)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=40)
def test_the_description_length_is_the_formula_of_two_classes(rows: int, orders: int, seed: int) -> None:
    alpha, y = concentrations(rows, orders, 2, seed)
    length, _ = MDLRegularizedLoss(0.03, 0.7)(alpha, y)
    assert length.item() == pytest.approx(of_two_classes(alpha, y, 0.03, 0.7), rel=1e-9)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=40)
def test_a_belief_costs_nothing_where_it_is_the_prior_and_never_less(classes: int, orders: int, seed: int) -> None:
    alpha, y = concentrations(4, orders, classes, seed)
    belief = MDLRegularizedLoss(1.0, 0.0)(alpha, y)[0] - MDLRegularizedLoss(0.0, 0.0)(alpha, y)[0]
    assert belief.item() >= -1e-9
    prior = torch.ones_like(alpha)
    length, answer = MDLRegularizedLoss(5.0, 5.0)(prior, y)
    harmonic = sum(1 / i for i in range(1, classes))  # ψ(C) - ψ(1)
    assert answer.item() == pytest.approx(math.log(classes))
    assert length.item() == pytest.approx(0.5 * math.log(classes) + 0.5 * harmonic)


@given(st.integers(2, 6), st.integers(0, 2**31))
@settings(max_examples=40)
def test_orders_that_agree_cost_nothing_and_their_names_do_not_matter(classes: int, seed: int) -> None:
    alpha, y = concentrations(3, 4, classes, seed)
    same = alpha[:, :1].expand(-1, 4, -1)
    plain, weighed = MDLRegularizedLoss(0.0, 0.0), MDLRegularizedLoss(0.0, 9.0)
    assert weighed(same, y)[0].item() == pytest.approx(plain(same, y)[0].item(), abs=1e-12)
    assert weighed(alpha, y)[0] >= plain(alpha, y)[0]
    assert weighed(alpha[:, [2, 0, 3, 1]], y)[0].item() == pytest.approx(weighed(alpha, y)[0].item())


def test_gradients_stay_finite_at_extreme_concentrations() -> None:
    alpha = torch.tensor([[[1e-3, 1e5, 1.0], [1e5, 1e-3, 1.0]]], requires_grad=True)
    length, _ = MDLRegularizedLoss()(alpha, torch.tensor([0]))
    length.backward()
    assert torch.isfinite(length)
    assert alpha.grad is not None
    assert torch.isfinite(alpha.grad).all()


def profile(length: int, width: int, seed: int, harmonics: float) -> tuple[Tensor, Tensor]:
    """Trend and noise, with planted waves of period 64 and 32; the trend by itself beside it."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(length, dtype=torch.float32)
    trend = torch.linspace(-1, 1, length)[:, None] * torch.randn(width, generator=generator) + 0.3
    noise = 0.05 * torch.randn(length, width, generator=generator)
    waves = (2 * math.pi * t / 64).sin()[:, None] + 0.5 * (4 * math.pi * t / 64).cos()[:, None]
    return trend + noise + harmonics * waves * torch.randn(width, generator=generator), trend + noise


@given(st.integers(128, 512), st.integers(1, 8), st.integers(0, 2**31))
@settings(max_examples=30)
def test_planted_harmonics_are_removed_and_the_rest_is_kept(length: int, width: int, seed: int) -> None:
    biased, rest = profile(length, width, seed, harmonics=0.6)
    debiasing = PositionalDebiasing(width)
    found = debiasing.fit(biased, torch.full((length,), 50))
    after = debiasing(biased, torch.arange(length))
    if found.share > 0.3:
        assert found.removed
        assert (after - rest).square().mean() < 0.2 * (biased - rest).square().mean()
        assert PositionalDebiasing(width).fit(after, torch.full((length,), 50)).share < 0.5 * found.share


def test_where_there_are_none_it_stays_the_identity() -> None:
    removed = 0
    for seed in range(200):
        clean, _ = profile(256, 4, seed, harmonics=0.0)
        debiasing = PositionalDebiasing(4)
        removed += debiasing.fit(clean, torch.full((256,), 50)).removed
        if not debiasing.coefficients.any():
            assert torch.equal(debiasing(clean, torch.arange(256)), clean)
    assert removed <= 3  # at a significance of .001


def test_the_profile_is_the_mean_of_what_counts() -> None:
    x = torch.arange(24, dtype=torch.float32).reshape(2, 4, 3)
    position = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]])
    mask = torch.tensor([[True, True, True, False], [True, False, True, True]])
    mean, counts = mean_profile(x, position, mask, 3)
    assert counts.tolist() == [2, 1, 2]
    torch.testing.assert_close(mean, torch.stack([(x[0, 0] + x[1, 0]) / 2, x[0, 1], (x[0, 2] + x[1, 2]) / 2]))


def test_a_profile_too_short_to_tell_is_refused() -> None:
    with pytest.raises(ValueError, match="18 parameters"):
        PositionalDebiasing(2).fit(torch.zeros(10, 2), torch.ones(10))
