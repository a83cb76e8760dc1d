"""MDLRegularizedLoss: the description length of labels under Dirichlet beliefs, by bits-back coding.

arXiv 2507.11768 reads training as compression. With a Dirichlet of concentration α_k over the classes for each order k
of a text's segments, and S_k = Σ_c α_kc, one label costs, in nats,

    ½ · (-log mean_k α_ky / S_k)                    the label, by the answer that is given
  + ½ · mean_k (ψ(S_k) - ψ(α_ky))                   the label, by a belief drawn from the Dirichlet
  + β · mean_k KL(Dir(α_k) ‖ Dir(1))                the belief itself
  + γ / 10 · mean pairwise variance over k of log α_kc - log α_kc'   what the orders disagree about

A concentration that is trained on hard labels alone has its optimum at a constant (2203.06102, 2402.06160). So nothing
is trained by it here: it measures the served belief beside its likelihood (`train.ablation`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_SMALLEST = 1e-6


class MDLRegularizedLoss(nn.Module):
    """Description length of labels, nats per label; for any number of classes.

    Args:
        beta: weight of the belief's own cost.
        gamma: weight of the orders' disagreement, in tenths.
        risk: share of the second half that is the expected loss under the belief; the rest is the loss of its mean.
    """

    def __init__(self, beta: float = 0.02, gamma: float = 0.5, risk: float = 1.0) -> None:
        super().__init__()
        self.beta, self.gamma, self.risk = beta, gamma, risk

    def forward(self, concentration: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """concentration [R, K, C] > 0, labels [R] int64 -> scalars: description length, and its first term unhalved."""
        classes = concentration.shape[-1]
        strength = concentration.sum(-1)  # [R, K]
        of_label = concentration.gather(-1, labels[:, None, None].expand(-1, concentration.shape[1], 1))[..., 0]
        mean = (concentration / strength[..., None]).mean(1).clamp(_SMALLEST, 1 - _SMALLEST)
        answer = -mean.gather(1, labels[:, None]).log().mean()
        of_mean = (strength.log() - of_label.log()).mean()
        expected = (torch.digamma(strength) - torch.digamma(of_label)).mean()
        second = self.risk * expected + (1 - self.risk) * of_mean
        belief = torch.lgamma(strength) - torch.lgamma(concentration).sum(-1) - math.lgamma(classes)
        surplus = torch.digamma(concentration) - torch.digamma(strength)[..., None]
        belief = (belief + ((concentration - 1) * surplus).sum(-1)).mean()
        log = concentration.log()
        centred = log - log.mean(-1, keepdim=True)
        # Mean over pairs of classes of the variance of their log-ratio, by the variance of centred logarithms.
        disagreement = 2 / (classes - 1) * centred.var(1, unbiased=False).sum(-1).mean()
        length = 0.5 * answer + 0.5 * second + self.beta * belief + 0.1 * self.gamma * disagreement
        return length, answer
