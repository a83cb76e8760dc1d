"""SufficientStatsEncoder: the evidence of a text as sums over its distinct n-grams, and how much of it is new.

The sufficient statistics of a text are the 1-, 2- and 3-grams that occur in it. Each carries a log-odds that
`train.evidence` learned; their sum is the evidence, and it does not depend on the order of the n-grams. Unigrams are
indexed by token; n = 2, 3 are hashed into a table whose slots record a fingerprint of their owner, so that a foreign
n-gram counts as *never seen* instead of borrowing another's evidence. Novelty is U²/N: U of the N distinct n-grams of
the text were never seen in training, each weighing as much as the text's own rate of unseen ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.model.segments import FILL, Tokens, sum_by_row

HASH_PRIME = (1 << 40) - 87
HASH_FACTORS = {2: (589134672113, 912387465029), 3: (398712564481, 671209834157, 1034518276381)}


class SufficientStatsEncoder(nn.Module):
    """Sum of the evidence of the distinct n-grams of each text, and its novelty.

    Buffers: `bias` [L], `unigram` [V, L]; for n = 2, 3 `fingerprint_n` [M] int32 (-1: free slot), `evidence_n` [M, L].
    """

    unigram: Tensor
    bias: Tensor

    def __init__(self, vocab_size: int, slots: int, columns: int) -> None:
        super().__init__()
        self.slots = slots
        self.register_buffer("unigram", torch.zeros(vocab_size, columns))
        self.register_buffer("bias", torch.zeros(columns))
        for n in HASH_FACTORS:
            self.register_buffer(f"fingerprint_{n}", torch.full((slots,), -1, dtype=torch.int32))
            self.register_buffer(f"evidence_{n}", torch.zeros(slots, columns))

    def forward(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Tokens of R texts -> evidence [R, L] (log-odds), novelty [R, 2] (U²/N of bigrams, of trigrams)."""
        rows = tokens.lengths.shape[0]
        key, row, first = _distinct(tokens.ids.clamp(min=0), tokens.ids >= 0, tokens.row)
        evidence = self.bias + sum_by_row(self.unigram[key] * first[:, None].to(self.unigram.dtype), row, rows)
        novelty = []
        for n, factors in HASH_FACTORS.items():
            key, row, first = _distinct(*_hashes(tokens, factors), tokens.row)
            fingerprint, table = getattr(self, f"fingerprint_{n}"), getattr(self, f"evidence_{n}")
            slot = key % self.slots
            # Never `key // slots`: exported, the division of 64-bit integers runs in float32 and real text is wrong.
            known = first & (fingerprint[slot].to(torch.int64) * self.slots + slot == key)
            evidence = evidence + sum_by_row(table[slot] * known[:, None].to(table.dtype), row, rows)
            counts = torch.stack([(first & ~known), first], 1).to(table.dtype)
            unseen, distinct = sum_by_row(counts, row, rows).unbind(1)
            novelty.append(unseen * unseen / distinct.clamp(min=1))
        return evidence, torch.stack(novelty, 1)


def _hashes(tokens: Tokens, factors: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Hash of the n-gram that starts at each token, and whether it lies within one text."""
    n, total = len(factors), tokens.ids.shape[0]
    beyond = torch.full_like(tokens.ids[:1], FILL).expand(n - 1)
    ids, row = torch.cat([tokens.ids, beyond]), torch.cat([tokens.row, beyond])
    hashed = torch.zeros_like(tokens.ids)
    whole = tokens.ids >= 0
    for j, factor in enumerate(factors):
        hashed = hashed + ids[j : total + j].clamp(min=0) * factor
        whole = whole & (ids[j : total + j] >= 0) & (row[j : total + j] == tokens.row)
    return hashed % HASH_PRIME, whole


def _distinct(key: Tensor, valid: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort keys by text and mark the first of each run of equals: (key, row, is first and valid), each [T].

    One sort serves all texts: the text's number stands above the 40 bits of the key.
    """
    combined = torch.where(valid, row * (1 << 40) + key, torch.full_like(key, -1))
    combined, order = torch.sort(combined)
    first = torch.cat([torch.ones_like(valid[:1]), combined[1:] != combined[:-1]])
    return key[order], row[order], first & (combined >= 0)
