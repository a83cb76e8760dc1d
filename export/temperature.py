"""The temperature of a softmax: one number by which logits are divided, fitted on labelled rows.

Guo et al. 2017 (1706.04599). It changes no label, and of all calibrations of a softmax needs the fewest rows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

_LARGEST = 20.0  # or its inverse: beyond it the rows are all right or all wrong, and say no more about the number


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature with the smallest negative log-likelihood.

    Args:
        logits: [N, C].
        labels: [N].
    """
    wide = logits.astype(np.float64)
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(wide / math.exp(log_temperature), axis=1)[rows, labels].mean())

    edge = math.log(_LARGEST)
    found = minimize_scalar(loss, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-4})
    return float(np.float32(math.exp(found.x)))
