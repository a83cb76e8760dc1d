"""The two streams of the trunk: what the words say, and what they make of the evidence.

The words stream reads word vectors alone; pretraining taught its encoder. The evidence stream sees at each token the
n-gram evidence that covers it beside the encoder's hidden state, so that it can discount evidence that the words deny
("not bad at all"), and corrects the text's evidence through a gate that starts at zero. Both work on segments: nothing
crosses a segment's border except what `train.model.reading` joins over a text, so a text is a set of segments that know
their true place. Token states are flat, [S * c, width]: a graph then has one node for a layer and its bias.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from train.model.attention import LocalBlock, MartingaleAwareAttention, gelu, together
from train.model.config import BetConfig
from train.model.dropout import ByteDropout, shares_dropped
from train.model.position import FEATURES, length_feature, position_features
from train.model.pretrained import PretrainedEncoder
from train.model.reading import Pool, read_texts, values_and_one
from train.model.segments import Segments, Tokens, take

_PROJECTED, _COUNTED = 16, 2  # moments of 16 projections and 2 soft counts of the hidden states
SUMMARISED = (_PROJECTED, _PROJECTED, _COUNTED)  # of one stream: means, deviations, counts
_COVERING = 6  # n-grams up to 3 that cover a token: 1 + 2 + 3
_FEATURE_DROPOUT = 0.1  # of the evidence features; members never saw the text, but they are not independent of it


class Streams(NamedTuple):
    """Logits of R texts before they are joined."""

    words: Tensor  # [R, K, L], one for each order
    evidence: Tensor  # [R, L]


class Parts(NamedTuple):
    """What a stream makes of the tokens of its segments, before they are read as texts."""

    pool: Pool
    moments: Tensor  # [S, c, 16]
    counts: Tensor  # [S, c, 2], before softplus
    states: Tensor  # [S, c, width], whose mean over a segment votes


class SegmentConvolution(nn.Module):
    """Residual convolution over the tokens of a segment; a segment's border is a text's border to it."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [S * c, width], mask [S, c] -> [S * c, width]."""
        present = self.norm(x).reshape(*mask.shape, -1) * mask[..., None].to(x.dtype)
        mixed: Tensor = x + gelu(self.convolution(present.transpose(1, 2)).transpose(1, 2).reshape(-1, x.shape[1]))
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

    def forward(self, ids: Tensor, position: Tensor, segments: Segments) -> Tensor:
        """ids [S, c], position features [S, c, 8] -> hidden states [S * c, width]."""
        vectors = self.dropout(self.embedding(ids.flatten()))
        x = self.project_in(vectors) + self.position(position.flatten(0, 1))
        x = self.convolution(x, segments.mask)
        for block in self.blocks:
            x = block(x, segments)
        hidden: Tensor = self.norm(x)
        return hidden


class Summary(nn.Module):
    """A text's logits from what does not depend on the order of its segments: moments, soft counts, and votes.

    Moments and counts are over tokens; a segment's vote is bounded, so that one segment cannot outshout a text.
    """

    def __init__(self, width: int, columns: int) -> None:
        super().__init__()
        self.moments, self.counts = nn.Linear(width, _PROJECTED), nn.Linear(width, _COUNTED)
        self.from_statistics = nn.Linear(sum(SUMMARISED) + 1, columns)
        nn.init.zeros_(self.from_statistics.weight)  # the first answer is the prior
        self.vote = nn.Linear(width, columns)
        nn.init.normal_(self.vote.weight, std=0.02)
        self.log_vote_scale = nn.Parameter(torch.zeros(columns))


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
        self.summary = Summary(width, columns)

    def forward(self, x: Tensor, segments: Segments) -> Parts:
        """Hidden states [S * c, width] -> Parts."""
        ranks = self.readout.random_ranks(self.config.training_orders) if self.training else None
        value = values_and_one(self.readout.value, self.readout.heads)
        layers = (self.readout.key, value, self.summary.moments, self.summary.counts)
        key, values, moments, counts = together(x, segments, *layers)
        pool = self.readout.pool(key, values, segments, ranks)
        return Parts(pool, moments, counts, x.reshape(*segments.mask.shape, -1))

    def answer(self, read: Tensor, summary: Tensor) -> Tensor:
        """What was read of R texts [R, K, width], logits of their summaries [R, L] -> logits [R, K, L]."""
        logits: Tensor = self.from_readout(self.dropout(self.readout_norm(read))) + summary[:, None]
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
        self.summary = Summary(width, columns)
        self.gate = nn.Linear(width, columns)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor, by_token: Tensor, position: Tensor, segments: Segments) -> tuple[Parts, Tensor]:
        """Hidden states [S * c, width], evidence [T, 3, L], places [S, c, 8] -> Parts, corrections [S, c, L]."""
        token, place = segments.token.flatten(), position.flatten(0, 1)
        covering = take(covering_evidence(by_token), token)  # [S * c, 6 L]
        own = take(by_token.sum(1), token)  # [S * c, L]
        placed = (place[..., None] * own[:, None]).flatten(1)
        features = self.feature_dropout(torch.cat([covering, covering.abs()], -1))
        seen = torch.cat([self.dropout(x), features, place, placed], -1)
        # The layers' sum as one product; what scales the evidence scales its weights, which a graph holds as they are.
        of_place, of_placed = self.position.weight.tensor_split([FEATURES], 1)
        weight = [self.project_in.weight, self.evidence.weight * self.scale, of_place, of_placed * self.scale]
        bias = self.project_in.bias + self.evidence.bias + self.position.bias
        y = self.norm(self.block(nn.functional.linear(seen, torch.cat(weight, 1), bias), segments))
        value = values_and_one(self.value, self.heads)
        heads = (self.score, value, self.gate, self.summary.moments, self.summary.counts)
        score, values, gate, moments, counts = together(y, segments, *heads)
        pool = Pool(score.transpose(1, 2)[:, :, None], values.unflatten(-1, (self.heads, -1)).transpose(1, 2))
        parts = Parts(pool, moments, counts, y.reshape(*segments.mask.shape, -1))
        return parts, gate * own.reshape(gate.shape)

    def answer(self, read: Tensor, summary: Tensor) -> Tensor:
        """What was read of R texts [R, 1, width], logits of their summaries [R, L] -> logits [R, L]."""
        logits: Tensor = self.from_readout(self.dropout(self.readout_norm(read[:, 0]))) + summary
        return logits


def covering_evidence(by_token: Tensor) -> Tensor:
    """Evidence of the n-grams that cover each token: [T, 3, L] by their first token -> [T, 6 L].

    An n-gram lies within one text, so what starts before a text's first token never reaches into it.
    """
    columns = by_token.shape[2]
    padded = torch.cat([torch.zeros_like(by_token[:1]).expand(2, -1, -1), by_token]).flatten(1)  # [T + 2, 3 L]
    back = torch.cat([padded[2:], padded[1:-1], padded[:-2]], 1)  # [T, 9 L], by shift, then n
    # The n-gram that starts `shift` tokens back covers a token where n > shift.
    chosen = [(shift * 3 + n - 1) * columns + j for n in (1, 2, 3) for shift in range(n) for j in range(columns)]
    return back.index_select(1, torch.tensor(chosen, device=back.device))


class Summaries(nn.Module):
    """The summaries of both streams, read as one; it has no weights of its own."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = ByteDropout(dropout)

    def votes(self, states: Tensor, words: Summary, evidence: Summary) -> Tensor:
        """Mean states of segments [S, width + width] -> their bounded votes [S, L + L], by words and by evidence."""
        weight = torch.block_diag(words.vote.weight, evidence.vote.weight)
        bias = torch.cat([words.vote.bias, evidence.vote.bias])
        scale = 0.5 * torch.cat([words.log_vote_scale, evidence.log_vote_scale]).exp()
        return scale * torch.tanh(nn.functional.linear(self.dropout(states), weight, bias))

    def forward(self, statistics: Tensor, words: Summary, evidence: Summary) -> Tensor:
        """Statistics of R texts -> logits by words, then by evidence [R, 2 L].

        Args:
            statistics: [R, 69 + 3 L], the moments' means, their deviations, and counts, each of words, then of
                evidence; the length; corrections, votes by words, votes by evidence.
            words: of the words stream.
            evidence: of the evidence stream.
        """
        layers = (words.from_statistics, evidence.from_statistics)
        *parts, of_length = zip(*(layer.weight.split([*SUMMARISED, 1], 1) for layer in layers), strict=True)
        one = torch.eye(layers[0].out_features, device=statistics.device, dtype=layers[0].weight.dtype)
        # The evidence's logits take the corrections, and each stream's its own votes.
        added = torch.cat([torch.cat([torch.zeros_like(one), one]), torch.block_diag(one, one)], 1)
        weight = torch.cat([*(torch.block_diag(*part) for part in parts), torch.cat(of_length), added], 1)
        return nn.functional.linear(statistics, weight, torch.cat([layer.bias for layer in layers]))


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
        self.summaries = Summaries(config.hidden_dropout)

    def forward(self, segments: Segments, tokens: Tokens, by_token: Tensor) -> Streams:
        """Segments of R texts, their tokens, and the evidence at each [T, 3, L] -> Streams."""
        position = position_features(segments.offset, take(tokens.lengths, segments.row)[:, None])
        x = self.encoder(self._with_unknowns(segments, tokens.lengths.shape[0]), position, segments)
        words = self.words(x, segments)
        evidence, corrections = self.evidence(x, by_token, position, segments)
        reads, statistics = self._read(words, evidence, corrections, segments, tokens.lengths)
        by_words, by_evidence = self.summaries(statistics, self.words.summary, self.evidence.summary).chunk(2, 1)
        return Streams(self.words.answer(reads[0], by_words), self.evidence.answer(reads[1], by_evidence))

    def _with_unknowns(self, segments: Segments, rows: int) -> Tensor:
        """The ids [S, c], in training with some of them unknown, so that no single word is relied on.

        Of most texts few are, of some nearly all, so that the streams learn to say nothing where they can read nothing:
        with one share for all texts, unknown words had come to speak for a class, and code got a sure answer.
        """
        if not self.training:
            return segments.ids
        share = take(shares_dropped(rows, self.config.token_dropout, segments.ids.device), segments.row)
        dropped = torch.rand(segments.ids.shape, device=segments.ids.device) < share[:, None]
        return torch.where(dropped & segments.mask, self.config.unk_token_id, segments.ids)

    def _read(
        self, words: Parts, evidence: Parts, corrections: Tensor, segments: Segments, lengths: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Read the parts as texts: what the pools read, and the statistics for `Summaries`.

        What is summed over tokens is summed in one pass.
        """
        moments = torch.cat([words.moments, evidence.moments], -1)
        counts = nn.functional.softplus(torch.cat([words.counts, evidence.counts], -1))
        mask, n = segments.mask[..., None].to(moments.dtype), lengths.to(moments.dtype).clamp(min=1)[:, None]
        summands = torch.cat([moments, counts, corrections, words.states, evidence.states], -1)
        columns = corrections.shape[2]
        kept = 2 * _PROJECTED + 2 * _COUNTED + columns
        over_tokens, states = (summands * mask).sum(1).tensor_split([kept], 1)
        votes = self.summaries.votes(states / mask.sum(1).clamp(min=1), self.words.summary, self.evidence.summary)
        reads, summed = read_texts([words.pool, evidence.pool], torch.cat([over_tokens, votes], 1), segments)
        total, counted, added = summed.split([2 * _PROJECTED, 2 * _COUNTED, 3 * columns], 1)
        mean = total / n
        away = moments - take(mean, segments.row)[:, None]
        deviation = (segments.member.to(away.dtype) @ (away * away * mask).sum(1) / n + 1e-6).sqrt()
        return reads, torch.cat([mean, deviation, torch.log1p(counted), length_feature(n), added], 1)
