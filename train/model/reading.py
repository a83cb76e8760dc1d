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
    value: Tensor  # [S, H, c, e]


def hide_fill(scores: Tensor, segments: Segments) -> Tensor:
    """Scores [S, H, K, c] with those of slots' empty places out of reach."""
    return scores + (~segments.mask)[:, None, None].to(scores.dtype) * _MASKED


def read_texts(pools: Sequence[Pool], sums: Tensor, segments: Segments) -> tuple[list[Tensor], Tensor]:
    """Read R texts.

    Args:
        pools: each a softmax over all tokens of a text, joined from its segments' partial sums as in flash-decoding.
        sums: [S, F] of each segment, to be summed.
        segments: which tokens count, and of which text they are.

    Returns:
        For each pool [R, K, H * e], and the sums [R, F]; zero for a text without tokens.
    """
    partials, peaks = [], []
    for pool in pools:
        scores = hide_fill(pool.scores, segments)
        peak = scores.amax(-1, keepdim=True)
        # A column of ones beside the values: the weights' sum comes with the weighted sum. All of them are one in a
        # slot without tokens, which is no member of its text.
        partials.append((scores - peak).exp() @ nn.functional.pad(pool.value, (0, 1), value=1.0))  # [S, H, K, e + 1]
        peaks.append(peak.flatten(1))
    peak = torch.cat(peaks, 1)
    lowest = torch.full_like(peak[:1], torch.finfo(peak.dtype).min).expand(segments.per_row.shape[0], -1)
    highest = lowest.scatter_reduce(0, segments.row[:, None].expand_as(peak), peak, "amax")
    scales = (peak - take(highest, segments.row)).exp().split([one.shape[1] for one in peaks], 1)
    scaled = [
        (partial * scale.unflatten(1, (*partial.shape[1:3], 1))).flatten(1)
        for partial, scale in zip(partials, scales, strict=True)
    ]
    parts = [*scaled, sums]
    joined = segments.member.to(sums.dtype) @ torch.cat(parts, 1)
    *totals, summed = joined.split([part.shape[1] for part in parts], 1)
    reads = []
    for partial, total in zip(partials, totals, strict=True):
        weighted, weights = total.unflatten(1, partial.shape[1:]).split([partial.shape[3] - 1, 1], -1)
        # The clamp keeps a text without tokens finite; its neighbours never see it.
        reads.append((weighted / weights.clamp(min=torch.finfo(total.dtype).tiny)).transpose(1, 2).flatten(2))
    return reads, summed
