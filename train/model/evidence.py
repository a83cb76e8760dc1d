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
SIZES = len(HASH_FACTORS)  # 1-, 2- and 3-grams; what is computed for all of them at once is [3, …]


class Evidence(NamedTuple):
    """What the n-grams of R texts say."""

    total: Tensor  # [R, L] log-odds
    novelty: Tensor  # [R, 2], of bigrams and trigrams
    by_token: Tensor  # [T, 3, L], weighted evidence of the 1-, 2- and 3-gram that starts at each token
    terms: Tensor  # [T, 3, L], the same where it counts, else 0: with the bias, the total is their sum


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
        n = torch.arange(1, SIZES + 1, device=tokens.ids.device)[:, None]
        hashed, whole, foreign = _hashes(tokens, self.unk_token_id)
        weight = occurrence_weight(tokens.place, (length - n - tokens.place).clamp(min=0), length)  # [3, T]
        if member is None:
            value, known = self._look_up(hashed)
            known = known & ~foreign
        else:
            value, known = member.transpose(0, 1), whole
        value = value * (known & whole)[:, :, None].to(value.dtype)
        weighted = (value * weight[:, :, None]).transpose(0, 1)  # [T, 3, L]
        counts = _at_heaviest_place(hashed, whole, tokens.row, weight)
        terms = weighted * counts.transpose(0, 1)[:, :, None].to(value.dtype)
        unseen = counts & ~known
        columns = torch.cat([unseen[1:], counts[1:]]).transpose(0, 1).to(value.dtype)  # [T, 4]
        summed = sum_by_row(torch.cat([terms.flatten(1), columns], 1), tokens.row, rows)
        total = summed[:, :-4].reshape(rows, SIZES, -1).sum(1) + (self.bias if member_bias is None else member_bias)
        novelty = novelty_of(summed[:, -4:-2], summed[:, -2:])
        return Evidence(total, novelty if member is None else torch.zeros_like(novelty), weighted, terms)

    def _look_up(self, hashed: Tensor) -> tuple[Tensor, Tensor]:
        """Evidence [3, T, L] of each n-gram [3, T], and whether training knew it [3, T]."""
        values, known = [self.unigram[hashed[0]]], [torch.ones_like(hashed[0], dtype=torch.bool)]
        slots = hashed % self.slots
        for n in HASHED:
            slot = slots[n - 1]
            # Never `hashed // slots`: exported, the division of 64-bit integers runs in float32 and real text is wrong.
            owner = getattr(self, f"fingerprint_{n}")[slot].to(torch.int64) * self.slots + slot
            values.append(getattr(self, f"evidence_{n}")[slot])
            known.append(owner == hashed[n - 1])
        return torch.stack(values), torch.stack(known)


def novelty_of(unseen: Tensor, distinct: Tensor) -> Tensor:
    """Novelty √N (U/N)⁴ of texts with U unseen of N distinct n-grams; both of one shape, float.

    Its rate counts for more than its amount: with U²/N a long review was as novel as a short piece of code. On
    validation rows the likelihood is the same (.2154 against .2153 nats).
    """
    n = distinct.clamp(min=1)
    return n.sqrt() * (unseen / n) ** 4


def token_windows(ids: Tensor, size: int) -> list[Tensor]:
    """The ids [T] of the token at each place, of the next one, and so on to `size` - 1 further; FILL beyond the end."""
    longer = torch.cat([ids, torch.full_like(ids[:1], FILL).expand(size - 1)])
    return [longer[j : ids.shape[0] + j] for j in range(size)]


def _hashes(tokens: Tokens, unknown: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hash of each n-gram that starts at a token, whether it lies within one text, and whether it is surely unseen.

    Each [3, T]. With an unknown token in it, it is another one at every place, or a text in another script would hold
    just one.
    """
    parts, rows = token_windows(tokens.ids, SIZES), token_windows(tokens.row, SIZES)
    read = [part.clamp(min=0) for part in parts]
    inside = [(part >= 0) & (row == tokens.row) for part, row in zip(parts, rows, strict=True)]
    strange = [part == unknown for part in parts]
    # What is learnt of the unknown token itself is known.
    hashes, whole, foreign = [read[0]], [inside[0]], [torch.zeros_like(strange[0])]
    strange_so_far = strange[0]
    for n in HASHED:
        hashes.append(_dot(read[:n], HASH_FACTORS[n]))
        whole.append(whole[-1] & inside[n - 1])
        strange_so_far = strange_so_far | strange[n - 1]
        foreign.append(strange_so_far)
    unseen = torch.stack(foreign)
    hashed = torch.where(unseen, tokens.place.clamp(min=0), torch.stack(hashes) % HASH_PRIME)
    return hashed, torch.stack(whole), unseen


def _dot(parts: list[Tensor], factors: tuple[int, ...]) -> Tensor:
    total = parts[0] * factors[0]
    for part, factor in zip(parts[1:], factors[1:], strict=True):
        total = total + part * factor
    return total


def _at_heaviest_place(hashed: Tensor, valid: Tensor, row: Tensor, weight: Tensor) -> Tensor:
    """Whether each n-gram [3, T] counts: no other place of its text has the same one, with more weight or later.

    It is the last of its run in an order by text, hash and weight. One sort serves all texts: the text's number stands
    above the 40 bits of the hash, the weight in thousandths below.
    """
    steps = torch.round(weight * 1000).to(torch.int64)
    key = (row * (1 << 40) + hashed) * _WEIGHT_STEPS + steps
    combined, order = torch.sort(torch.where(valid, key, torch.full_like(key, -1)), dim=1)
    key, row, valid = hashed.gather(1, order), row[order], combined >= 0
    differs = (key[:, 1:] != key[:, :-1]) | (row[:, 1:] != row[:, :-1]) | ~valid[:, :-1]
    last = valid & torch.cat([differs, torch.ones_like(valid[:, :1])], 1)
    return torch.zeros_like(last).scatter(1, order, last)
