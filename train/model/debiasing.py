"""PositionalDebiasing: take the harmonics of a fixed period out of the mean profile of hidden states over position.

arXiv 2507.11768 finds artefacts of period 64 that rotary encodings leave in a transformer's answers. The profile, the
mean hidden state at each position over many texts, is fitted by ridge regression on a constant, a trend, and sines and
cosines of the period and its overtones; the latter are subtracted. Where an F-test does not find them, nothing is: a
fit to noise would add what it is meant to remove.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.stats import f as f_distribution
from torch import Tensor, nn

_RIDGE = 1e-3
_SIGNIFICANCE = 1e-3  # of the F-test; a corpus is looked at once or a few times


class Harmonics(NamedTuple):
    """What was found in a profile."""

    share: float  # of the variance that constant and trend leave, explained by the harmonics
    p_value: float  # of finding as much in noise
    removed: bool


class PositionalDebiasing(nn.Module):
    """Subtracts fitted harmonics from hidden states; the identity until `fit` has found some.

    Args:
        width: of the hidden states.
        period: in tokens.
        overtones: sines and cosines of period / 1 … period / overtones.
    """

    coefficients: Tensor

    def __init__(self, width: int, *, period: int = 64, overtones: int = 8) -> None:
        super().__init__()
        self.period, self.overtones = period, overtones
        self.register_buffer("coefficients", torch.zeros(2 * overtones, width))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Hidden states [..., width] at positions [...] int64 -> the same without the harmonics."""
        debiased: Tensor = x - self._waves(position) @ self.coefficients
        return debiased

    @torch.no_grad()
    def fit(self, profile: Tensor, counts: Tensor) -> Harmonics:
        """Fit on a profile [L, width] float and the tokens behind each of its positions, counts [L].

        Raises:
            ValueError: if there are too few positions to tell harmonics from noise.
        """
        length, parameters = profile.shape[0], 2 + 2 * self.overtones
        if length <= parameters:
            raise ValueError(f"a profile of {length} positions cannot hold {parameters} parameters; give longer texts")
        x, y = profile.double(), counts.double() / counts.double().mean()
        base = torch.stack([torch.ones(length), torch.linspace(-1, 1, length)], 1).double()
        waves = self._waves(torch.arange(length)).double()
        without, _ = _ridge(base, x, y)
        left, solution = _ridge(torch.cat([base, waves], 1), x, y)
        share = float(1 - left / without) if without > 0 else 0.0
        free = (length - parameters) * x.shape[1]
        explained = 2 * self.overtones * x.shape[1]
        ratio = float(((without - left) / explained) / (left / free)) if left > 0 else math.inf
        p_value = float(f_distribution.sf(ratio, explained, free)) if share > 0 else 1.0
        removed = p_value < _SIGNIFICANCE
        self.coefficients.copy_(solution[2:] if removed else torch.zeros_like(self.coefficients))
        return Harmonics(share, p_value, removed)

    def _waves(self, position: Tensor) -> Tensor:
        """[..., 2 · overtones]"""
        order = torch.arange(1, self.overtones + 1, device=position.device, dtype=torch.float32)
        angle = 2 * math.pi * position[..., None].to(torch.float32) * order / self.period
        return torch.cat([angle.cos(), angle.sin()], -1)


def _ridge(design: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted residual sum of squares, and the solution [parameters, width]."""
    root = weight.sqrt()[:, None]
    a, b = design * root, target * root
    eye = torch.eye(a.shape[1], dtype=a.dtype)
    solution = torch.linalg.solve(a.T @ a + _RIDGE * eye, a.T @ b)
    return ((b - a @ solution) ** 2).sum(), solution


def mean_profile(x: Tensor, position: Tensor, mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The profile of hidden states: mean [length, width] and counts [length] over tokens that count.

    Args:
        x: [N, width].
        position: [N] int64; what lies at `length` or beyond is left out.
        mask: [N].
        length: positions of the profile.
    """
    counted = mask & (position < length)
    where, values = position[counted], x[counted]
    counts = torch.zeros(length, device=x.device).index_add_(0, where, torch.ones_like(where, dtype=torch.float32))
    total = torch.zeros(length, x.shape[-1], device=x.device).index_add_(0, where, values.float())
    return total / counts.clamp(min=1)[:, None], counts
