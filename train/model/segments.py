"""Packing: texts of any lengths, end to end, cut into segments of equal length; no padding between texts.

The whole model works on this form. `input_ids` are the tokens of all texts, one after the other, `lengths` says how
many belong to each. The trunk attends inside segments of `c` tokens, so a batch costs as many segments as its texts
have, at least one each.

Notation used in all modules of this package:
    R texts (rows), T tokens of all texts, c tokens in a segment, S segments, K orders, H heads, e = width / H,
    C classes, L logit columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

FILL = -1  # completes the shorter texts of a rectangular request; no text can produce it, so it counts as nothing


class Tokens(NamedTuple):
    """Tokens of all texts with the text that each belongs to."""

    ids: Tensor  # [T] int64, FILL where a token is to be ignored
    row: Tensor  # [T] int64, the text of each token
    place: Tensor  # [T] int64, tokens before it in its text
    lengths: Tensor  # [R] int64, tokens that count, per text


class Segments(NamedTuple):
    """The same tokens laid out in segments; a text without tokens has one, which is empty."""

    ids: Tensor  # [S, c] int64, 0 where the mask is False
    mask: Tensor  # [S, c] bool
    token: Tensor  # [S, c] int64, which of the T tokens
    offset: Tensor  # [S, c] int64, tokens before it in its text
    row: Tensor  # [S] int64, the text of each
    place: Tensor  # [S] int64, place of each within its text
    per_row: Tensor  # [R] int64, segments of each text, at least 1
    member: Tensor  # [R, S] float32, 1 where it holds tokens of the text: sums over a text are a product with it


def read_tokens(input_ids: Tensor, lengths: Tensor, *, max_length: int, vocab_size: int) -> Tokens:
    """Assign tokens to texts and ignore what must not count.

    A text that is longer than `max_length` keeps its first `max_length` tokens; a text of length 0 has none; an id that
    is not in the vocabulary counts as nothing. None of these fails the batch that it was joined in, or moves the tokens
    of its neighbours, whose starts come from the lengths as given.

    Args:
        input_ids: [T] int64, texts end to end; `FILL` at the end of a text counts as nothing.
        lengths: [R, 1] int32 or int64, tokens of each text, fill included.
        max_length: tokens that a text may have.
        vocab_size: ids that have a vector.
    """
    width = lengths[:, 0].to(torch.int64).clamp(min=0)
    ends = torch.cumsum(width, 0)
    position = torch.arange(input_ids.shape[0], device=input_ids.device)
    row = (position[:, None] >= ends[None, :]).sum(1).clamp(max=width.shape[0] - 1)
    place = position - take(ends - width, row)
    counts = (input_ids >= 0) & (input_ids < vocab_size) & (place < take(torch.clamp(width, max=max_length), row))
    ids = torch.where(counts, input_ids, FILL)
    true = torch.zeros_like(width).scatter_add(0, row, counts.to(torch.int64))
    return Tokens(ids, row, place, true)


def segment(tokens: Tokens, input_lengths: Tensor, c: int) -> Segments:
    """Cut every text into segments of `c` tokens.

    Args:
        tokens: of `read_tokens`.
        input_lengths: [R, 1], the lengths that were given (fill included): where each text starts.
        c: tokens in a segment.
    """
    total, rows = tokens.ids.shape[0], tokens.lengths.shape[0]
    device = tokens.ids.device
    width = input_lengths[:, 0].to(torch.int64).clamp(min=0)
    start = torch.cumsum(width, 0) - width
    count = (tokens.lengths.to(torch.float32).clamp(min=1) / c).ceil().to(torch.int64)  # exact below 2^24 tokens
    last = torch.cumsum(count, 0)
    number = torch.arange(_segments(last[-1], total // c + rows), device=device)
    row = (number[:, None] >= last[None, :]).sum(1)
    index = number - take(last - count, row)
    offset = index[:, None] * c + torch.arange(c, device=device)[None, :]
    length = take(tokens.lengths, row)
    mask = offset < length[:, None]
    some = mask[:, 0]
    token = (take(start, row)[:, None] + offset).clamp(max=total - 1)
    ids = take(tokens.ids, token)
    mask = mask & (ids >= 0)
    member = (torch.where(some, row, -1) == torch.arange(rows, device=device)[:, None]).to(torch.float32)
    return Segments(torch.where(mask, ids, 0), mask, token, offset, row, index, count, member)


def _segments(count: Tensor, most: int) -> Any:
    """How many segments there are, as exporters can follow it: a text needs at most one beyond its full ones."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return count  # a number would be a constant of the trace
    segments: Any = count.item()
    torch._check(segments >= 1)
    torch._check(segments <= most)
    return segments


def take(values: Tensor, index: Tensor) -> Tensor:
    """`values[index]` along the first axis, values [N] or [N, F]: one node in a graph, where indexing is five."""
    if values.ndim == 2:
        return nn.functional.embedding(index, values)
    return values.gather(0, index) if index.ndim == 1 else values.gather(0, index.flatten()).reshape(index.shape)


def sum_by_row(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sum `values` [N, F] over the entries of each text: [rows, F]."""
    out = torch.zeros(rows, values.shape[1], dtype=values.dtype, device=values.device)
    return out.scatter_add(0, row[:, None].expand(-1, values.shape[1]), values)
