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
from train.model.segments import Segments, take

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
        _, c, width = x.shape
        qkv = self.query_key_value(self.attention_norm(x)).reshape(-1, c, 3 * self.heads, width // self.heads)
        turned, value = qkv.transpose(1, 2).split([2 * self.heads, self.heads], 1)
        turned = rotate(turned, torch.arange(c, device=x.device), self.rotary_base)
        query, key = turned.chunk(2, 1)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        scores = scores + (~mask)[:, None, None].to(x.dtype) * _MASKED
        attended = (scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, c, width)
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
        _, c, width = x.shape
        heads, e = self.heads, width // self.heads
        key = rotate(self.key(x).reshape(-1, c, heads, e), torch.arange(c, device=x.device)[:, None], self.rotary_base)
        value = self.value(x).reshape(-1, c, heads, e).transpose(1, 2)
        # Ranks by (segments of the text, place); queries by rank: every entry of both is the same for all texts.
        table, of_rank = ranks.transpose(1, 2), torch.arange(ranks.shape[2], device=x.device)
        rank = take(
            table.flatten(0, 1), take(segments.per_row, segments.row) * table.shape[1] + segments.place
        )  # [S, K]
        turned = rotate(self.query, -(self.segment_length * of_rank)[:, None], self.rotary_base)  # [N, H, e]
        query = take(turned.flatten(1), rank).unflatten(-1, (heads, e)).transpose(1, 2)  # [S, H, K, e]
        scores = query @ key.permute(0, 2, 3, 1) / math.sqrt(e)
        return pool(scores, value, segments)


def pool(scores: Tensor, value: Tensor, segments: Segments) -> Tensor:
    """Attention over all tokens of each text, whose softmax is joined over segments from partial sums.

    Args:
        scores: [S, H, K, c], K queries for each of H heads.
        value: [S, H, c, e].
        segments: which tokens count, and of which text they are.

    Returns:
        [R, K, H * e]; zero for a text without tokens.
    """
    _, heads, queries, _ = scores.shape
    e = value.shape[-1]
    present = segments.mask[:, None, None].to(scores.dtype)
    scores = scores + (1 - present) * _MASKED
    peak = scores.amax(-1)  # [S, H, K]
    weight = (scores - peak[..., None]).exp() * present
    # A column of ones beside the values: the weights' sum comes with the weighted sum.
    counted = torch.cat([value, torch.ones_like(value[..., :1])], -1)
    partial = weight @ counted  # [S, H, K, e + 1]

    peak = peak.flatten(1)
    lowest = torch.full_like(peak[:1], torch.finfo(peak.dtype).min).expand(segments.per_row.shape[0], -1)
    where = segments.row[:, None].expand_as(peak)
    highest = lowest.scatter_reduce(0, where, peak, "amax")
    scale = (peak - take(highest, segments.row)).exp().unflatten(-1, (heads, queries, 1))
    total = (segments.member.to(partial.dtype) @ (partial * scale).flatten(1)).unflatten(-1, (heads, queries, e + 1))
    # The clamp keeps a text without tokens finite; its neighbours never see it.
    read: Tensor = total[..., :e] / total[..., e:].clamp(min=torch.finfo(total.dtype).tiny)
    return read.transpose(1, 2).flatten(2)
