"""The temperature of a softmax: one number by which logits are divided, fitted on labelled rows.

Guo et al. 2017 (1706.04599). It changes no label, and of all calibrations of a softmax needs the fewest rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

_LARGEST = 20.0  # or its inverse; the prior keeps away from both
# Standard deviation of a normal prior on the logarithm: without one, rows that are all answered rightly would be fitted
# best by a temperature of zero.
_PRIOR = 1.0


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """The temperature with the smallest negative log-likelihood, kept near 1 by a prior that weighs as one row does.

    Args:
        logits: [N, C].
        labels: [N].
    """
    wide = logits.astype(np.float64)
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        likelihood = log_softmax(wide / math.exp(log_temperature), axis=1)[rows, labels].sum()
        return float(0.5 * (log_temperature / _PRIOR) ** 2 - likelihood)

    edge = math.log(_LARGEST)
    found = minimize_scalar(loss, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-4})
    return float(np.float32(math.exp(found.x)))
