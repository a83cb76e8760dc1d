"""How a text is read out of its segments: attention and sums, joined over a text's segments in one product.

Nothing else crosses a segment's border. All pools and sums of both streams go through the product together, since a
small answer costs as many nodes of a graph as a long one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from train.model.segments import Segments, take

_MASKED = -1e4  # added to scores that must not count; small enough for half precision, large enough to vanish


class Pool(NamedTuple):
    """Attention of K queries for each of H heads over the tokens of a segment, before its softmax."""

    scores: Tensor  # [S, H, K, c]
    value: Tensor  # [S, H, c, e + 1], of `values_and_one`: the weights' sum comes with the weighted sum


def hide_fill(scores: Tensor, segments: Segments) -> Tensor:
    """Scores [S, H, K, c] with those of empty places out of reach."""
    return scores + torch.where(segments.mask[:, None, None], 0.0, _MASKED).to(scores.dtype)


def values_and_one(layer: nn.Linear, heads: int) -> tuple[Tensor, Tensor]:
    """Weight [H * (e + 1), in] and bias of a layer that gives each head's values, and a one behind them."""
    weight = nn.functional.pad(layer.weight.unflatten(0, (heads, -1)), (0, 0, 0, 1)).flatten(0, 1)
    return weight, nn.functional.pad(layer.bias.unflatten(0, (heads, -1)), (0, 1), value=1.0).flatten()


def read_texts(pools: Sequence[Pool], sums: Tensor, segments: Segments) -> tuple[list[Tensor], Tensor]:
    """Read R texts.

    Args:
        pools: each a softmax over all tokens of a text, joined from partial sums of its segments.
        sums: [S, F] of each segment, to be summed.
        segments: which tokens count, and of which text they are.

    Returns:
        For each pool [R, K, H * e], and the sums [R, F]; zero for a text without tokens.
    """
    scores = [hide_fill(pool.scores, segments) for pool in pools]
    peak = torch.cat([one.amax(-1).flatten(1) for one in scores], 1).detach()  # a softmax does not depend on it
    lowest = torch.full_like(peak[:1], torch.finfo(peak.dtype).min).expand(segments.per_row.shape[0], -1)
    highest = lowest.scatter_reduce(0, segments.row[:, None].expand_as(peak), peak, "amax")
    of_text = take(highest, segments.row).split([one.shape[1] * one.shape[2] for one in scores], 1)
    # All weights are one in a segment without tokens, which is no member of its text.
    partials = [
        (one - most.unflatten(1, (*one.shape[1:3], 1))).exp() @ pool.value  # [S, H, K, e + 1]
        for pool, one, most in zip(pools, scores, of_text, strict=True)
    ]
    parts = [*(partial.flatten(1) for partial in partials), sums]
    joined = segments.member.to(sums.dtype) @ torch.cat(parts, 1)
    *totals, summed = joined.split([part.shape[1] for part in parts], 1)
    reads = []
    for partial, total in zip(partials, totals, strict=True):
        weighted, weights = total.unflatten(1, partial.shape[1:]).split([partial.shape[3] - 1, 1], -1)
        # The clamp keeps a text without tokens finite; its neighbours never see it.
        reads.append((weighted / weights.clamp(min=torch.finfo(total.dtype).tiny)).transpose(1, 2).flatten(2))
    return reads, summed
