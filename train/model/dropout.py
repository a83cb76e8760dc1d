"""Dropout from random bytes: eight times fewer random bits than torch's, which took a tenth of a training step on CPU.

Rates become multiples of 1/256, far finer than any rate is known to matter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ByteDropout(nn.Module):
    """Zeroes each element with probability round(256 p) / 256 in training, and scales the others to keep the mean."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.threshold = round(256 * p)

    def forward(self, x: Tensor) -> Tensor:
        """x [...] -> [...]."""
        if not self.training or not self.threshold:
            return x
        kept = torch.randint(0, 256, x.shape, dtype=torch.uint8, device=x.device) >= self.threshold
        return x * (kept.to(x.dtype) * (256 / (256 - self.threshold)))

    def extra_repr(self) -> str:
        """The rate, for `print(model)`."""
        return f"p={self.threshold / 256:g}"
