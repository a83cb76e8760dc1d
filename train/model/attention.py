"""The trunk's local attention and the martingale-aware read-out.

Positional encodings make a transformer's answer depend on the order of evidence that should be exchangeable; averaged
over orders it is Bayesian in expectation (arXiv 2507.11768). Word order inside a segment matters and is kept; the order
of segments is averaged over. Keys carry rotary positions (Su et al. 2021): with key j of the segment at rank p sitting
at c·p + j, R(c·p + j) = R(c·p) R(j), so the keys are turned once by j and an order turns the *query* back by c·p. K
orders therefore cost K small queries a segment instead of K passes, and the softmax is joined over segments from
partial sums.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from train.model.dropout import ByteDropout
from train.model.reading import Pool, hide_fill, read_texts, values_and_one
from train.model.segments import Segments, take


def rotate(x: Tensor, position: Tensor, base: float) -> Tensor:
    """Rotary embedding of `x` [..., e] at `position` (broadcastable to x.shape[:-1]); negative positions turn back."""
    e = x.shape[-1]
    frequency = base ** (-torch.arange(0, e, 2, device=x.device, dtype=torch.float32) / e)
    angle = position[..., None].to(torch.float32) * torch.cat([frequency, frequency])
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    # (u, v) -> (-v, u) as a product: one node of a graph instead of four.
    quarter = torch.eye(e, device=x.device, dtype=x.dtype).roll(e // 2, 1)
    quarter = torch.cat([quarter[: e // 2], -quarter[e // 2 :]])
    return x * cos + (x @ quarter) * sin


def gelu(x: Tensor) -> Tensor:
    """The exact GELU; in a graph written as ONNX Runtime knows it, and replaces it by one kernel."""
    if torch.compiler.is_exporting():
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return nn.functional.gelu(x)


def together(x: Tensor, segments: Segments, *layers: nn.Linear | tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Several linear layers, or weights with biases, of one input as one product: x [S * c, in] -> [S, c, out] each."""
    pairs = [layer if isinstance(layer, tuple) else (layer.weight, layer.bias) for layer in layers]
    weight, bias = torch.cat([weight for weight, _ in pairs]), torch.cat([bias for _, bias in pairs])
    found = nn.functional.linear(x, weight, bias).reshape(-1, segments.mask.shape[1], weight.shape[0])
    parts: tuple[Tensor, ...] = found.split([len(bias) for _, bias in pairs], -1)
    return parts


class LocalBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block whose attention stays inside a segment."""

    def __init__(self, width: int, heads: int, intermediate: int, dropout: float, rotary_base: float) -> None:
        super().__init__()
        self.heads, self.rotary_base = heads, rotary_base
        self.query_key_value, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, intermediate), nn.Linear(intermediate, width)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = ByteDropout(dropout)

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """Flat hidden states [S * c, width] -> the same."""
        c, width = segments.mask.shape[1], x.shape[1]
        qkv = self.query_key_value(self.attention_norm(x)).reshape(-1, c, 3 * self.heads, width // self.heads)
        turned, value = qkv.transpose(1, 2).split([2 * self.heads, self.heads], 1)
        turned = rotate(turned, torch.arange(c, device=x.device), self.rotary_base)
        query, key = turned.chunk(2, 1)
        scores = hide_fill(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]), segments)
        x = x + self.dropout(self.output((scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, width)))
        mixed: Tensor = x + self.dropout(self.down(gelu(self.up(self.feed_forward_norm(x)))))
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

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """Hidden states [S * c, width] -> what the queries read of R texts under the fixed orders [R, K, width]."""
        key, value = together(x, segments, self.key, values_and_one(self.value, self.heads))
        (read,), _ = read_texts([self.pool(key, value, segments)], key[:, 0, :0], segments)
        return read

    def pool(self, key: Tensor, value: Tensor, segments: Segments, ranks: Tensor | None = None) -> Pool:
        """Keys [S, c, width] and values with ones [S, c, H * (e + 1)] -> the attention of K queries.

        `ranks` [N+1, K, N] replace the fixed orders.
        """
        ranks = self.rank if ranks is None else ranks
        c, heads, e = key.shape[1], self.heads, key.shape[2] // self.heads
        key, value = (part.unflatten(-1, (heads, -1)) for part in (key, value))
        key = rotate(key, torch.arange(c, device=key.device)[:, None], self.rotary_base)
        # Ranks by (segments of the text, place); queries by rank: every entry of both is the same for all texts.
        table, of_rank = ranks.transpose(1, 2), torch.arange(ranks.shape[2], device=key.device)
        turned = rotate(self.query, -(self.segment_length * of_rank)[:, None], self.rotary_base)  # [N, H, e]
        entry = take(segments.per_row, segments.row) * table.shape[1] + segments.place
        rank = take(table.flatten(0, 1), entry)  # [S, K]
        query = take(turned.flatten(1), rank).unflatten(-1, (heads, e)).transpose(1, 2)  # [S, H, K, e]
        return Pool(query @ key.permute(0, 2, 3, 1) / math.sqrt(e), value.transpose(1, 2))
