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
from train.model.segments import FILL, Tokens, sum_by_row, take

HASH_PRIME = (1 << 40) - 87
HASH_FACTORS = {
    1: (1,),  # the token itself
    2: (589134672113, 912387465029),
    3: (398712564481, 671209834157, 1034518276381),
}
SIZES = len(HASH_FACTORS)  # 1-, 2- and 3-grams; what is computed for all of them at once is [3, …]
HASHED = (2, 3)
# Texts of one batch: text and n, hash, and weight share the 63 bits of a sort key as 11 + 40 + 12.
MAX_ROWS = (1 << 11) // SIZES
_WEIGHT_STEPS = 1 << 12  # more than twice the range of weights in thousandths, 600 to 2,200


class Evidence(NamedTuple):
    """What the n-grams of R texts say."""

    total: Tensor  # [R, L] log-odds
    novelty: Tensor  # [R, 2], of bigrams and trigrams
    by_token: Tensor  # [T, 3, L], weighted evidence of the 1-, 2- and 3-gram that starts at each token
    terms: Tensor  # [T, 3, L], the same where it counts, else 0: with the bias, the total is their sum


class SufficientStatsEncoder(nn.Module):
    """Weighted sum of the evidence of the distinct n-grams of each text, and its novelty.

    Buffers: `bias` [L], `unigram` [V, L]; for n = 2, then 3, `fingerprint` [2 M] int32 (-1: free slot) and
    `ngram` [2 M, L].
    """

    unigram: Tensor
    bias: Tensor
    fingerprint: Tensor
    ngram: Tensor

    def __init__(self, vocab_size: int, slots: int, columns: int, unk_token_id: int) -> None:
        super().__init__()
        self.slots, self.unk_token_id = slots, unk_token_id
        self.register_buffer("unigram", torch.zeros(vocab_size, columns))
        self.register_buffer("bias", torch.zeros(columns))
        self.register_buffer("fingerprint", torch.full((len(HASHED) * slots,), -1, dtype=torch.int32))
        self.register_buffer("ngram", torch.zeros(len(HASHED) * slots, columns))

    def forward(self, tokens: Tokens, member: Tensor | None = None, member_bias: Tensor | None = None) -> Evidence:
        """Read the evidence of R texts.

        Args:
            tokens: at most `MAX_ROWS` texts.
            member: [T, 3, L], evidence of the n-gram that starts at each token (0: unknown) to use instead of the
                tables: in training, that of the member that never saw the text.
            member_bias: [R, L], that member's intercept.
        """
        rows, columns = tokens.lengths.shape[0], self.bias.shape[0]
        length, place = take(tokens.lengths, tokens.row).to(torch.float32), tokens.place.to(torch.float32)
        n = torch.arange(1, SIZES + 1, device=length.device)[:, None]
        beyond = length - n - place  # [3, T], tokens of the text after the n-gram's last
        hashed, whole, foreign = _hashes(tokens, beyond, self.unk_token_id)
        thousandths = occurrence_weight(place, beyond.clamp(min=0), length)  # [3, T]
        if member is None:
            value, known = self._look_up(hashed)
            known = torch.cat([whole[:1], known]) & whole & ~foreign
        else:
            value, known = member.transpose(0, 1), whole
        weighted = (value * (thousandths / 1000 * known.to(value.dtype))[..., None]).transpose(0, 1)  # [T, 3, L]
        heaviest = _at_heaviest_place(hashed, whole, tokens.row, thousandths)
        counts = torch.stack([heaviest & ~known, heaviest], -1).transpose(0, 1).to(value.dtype)  # [T, 3, 2]
        terms = weighted * counts[..., 1:]
        summed = sum_by_row(torch.cat([terms, counts], -1).flatten(1), tokens.row, rows).unflatten(1, (SIZES, -1))
        evidence, unseen, distinct = summed.split([columns, 1, 1], -1)  # [R, 3, L], [R, 3, 1] each
        total = (self.bias if member_bias is None else member_bias) + evidence.sum(1)
        return Evidence(total, novelty_of(unseen, distinct)[:, 1:, 0], weighted, terms)

    def table(self, n: int) -> tuple[Tensor, Tensor]:
        """Fingerprints [M] and evidence [M, L] of the n-grams of length n = 2, 3, by slot; views."""
        part = slice(HASHED.index(n) * self.slots, (HASHED.index(n) + 1) * self.slots)
        return self.fingerprint[part], self.ngram[part]

    def _look_up(self, hashed: Tensor) -> tuple[Tensor, Tensor]:
        """Evidence [3, T, L] of each n-gram, and whether training knew the longer ones [2, T]; it knew all tokens."""
        first = torch.arange(len(HASHED), device=hashed.device)[:, None] * self.slots
        slot = hashed[1:] % self.slots
        # Never `hashed // slots`: exported, the division of 64-bit integers runs in float32 and real text is wrong.
        owner = take(self.fingerprint, slot + first).to(torch.int64) * self.slots + slot
        return torch.cat([take(self.unigram, hashed[:1]), take(self.ngram, slot + first)]), owner == hashed[1:]


def novelty_of(unseen: Tensor, distinct: Tensor) -> Tensor:
    """Novelty √N (U/N)⁴ of texts with U unseen of N distinct n-grams; of one shape, float.

    Its rate counts for more than its amount: with U²/N a long review was as novel as a short piece of code. On
    validation rows the likelihood is the same (.2154 against .2153 nats).
    """
    n = distinct.clamp(min=1)
    return n.sqrt() * (unseen / n) ** 4


def _hashes(tokens: Tokens, beyond: Tensor, unknown: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the n-gram that starts at each token: its hash, whether it lies within one text, and whether it is foreign.

    Each [3, T], for n = 1, 2, 3. With an unknown token in it, an n-gram is another one at every place, or a text in
    another script would hold just one; the unknown token by itself is known, and no evidence.
    """
    device = tokens.ids.device
    ids = torch.cat([tokens.ids, torch.full_like(tokens.ids[:1], FILL).expand(SIZES - 1)])
    at = torch.arange(tokens.ids.shape[0], device=device)
    part = take(ids, at + torch.arange(SIZES, device=device)[:, None])  # [3, T], the n-gram's tokens
    factors = torch.tensor([[*f, *[0] * (SIZES - n)] for n, f in HASH_FACTORS.items()], device=device)
    # Reduced before they are summed: ONNX Runtime sums 64-bit integers in floating point, exact below 2^53 alone.
    hashed = (part.clamp(min=0) * factors[..., None] % HASH_PRIME).sum(1) % HASH_PRIME
    n = torch.arange(1, SIZES + 1, device=device)[:, None]
    whole = ((part >= 0).to(torch.int64).cumsum(0) == n) & (beyond >= 0)
    foreign = ((part == unknown).to(torch.int64).cumsum(0) > 0) & (n > 1)
    return torch.where(foreign, tokens.place, hashed), whole, foreign


def _at_heaviest_place(hashed: Tensor, whole: Tensor, row: Tensor, thousandths: Tensor) -> Tensor:
    """Whether each n-gram [3, T] counts: no other place of its text has the same one, with more weight or later.

    It is the last of its run in an order by text, n, hash and weight. One sort serves all: the number of text and n
    stands above the 40 bits of the hash, the weight in thousandths below. Keys of one n-gram differ by less than half
    of the weight's range of bits, those of two by more.
    """
    block = _WEIGHT_STEPS << 40
    first = torch.arange(SIZES, device=row.device)[:, None] * block
    key = row * (SIZES * block) + hashed * _WEIGHT_STEPS + (thousandths.to(torch.int64) + first)
    combined, order = torch.sort(torch.where(whole, key, -1).flatten())
    ends = combined[1:] - combined[:-1] >= _WEIGHT_STEPS // 2
    last = (combined >= 0) & torch.cat([ends, torch.ones(1, dtype=torch.bool, device=ends.device)])
    return last.scatter(0, order, last).reshape(whole.shape)  # the order is a permutation: every entry is written
