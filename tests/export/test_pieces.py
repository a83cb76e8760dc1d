"""Pieces of any tokenizer's vocabulary read as text when they are put one behind the other."""

from __future__ import annotations

import pytest

from export.pieces import NGRAM_SEPARATOR, piece_table


@pytest.mark.parametrize(
    ("pieces", "ngram", "text"),
    [
        (("un", "##believ", "##ably", "good"), (0, 1, 2), "unbelievably"),
        (("un", "##believ", "##ably", "good"), (2, 3), "##ably good"),
        (("un", "##believ", "##ably", "good"), (3,), "good"),
        (("\u0120not", "\u0120bad", "ly"), (0, 1, 2), "not badly"),
        (("\u0120caf", "\u00c3\u00a9"), (0, 1), "caf\u00e9"),
        (("\u2581not", "\u2581bad", "ly"), (0, 1, 2), "not badly"),
    ],
)
def test_an_ngram_reads_as_it_was_written(pieces: tuple[str, ...], ngram: tuple[int, ...], text: str) -> None:
    table, later = piece_table(pieces), len(pieces) + 1
    assert "".join([table[ngram[0]], *(table[later + i] for i in ngram[1:])]) == text


def test_what_is_missing_reads_as_nothing_at_every_place() -> None:
    table = piece_table(["a", "##b"])
    assert len(table) == 6
    assert table[-1] == table[-1 + 3] == ""


def test_no_piece_holds_the_separator() -> None:
    assert not any(NGRAM_SEPARATOR in text for text in piece_table(["a\n", "\u0120", "\u010a"]))
