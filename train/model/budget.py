"""The evidence budget: how many segment orders an answer deserves.

arXiv 2507.11768 derives an optimal number of reasoning steps k* that grows with √n · log(1/ε). Here a step is one more
order of the same evidence:

    k* = clamp(round(√(n · α / (H · ΔB)) · log2(1/ε)), 1, K)

with n tokens, α the variance of the logit over orders, H the answer's total entropy (nats), ΔB the gain in nats that
one order would have to bring, ε the tolerated error. A text whose orders agree deserves one. It is reported as
`evidence_budget`; the served graph always reads all K orders, because they are nearly free.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def evidence_budget(
    tokens: Tensor, order_variance: Tensor, entropy: Tensor, *, gap: float, epsilon: float, orders: int
) -> Tensor:
    """k* for each text: tokens [R] int64, order_variance [R], entropy [R] (nats) -> [R] int32 in 1..orders."""
    ratio = tokens.to(entropy.dtype) * order_variance / (entropy * gap + 1e-6)
    steps = ratio.sqrt() * math.log2(1 / epsilon)
    return steps.round().clamp(1, orders).to(torch.int32)
