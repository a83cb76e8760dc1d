"""Dropout from random bytes, drawn eight at a time: torch's draws four bytes an element, a tenth of a step on CPU.

Rates become multiples of 1/256, far finer than any rate is known to matter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LOWEST, _HIGHEST = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max  # every byte takes every value


class ByteDropout(nn.Module):
    """Zeroes each element with probability round(256 p) / 256 in training, and scales the others to keep the mean."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.threshold = round(256 * p)

    def forward(self, x: Tensor) -> Tensor:
        """x [...] -> [...]."""
        if not self.training or not self.threshold:
            return x
        words = torch.empty(x.numel() // 8 + 1, dtype=torch.int64, device=x.device).random_(_LOWEST, _HIGHEST)
        kept = words.view(torch.uint8)[: x.numel()].reshape(x.shape) >= self.threshold
        return x * kept.to(x.dtype).mul_(256 / (256 - self.threshold))

    def extra_repr(self) -> str:
        """The rate, for `print(model)`."""
        return f"p={self.threshold / 256:g}"


def shares_dropped(texts: int, mean: float, device: torch.device) -> Tensor:
    """The share of each text that is dropped, [texts]: of most little, of some nearly all.

    It is u^(1 / mean - 1), u uniform in 0..1, whose mean is `mean`.
    """
    if not mean:
        return torch.zeros(texts, device=device)
    return torch.rand(texts, device=device) ** (1 / mean - 1)
