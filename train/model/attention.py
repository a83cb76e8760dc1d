"""The trunk's local attention and the martingale-aware read-out.

Positional encodings make a transformer's answer depend on the order of evidence that should be exchangeable; averaged
over orders it is Bayesian in expectation (arXiv 2507.11768). Word order inside a segment matters and is kept; the order
of segments is averaged over. Keys carry rotary positions (Su et al. 2021): with key j of the segment at rank p sitting
at c·p + j, R(c·p + j) = R(c·p) R(j), so the keys are turned once by j and an order turns the *query* back by c·p. K
orders therefore cost K small queries a segment instead of K passes, and the softmax is joined over segments from
partial sums, as in flash-decoding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from train.model.dropout import ByteDropout
from train.model.segments import Segments, sum_by_row

_MASKED = -1e4  # added to scores that must not count; small enough for half precision, large enough to vanish


def rotate(x: Tensor, position: Tensor, base: float) -> Tensor:
    """Rotary embedding of `x` [..., e] at `position` (broadcastable to x.shape[:-1]); negative positions turn back."""
    e = x.shape[-1]
    frequency = base ** (-torch.arange(0, e, 2, device=x.device, dtype=torch.float32) / e)
    angle = position[..., None].to(torch.float32) * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    u, v = x.chunk(2, -1)
    return torch.cat([u * cos - v * sin, u * sin + v * cos], -1)


class LocalBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block whose attention stays inside a segment."""

    def __init__(self, width: int, heads: int, intermediate: int, dropout: float, rotary_base: float) -> None:
        super().__init__()
        self.heads, self.rotary_base = heads, rotary_base
        self.query_key_value, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, intermediate), nn.Linear(intermediate, width)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = ByteDropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [S, c, width], mask [S, c] -> [S, c, width]."""
        slots, c, width = x.shape
        qkv = self.query_key_value(self.attention_norm(x)).reshape(slots, c, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        offset = torch.arange(c, device=x.device)
        query, key = rotate(query, offset, self.rotary_base), rotate(key, offset, self.rotary_base)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        scores = scores + (~mask)[:, None, None].to(x.dtype) * _MASKED
        attended = (scores.softmax(-1) @ value).transpose(1, 2).reshape(slots, c, width)
        x = x + self.dropout(self.output(attended))
        mixed: Tensor = x + self.dropout(self.down(nn.functional.gelu(self.up(self.feed_forward_norm(x)))))
        return mixed


def segment_orders(orders: int, segments: int, seed: int) -> Tensor:
    """Sort keys [orders, segments] of fixed orders: the text's own, its reverse, then antithetic pairs u, 1 - u.

    Antithetic pairs put every segment as often early as late, so that few orders average out position well.
    """
    generator = torch.Generator().manual_seed(seed)
    own = torch.arange(segments) / segments
    keys = [own, 1 - own]
    while len(keys) < orders:
        u = torch.rand(segments, generator=generator)
        keys += [u, 1 - u]
    return torch.stack(keys[:orders])


def rank_table(keys: Tensor) -> Tensor:
    """Ranks under sort keys [K, N]: entry [n, k, s] of [N+1, K, N] is the place of segment s among the first n."""
    segments = keys.shape[1]
    earlier = keys[:, :, None] > keys[:, None, :]
    n = torch.arange(segments + 1, device=keys.device)
    present = torch.arange(segments, device=keys.device)[None, :] < n[:, None]
    return (earlier[None] & present[:, None, None, :]).sum(-1)


class MartingaleAwareAttention(nn.Module):
    """One learned query a head over all tokens of a text, read out under K orders of its segments."""

    rank: Tensor

    def __init__(
        self, *, width: int, heads: int, segment_length: int, orders: int, segments: int, rotary_base: float, seed: int
    ) -> None:
        super().__init__()
        self.heads, self.segment_length, self.rotary_base = heads, segment_length, rotary_base
        self.query = nn.Parameter(torch.randn(heads, width // heads) * 0.1)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.register_buffer("rank", rank_table(segment_orders(orders, segments, seed)))

    def random_ranks(self, orders: int) -> Tensor:
        """Ranks of the text's own order and of `orders - 1` random ones, for one training step."""
        segments = self.rank.shape[-1]
        own = torch.arange(segments, device=self.rank.device)[None] / segments
        return rank_table(torch.cat([own, torch.rand(orders - 1, segments, device=self.rank.device)]))

    def forward(self, x: Tensor, segments: Segments, ranks: Tensor | None = None) -> Tensor:
        """Read every text out.

        Args:
            x: [S, c, width], hidden states of the trunk.
            segments: where they belong.
            ranks: [N+1, K, N], orders to use instead of the fixed ones.

        Returns:
            [R, K, width].
        """
        ranks = self.rank if ranks is None else ranks
        slots, c, _ = x.shape
        rows, heads = segments.per_row.shape[0], self.heads
        key = self.key(x).reshape(slots, c, heads, -1).transpose(1, 2)
        key = rotate(key, torch.arange(c, device=x.device), self.rotary_base)
        value = self.value(x).reshape(slots, c, heads, -1).transpose(1, 2)
        rank = ranks[segments.per_row[segments.row], :, segments.place]  # [S, K]
        orders, e = rank.shape[1], value.shape[-1]
        query = rotate(self.query[None, None], -(self.segment_length * rank)[..., None], self.rotary_base)  # [S,K,H,e]

        scores = torch.einsum("skhe,shce->skhc", query, key) / math.sqrt(e)
        return pool(scores, value, segments).reshape(rows, orders, heads * e)


def pool(scores: Tensor, value: Tensor, segments: Segments) -> Tensor:
    """Attention over all tokens of each text, whose softmax is joined over segments from partial sums.

    Args:
        scores: [S, K, H, c], K queries for each of H heads.
        value: [S, H, c, e].
        segments: which tokens count, and of which text they are.

    Returns:
        [R, K, H, e]; zero for a text without tokens.
    """
    slots, queries, heads, _ = scores.shape
    rows, e = segments.per_row.shape[0], value.shape[-1]
    present = segments.mask[:, None, None].to(scores.dtype)
    scores = scores + (1 - present) * _MASKED
    peak = scores.amax(-1)  # [S, K, H]
    weight = (scores - peak[..., None]).exp() * present
    partial = torch.einsum("skhc,shce->skhe", weight, value)

    where = segments.row[:, None].expand(slots, queries * heads)
    peak = peak.reshape(slots, -1)
    highest = torch.full((rows, queries * heads), torch.finfo(peak.dtype).min, dtype=peak.dtype, device=peak.device)
    highest = highest.scatter_reduce(0, where, peak, "amax")
    scale = (peak - highest[segments.row]).exp()
    norm = sum_by_row(scale * weight.sum(-1).reshape(slots, -1), segments.row, rows)
    scaled = partial * scale.reshape(slots, queries, heads, 1).to(partial.dtype)
    total = sum_by_row(scaled.reshape(slots, -1), segments.row, rows).reshape(rows, queries, heads, e)
    # The clamp keeps a text without tokens finite; its neighbours never see it.
    return total / norm.clamp(min=torch.finfo(norm.dtype).tiny).reshape(rows, queries, heads, 1)
