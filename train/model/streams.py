"""The two streams of the trunk: what the words say, and what they make of the evidence.

The words stream reads word vectors alone; pretraining taught its encoder. The evidence stream sees at each token the
n-gram evidence that covers it beside the encoder's hidden state, so that it can discount evidence that the words deny
("not bad at all"), and corrects the text's evidence through a gate that starts at zero. Both work on segments: nothing
crosses a segment's border except sums over a text, so a text is a set of segments that know their true place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from train.model.attention import LocalBlock, MartingaleAwareAttention, pool
from train.model.config import BetConfig
from train.model.dropout import ByteDropout
from train.model.position import FEATURES, position_features
from train.model.pretrained import PretrainedEncoder
from train.model.segments import Segments, Tokens, take

_PROJECTED, _COUNTED = 16, 2  # moments of 16 projections and 2 soft counts of the hidden states
_COVERING = 6  # n-grams up to 3 that cover a token: 1 + 2 + 3
_FEATURE_DROPOUT = 0.1  # of the evidence features; members never saw the text, but they are not independent of it


class Streams(NamedTuple):
    """Logits of R texts before they are joined."""

    words: Tensor  # [R, K, L], one for each order
    evidence: Tensor  # [R, L]


class SegmentConvolution(nn.Module):
    """Residual convolution over the tokens of a segment; a segment's border is a text's border to it."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [S, c, width], mask [S, c] -> [S, c, width]."""
        present = self.norm(x) * mask[..., None].to(x.dtype)
        mixed: Tensor = x + nn.functional.gelu(self.convolution(present.transpose(1, 2)).transpose(1, 2))
        return mixed


class Encoder(nn.Module):
    """Word vectors, a convolution and local blocks: hidden states that depend on their own segment alone."""

    def __init__(self, config: BetConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.embedding.weight.requires_grad_(False)  # pretraining trains it; on labels alone it overfits
        self.project_in = nn.Linear(config.embedding_size, width)
        self.position = nn.Linear(FEATURES, width)
        nn.init.zeros_(self.position.weight)
        nn.init.zeros_(self.position.bias)
        self.convolution = SegmentConvolution(width, config.convolution)
        self.dropout = ByteDropout(config.hidden_dropout)
        self.blocks = nn.ModuleList(
            LocalBlock(
                width, config.num_attention_heads, config.intermediate_size, config.hidden_dropout, config.rotary_base
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        """ids [S, c], mask [S, c], position features [S, c, 8] -> hidden states [S, c, width]."""
        x = self.project_in(self.dropout(self.embedding(ids))) + self.position(position)
        x = self.convolution(x, mask)
        for block in self.blocks:
            x = block(x, mask)
        hidden: Tensor = self.norm(x)
        return hidden


class Summary(nn.Module):
    """A text's logits from what does not depend on the order of its segments: moments, soft counts, and votes.

    Moments and counts are over tokens; a segment's vote is bounded, so that one segment cannot outshout a text.
    """

    def __init__(self, width: int, columns: int, dropout: float) -> None:
        super().__init__()
        self.moments, self.counts = nn.Linear(width, _PROJECTED), nn.Linear(width, _COUNTED)
        self.from_statistics = nn.Linear(2 * _PROJECTED + _COUNTED + 1, columns)
        nn.init.zeros_(self.from_statistics.weight)  # the first answer is the prior
        self.vote = nn.Linear(width, columns)
        nn.init.normal_(self.vote.weight, std=0.02)
        self.log_vote_scale = nn.Parameter(torch.zeros(columns))
        self.dropout = ByteDropout(dropout)

    def forward(self, x: Tensor, segments: Segments, lengths: Tensor) -> Tensor:
        """Hidden states [S, c, width] and lengths [R] -> logits [R, L]."""
        mask = segments.mask[..., None].to(x.dtype)
        present, member = mask[:, 0], segments.member.to(x.dtype)
        n = lengths.to(x.dtype).clamp(min=1)[:, None]
        z, soft = self.moments(x), nn.functional.softplus(self.counts(x))
        of_segment = (x * mask).sum(1) / mask.sum(1).clamp(min=1)
        vote = torch.tanh(self.vote(self.dropout(of_segment))) * present
        sums = member @ torch.cat([(torch.cat([z, soft], -1) * mask).sum(1), vote], -1)
        total, counts, votes = sums.split([_PROJECTED, _COUNTED, vote.shape[-1]], -1)
        mean = total / n
        square = ((z - take(mean, segments.row)[:, None]) ** 2 * mask).sum(1)
        deviation = (member @ square / n + 1e-6).sqrt()
        statistics = torch.cat([mean, deviation, torch.log1p(counts), torch.log(n) / 2 - 2.5], -1)
        logits: Tensor = self.from_statistics(statistics) + self.log_vote_scale.exp() * 0.5 * votes
        return logits


class WordsStream(nn.Module):
    """Reads a text out of its hidden states, under K orders of its segments."""

    def __init__(self, config: BetConfig) -> None:
        super().__init__()
        self.config = config
        width, columns = config.hidden_size, config.logit_columns
        self.readout = MartingaleAwareAttention(
            width=width,
            heads=config.num_attention_heads,
            segment_length=config.segment_length,
            orders=config.orders,
            segments=config.max_segments,
            rotary_base=config.rotary_base,
            seed=config.order_seed,
        )
        self.readout_norm = nn.LayerNorm(width)
        self.dropout = ByteDropout(config.hidden_dropout)
        self.from_readout = nn.Linear(width, columns)
        nn.init.zeros_(self.from_readout.weight)
        self.summary = Summary(width, columns, config.hidden_dropout)

    def forward(self, x: Tensor, segments: Segments, lengths: Tensor) -> Tensor:
        """Hidden states [S, c, width] and lengths [R] -> logits [R, K, L]."""
        ranks = self.readout.random_ranks(self.config.training_orders) if self.training else None
        by_order = self.from_readout(self.dropout(self.readout_norm(self.readout(x, segments, ranks))))
        logits: Tensor = by_order + self.summary(x, segments, lengths)[:, None]
        return logits


class EvidenceStream(nn.Module):
    """Reads hidden states and evidence together, and corrects the evidence through a gate that starts at zero."""

    def __init__(self, config: BetConfig) -> None:
        super().__init__()
        self.scale = config.evidence_scale
        width, columns = config.evidence_width, config.logit_columns
        self.heads = max(width // 8, 1)
        self.project_in = nn.Linear(config.hidden_size, width)
        self.evidence = nn.Linear(2 * _COVERING * columns, width)
        self.position = nn.Linear(FEATURES + FEATURES * columns, width)
        self.dropout = ByteDropout(config.hidden_dropout)
        self.feature_dropout = ByteDropout(_FEATURE_DROPOUT)
        self.block = LocalBlock(width, self.heads, 2 * width, config.hidden_dropout, config.rotary_base)
        self.norm, self.readout_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.score, self.value = nn.Linear(width, self.heads), nn.Linear(width, width)
        self.from_readout = nn.Linear(width, columns)
        nn.init.zeros_(self.from_readout.weight)
        self.summary = Summary(width, columns, config.hidden_dropout)
        self.gate = nn.Linear(width, columns)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor, by_token: Tensor, position: Tensor, segments: Segments, tokens: Tokens) -> Tensor:
        """Hidden states [S, c, width], evidence [T, 3, L], position features [S, c, 8] -> logits [R, L]."""
        covering = take(covering_evidence(by_token).flatten(1) * self.scale, segments.token)  # [S, c, 6 L]
        own = take(by_token.sum(1), segments.token)  # [S, c, L]
        placed = (position[..., None] * own[..., None, :] * self.scale).flatten(2)
        y = self.project_in(self.dropout(x))
        y = y + self.evidence(self.feature_dropout(torch.cat([covering, covering.abs()], -1)))
        y = y + self.position(torch.cat([position, placed], -1))
        y = self.norm(self.block(y, segments.mask))
        value = self.value(y).unflatten(-1, (self.heads, y.shape[-1] // self.heads)).transpose(1, 2)
        read = pool(self.score(y).transpose(1, 2)[:, :, None], value, segments)[:, 0]
        logits = self.from_readout(self.dropout(self.readout_norm(read))) + self.summary(y, segments, tokens.lengths)
        corrected = (self.gate(y) * own * segments.mask[..., None].to(y.dtype)).sum(1)
        joined: Tensor = logits + segments.member.to(y.dtype) @ corrected
        return joined


def covering_evidence(by_token: Tensor) -> Tensor:
    """Evidence of the n-grams that cover each token: [T, 3, L] by their first token -> [T, 6, L].

    An n-gram lies within one text, so what starts before a text's first token never reaches into it.
    """

    def earlier(x: Tensor, n: int) -> Tensor:
        return torch.cat([torch.zeros_like(x[:1]).expand(n, -1), x], 0)[: x.shape[0]]

    one, two, three = by_token.unbind(1)
    return torch.stack([one, two, earlier(two, 1), three, earlier(three, 1), earlier(three, 2)], 1)


class Trunk(nn.Module):
    """Encoder and both streams."""

    def __init__(self, config: BetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: Encoder | PretrainedEncoder = (
            Encoder(config) if config.pretrained is None else PretrainedEncoder(config)
        )
        self.words = WordsStream(config)
        self.evidence = EvidenceStream(config)

    def forward(self, segments: Segments, tokens: Tokens, by_token: Tensor) -> Streams:
        """Segments of R texts, their tokens, and the evidence at each [T, 3, L] -> Streams."""
        position = position_features(segments.offset, take(tokens.lengths, segments.row)[:, None])
        x = self.encoder(self._with_unknowns(segments), segments.mask, position)
        words = self.words(x, segments, tokens.lengths)
        return Streams(words, self.evidence(x, by_token, position, segments, tokens))

    def _with_unknowns(self, segments: Segments) -> Tensor:
        """The ids [S, c], in training with a share of them unknown, so that no single word is relied on."""
        if not self.training:
            return segments.ids
        dropped = torch.rand(segments.ids.shape, device=segments.ids.device) < self.config.token_dropout
        return torch.where(dropped & segments.mask, self.config.unk_token_id, segments.ids)
