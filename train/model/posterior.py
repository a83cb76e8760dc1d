"""The predictive distribution: a normal over the logit, its moments over orders, and the Dirichlet that matches them.

    logit_k ~ N(a · evidence + g · trunk_k + b, s²),   s² = v0 + v2 · novelty2 + v3 · novelty3

The more of a text's evidence training never saw, the wider the logit. The predictive mean integrates over the normal
and averages *probabilities* over the K orders; a Dirichlet with the same mean and total variance gives the split of
uncertainty in closed form (Malinin & Gales 2018, 1802.10501): total = entropy of the mean, aleatoric = expected
entropy under the Dirichlet, epistemic = the rest (mutual information). All in nats.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm, qmc
from torch import Tensor, nn

SMALLEST_PROBABILITY = 1e-5
_CONCENTRATION_RANGE = (0.05, 1e4)
# Of log(1 + x) - digamma(1 + x) as a polynomial in 1 / (1 + x) without a constant.
_DIGAMMA = (0.500000348, 0.083322408, 0.000114953, -0.008888369, 0.001277296, 0.003137116, -0.002273481, 0.000525397)


class Predictive(NamedTuple):
    """Moments of the predictive distribution of R texts."""

    probabilities: Tensor  # [R, C]
    total: Tensor  # [R] nats
    aleatoric: Tensor  # [R] nats
    epistemic: Tensor  # [R] nats
    concentration: Tensor  # [R, C], of the matching Dirichlet
    order_dispersion: Tensor  # [R], standard deviation over orders of the predicted class's probability
    logit_variance: Tensor  # [R], variance over orders of the scaled trunk logit, mean over columns


def digamma1p(x: Tensor) -> Tensor:
    """Digamma of 1 + x for x >= 0: log(1 + x) less a polynomial in 1 / (1 + x), to 4e-9 before float32 rounds it.

    ONNX has no such operator, and the recurrence with its asymptotic series (Abramowitz & Stegun 6.3.18) takes three
    times as many nodes of a graph. The coefficients are least squares on 4,000 Chebyshev nodes of 1 / (1 + x) in
    (0, 1].
    """
    coefficients = torch.tensor(_DIGAMMA, device=x.device, dtype=x.dtype)
    powers = torch.arange(1, len(_DIGAMMA) + 1, device=x.device, dtype=x.dtype)
    log = torch.log(x + 1)
    return log - (log[..., None] * -powers).exp() @ coefficients


def normal_nodes(columns: int, nodes: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Nodes [Q, columns] and weights [Q] that integrate over a standard normal.

    One column: Gauss-Hermite quadrature. More: at least 4 * `nodes` scrambled Sobol points (fixed seed) and their
    mirror images, whitened, so that odd moments vanish and second moments are exact.
    """
    if columns == 1:
        x, w = np.polynomial.hermite_e.hermegauss(nodes)
        return x[:, None].astype(np.float32), (w / w.sum()).astype(np.float32)
    count = 1 << int(np.ceil(np.log2(max(4 * nodes, 2 * columns))))
    points = norm.ppf(qmc.Sobol(columns, seed=0).random(count).clip(1e-6, 1 - 1e-6))
    points = np.concatenate([points, -points])
    points = points @ np.linalg.inv(np.linalg.cholesky(points.T @ points / len(points))).T
    return points.astype(np.float32), np.full(len(points), 1 / len(points), np.float32)


def class_logits(columns: Tensor) -> Tensor:
    """[..., L] -> [..., C]: the log-odds of two classes become (-x/2, x/2); more classes stay as they are."""
    if columns.shape[-1] > 1:
        return columns
    return columns * torch.tensor([-0.5, 0.5], dtype=columns.dtype, device=columns.device)


class Posterior(nn.Module):
    """Calibrated predictive distribution; `train.calibration` fits its numbers, training leaves them alone."""

    nodes: Tensor
    weights: Tensor

    def __init__(self, columns: int, nodes: int) -> None:
        super().__init__()
        x, w = normal_nodes(columns, nodes)
        self.register_buffer("nodes", torch.from_numpy(x))
        self.register_buffer("weights", torch.from_numpy(w))
        self.log_evidence_scale = nn.Parameter(torch.tensor(0.0))
        # The trunk's logits come scaled as training joined them.
        self.log_trunk_scale = nn.Parameter(torch.tensor(0.0))
        self.bias = nn.Parameter(torch.zeros(columns))
        self.log_variance = nn.Parameter(torch.tensor([-3.0, -2.4, -2.4]))  # constant, bigram novelty, trigram novelty
        self.requires_grad_(False)

    def forward(self, evidence: Tensor, novelty: Tensor, trunk: Tensor) -> Predictive:
        """evidence [R, L], novelty [R, 2], trunk [R, K, L] -> Predictive."""
        variance = self.log_variance[0].exp() + novelty @ self.log_variance[1:].exp()
        scaled = self.log_trunk_scale.exp() * trunk
        mean = self.log_evidence_scale.exp() * evidence[:, None] + scaled + self.bias  # [R, K, L]
        logits = mean[:, :, None] + variance.sqrt().reshape(-1, 1, 1, 1) * self.nodes  # [R, K, Q, L]
        sampled = class_logits(logits).softmax(-1)  # [R, K, Q, C]
        weights = self.weights[None, None, :, None]
        by_order = (sampled * weights).sum(2)  # [R, K, C]
        p = by_order.mean(1).clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
        p = p / p.sum(-1, keepdim=True)
        # E[(q - p)²], never E[q²] - p²: the difference cancels in float32.
        spread = ((sampled - p[:, None, None]) ** 2 * (weights / mean.shape[1])).sum((1, 2, 3)).clamp(min=1e-12)
        strength = ((p * (1 - p)).sum(-1) / spread - 1).clamp(*_CONCENTRATION_RANGE)
        concentration = strength[:, None] * p
        total = -(p * p.log()).sum(-1)
        grown = digamma1p(torch.cat([concentration, strength[:, None]], 1))
        aleatoric = grown[:, -1] - (p * grown[:, :-1]).sum(-1)
        aleatoric = torch.minimum(aleatoric, total)
        top = p.argmax(-1)[:, None, None].expand(-1, by_order.shape[1], 1)
        chosen = by_order.gather(-1, top)[..., 0]  # [R, K]
        dispersion = ((chosen - chosen.mean(1, keepdim=True)) ** 2).mean(1).sqrt()
        logit_variance = ((scaled - scaled.mean(1, keepdim=True)) ** 2).mean((1, 2))
        return Predictive(p, total, aleatoric, total - aleatoric, concentration, dispersion, logit_variance)
