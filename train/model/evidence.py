"""SufficientStatsEncoder: the evidence of a text as sums over its distinct n-grams, and how much of it is new.

The sufficient statistics of a text are the 1-, 2- and 3-grams that occur in it, each with the weight of its heaviest
place (`train.model.position`). Each carries a log-odds that `train.evidence` learned; their weighted sum is the
evidence, and it does not depend on the order in which segments are read. Unigrams are indexed by token; n = 2, 3 are
hashed into a table whose slots record a fingerprint of their owner, so that a foreign n-gram counts as *never seen*
instead of borrowing another's evidence. Novelty is √N (U/N)⁴: U of the N distinct n-grams of the text were never seen
in training. An n-gram with an unknown token was never seen, each time it occurs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from train.model.position import occurrence_weight
from train.model.segments import FILL, Tokens, sum_by_row

HASH_PRIME = (1 << 40) - 87
HASH_FACTORS = {
    1: (1,),  # the token itself
    2: (589134672113, 912387465029),
    3: (398712564481, 671209834157, 1034518276381),
}
HASHED = (2, 3)
MAX_ROWS = 1 << 11  # texts of one batch: row, hash and weight share the 63 bits of a sort key as 11 + 40 + 12
_WEIGHT_STEPS = 1 << 12  # above the largest weight in thousandths


class Evidence(NamedTuple):
    """What the n-grams of R texts say."""

    total: Tensor  # [R, L] log-odds
    novelty: Tensor  # [R, 2], of bigrams and trigrams
    by_token: Tensor  # [T, 3, L], weighted evidence of the 1-, 2- and 3-gram that starts at each token


class SufficientStatsEncoder(nn.Module):
    """Weighted sum of the evidence of the distinct n-grams of each text, and its novelty.

    Buffers: `bias` [L], `unigram` [V, L]; for n = 2, 3 `fingerprint_n` [M] int32 (-1: free slot), `evidence_n` [M, L].
    """

    unigram: Tensor
    bias: Tensor

    def __init__(self, vocab_size: int, slots: int, columns: int, unk_token_id: int) -> None:
        super().__init__()
        self.slots, self.unk_token_id = slots, unk_token_id
        self.register_buffer("unigram", torch.zeros(vocab_size, columns))
        self.register_buffer("bias", torch.zeros(columns))
        for n in HASHED:
            self.register_buffer(f"fingerprint_{n}", torch.full((slots,), -1, dtype=torch.int32))
            self.register_buffer(f"evidence_{n}", torch.zeros(slots, columns))

    def forward(self, tokens: Tokens, member: Tensor | None = None, member_bias: Tensor | None = None) -> Evidence:
        """Read the evidence of R texts.

        Args:
            tokens: at most `MAX_ROWS` texts.
            member: [T, 3, L], evidence of the n-gram that starts at each token (0: unknown) to use instead of the
                tables: in training, that of the member that never saw the text.
            member_bias: [R, L], that member's intercept.
        """
        rows = tokens.lengths.shape[0]
        length = tokens.lengths[tokens.row]
        total = self.bias.expand(rows, -1) if member_bias is None else member_bias
        by_token, novelty = [], []
        for n, factors in HASH_FACTORS.items():
            hashed, whole, foreign = _hashes(tokens, factors, self.unk_token_id)
            weight = occurrence_weight(tokens.place, (length - n - tokens.place).clamp(min=0), length)
            if member is None:
                value, known = self._look_up(n, hashed)
                known = known & ~foreign
            else:
                value, known = member[:, n - 1], whole
            value = value * (known & whole)[:, None].to(value.dtype)
            weighted = value * weight[:, None]
            by_token.append(weighted)
            order, row, heaviest = _at_heaviest_place(hashed, whole, tokens.row, weight)
            chosen = weighted[order] * heaviest[:, None].to(value.dtype)
            if n in HASHED and member is None:
                counts = torch.stack([heaviest & ~known[order], heaviest], 1).to(value.dtype)
                summed = sum_by_row(torch.cat([chosen, counts], 1), row, rows)
                unseen, distinct = summed[:, -2], summed[:, -1]
                novelty.append(novelty_of(unseen, distinct))
                total = total + summed[:, :-2]
            else:
                total = total + sum_by_row(chosen, row, rows)
        unknown = [torch.zeros_like(total[:, 0])] * len(HASHED)
        return Evidence(total, torch.stack(novelty or unknown, 1), torch.stack(by_token, 1))

    def _look_up(self, n: int, hashed: Tensor) -> tuple[Tensor, Tensor]:
        """Evidence [T, L] of each n-gram, and whether training knew it [T]."""
        if n not in HASHED:
            return self.unigram[hashed], torch.ones_like(hashed, dtype=torch.bool)
        slot = hashed % self.slots
        # Never `hashed // slots`: exported, the division of 64-bit integers runs in float32 and real text is wrong.
        owner = getattr(self, f"fingerprint_{n}")[slot].to(torch.int64) * self.slots + slot
        return getattr(self, f"evidence_{n}")[slot], owner == hashed


def novelty_of(unseen: Tensor, distinct: Tensor) -> Tensor:
    """Novelty √N (U/N)⁴ of texts with U unseen of N distinct n-grams; both [R], float.

    Its rate counts for more than its amount: with U²/N a long review was as novel as a short piece of code. On
    validation rows the likelihood is the same (.2154 against .2153 nats).
    """
    n = distinct.clamp(min=1)
    return n.sqrt() * (unseen / n) ** 4


def _hashes(tokens: Tokens, factors: tuple[int, ...], unknown: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hash of the n-gram that starts at each token, whether it lies within one text, and whether it is surely unseen.

    With an unknown token in it, it is another one at every place, or a text in another script would hold just one.
    """
    n, total = len(factors), tokens.ids.shape[0]
    beyond = torch.full_like(tokens.ids[:1], FILL).expand(n - 1)
    ids, row = torch.cat([tokens.ids, beyond]), torch.cat([tokens.row, beyond])
    hashed = torch.zeros_like(tokens.ids)
    whole, foreign = tokens.ids >= 0, torch.zeros_like(tokens.ids, dtype=torch.bool)
    for j, factor in enumerate(factors):
        part = ids[j : total + j]
        hashed = hashed + part.clamp(min=0) * factor
        whole = whole & (part >= 0) & (row[j : total + j] == tokens.row)
        foreign = foreign | (part == unknown)
    if n == 1:  # what is learnt of the unknown token itself is known
        foreign = torch.zeros_like(foreign)
    return torch.where(foreign, tokens.place.clamp(min=0), hashed % HASH_PRIME), whole, foreign


def _at_heaviest_place(hashed: Tensor, valid: Tensor, row: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort n-grams by text, hash and weight, and mark the last of each run: (order, row, is it), each [T].

    One sort serves all texts: the text's number stands above the 40 bits of the hash, the weight in thousandths below.
    """
    steps = torch.round(weight * 1000).to(torch.int64)
    key = (row * (1 << 40) + hashed) * _WEIGHT_STEPS + steps
    combined, order = torch.sort(torch.where(valid, key, torch.full_like(key, -1)))
    key, row, valid = hashed[order], row[order], combined >= 0
    differs = (key[1:] != key[:-1]) | (row[1:] != row[:-1]) | ~valid[:-1]
    return order, row, valid & torch.cat([differs, torch.ones_like(valid[:1])])
