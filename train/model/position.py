"""Where in its text a token stands: what the evidence of n-grams weighs by, and what the streams are told.

The end of a review carries its verdict, so an n-gram counts by where it occurs; the same n-gram in the middle of a long
text says less. In a short text there is no middle, and the weights fade to one. Position is a *property of the piece*:
it is computed from the token's true place in its own text and stays with it when segments are read in another order.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEATURES = 8
_TO_END = [-1 / 6, -1 / 16, -1 / 48, -1 / 128, 0.0, 0.0]  # a token: how fast nearness to the end fades, at four scales
_FROM_START = [0.0, 0.0, 0.0, 0.0, -1 / 8, -1 / 32]
_FADE = 64.0  # tokens of a text at which half of the weighting applies; snippets of 20 tokens keep three quarters flat


def occurrence_weight(from_start: Tensor, to_end: Tensor, length: Tensor) -> Tensor:
    """Weight of an n-gram's occurrence in thousandths, float32 and whole, so that equal places weigh exactly alike.

        w = 1 + n / (n + 64) · (0.6 + 0.8 e^(-b/24) + 0.6 e^(-b/128) + 0.2 e^(-a/12) - 1)

    The rates were chosen on out-of-fold scores of the training part (negative log-likelihood .2524 to .2420 nats).

    Args:
        from_start: a, tokens before the n-gram's first.
        to_end: b, tokens after its last.
        length: n, tokens of the text.
    """
    a, b, n = from_start.to(torch.float32), to_end.to(torch.float32), length.to(torch.float32)
    placed = 800 * torch.exp(b * (-1 / 24)) + 600 * torch.exp(b * (-1 / 128)) + 200 * torch.exp(a * (-1 / 12)) - 400
    return torch.round(1000 + n / (n + _FADE) * placed)


def length_feature(n: Tensor) -> Tensor:
    """What is told of a text's length n >= 1: of the shape of n, within about -2.5..1."""
    return torch.log(n) / 2 - 2.5


def position_features(place: Tensor, length: Tensor) -> Tensor:
    """What the streams are told of each token's place: [..., 8] float32, each within about -2.5..1.

    Args:
        place: [...] int64, tokens before this one in its text.
        length: int64, tokens of that text; broadcastable to `place`.
    """
    t = place.to(torch.float32)
    n = length.to(torch.float32).clamp(min=1).expand_as(t)
    end = (n - 1 - t).clamp(min=0)
    to_end, from_start = (torch.tensor(rates, device=t.device) for rates in (_TO_END, _FROM_START))
    decays = torch.exp(end[..., None] * to_end + t[..., None] * from_start)
    return torch.cat([(t / n - 0.5)[..., None], decays, length_feature(n)[..., None]], -1)
