"""Which n-grams speak for and against an answer: the largest terms of the sum that is a text's evidence.

A term counts as the posterior uses it: times α, towards the class that was predicted. With two classes that is its
log-odds, negated where class 0 was predicted; with more, the predicted class's column less the mean over columns, since
what is added to all columns changes no probability.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from train.model.evidence import SIZES
from train.model.segments import FILL, Tokens, take


class LeadingNgrams(NamedTuple):
    """The k distinct n-grams of each of R texts that weigh most, the heaviest first."""

    nats: Tensor  # [R, k] float32; positive for the predicted class, 0 where there is none
    ids: Tensor  # [R, k, 3] int64, token ids; FILL behind the end of a shorter one, and where there is none


def leading_ngrams(terms: Tensor, tokens: Tokens, predicted: Tensor, scale: Tensor, k: int) -> LeadingNgrams:
    """Choose the n-grams with the largest absolute terms.

    Args:
        terms: [T, 3, L], of `Evidence`.
        tokens: what they were read from.
        predicted: [R] int64, the class of each text.
        scale: α, [] float32.
        k: how many of a text.
    """
    rows = predicted.shape[0]
    towards = towards_class(terms, take(predicted, tokens.row))
    # k more tokens that say nothing, and of no text: a batch may have fewer.
    towards, row = pad(towards, (0, 0, 0, k)), pad(tokens.row, (0, k), value=-1)
    # The k tokens of each text at which the largest terms start hold all that are wanted: a third of the comparisons.
    own = torch.arange(rows, device=row.device)[:, None] == row
    start = torch.where(own, towards.abs().amax(1), 0.0).topk(k, dim=1)  # of [R, T + k]
    said = (take(towards, start.indices) * (start.values > 0)[:, :, None]).flatten(1)  # [R, 3k]
    chosen = said.abs().topk(k, dim=1).indices
    nats = scale * said.gather(1, chosen)
    ids = _ids(tokens.ids, start.indices).gather(1, chosen[:, :, None].expand(-1, -1, SIZES))
    return LeadingNgrams(nats, torch.where(nats[:, :, None] != 0, ids, FILL))


def towards_class(terms: Tensor, predicted: Tensor) -> Tensor:
    """What each n-gram adds to the logit of the class `predicted` [T], before α: [T, 3] log-odds."""
    if terms.shape[2] == 1:
        return torch.where(predicted[:, None] > 0, terms[:, :, 0], -terms[:, :, 0])
    chosen = predicted[:, None, None].expand(-1, SIZES, 1)
    return terms.gather(2, chosen)[:, :, 0] - terms.mean(2)


def _ids(ids: Tensor, start: Tensor) -> Tensor:
    """Token ids [R, 3k, 3] of the 1-, 2- and 3-gram that starts at each token [R, k], FILL behind the end."""
    j = torch.arange(SIZES, device=ids.device)
    window = take(pad(ids, (0, start.shape[1] + SIZES), value=FILL), start[:, :, None] + j)  # [R, k, 3]
    return torch.where(j <= j[:, None], window[:, :, None], FILL).flatten(1, 2)
