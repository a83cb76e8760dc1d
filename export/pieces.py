"""The pieces of named n-grams as text that reads when they are put one behind the other.

A graph can gather strings from a constant, and not join them. So each piece stands in the table twice: as it opens an
n-gram, and as it goes on, with the space before it that a new word has.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders

NGRAM_SEPARATOR = "\n"  # between n-grams where a text's are one string; no piece holds it
_CONTINUED, _SPACE, _BYTE_SPACE = "##", "\N{LOWER ONE EIGHTH BLOCK}", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"


def vocabulary(tokenizer: Tokenizer, size: int) -> list[str]:
    """The tokenizer's own names of the ids below `size`; empty for one that it does not have."""
    return [tokenizer.id_to_token(i) or "" for i in range(size)]


def piece_table(pieces: Sequence[str]) -> list[str]:
    """V pieces -> 2V + 2 texts: V that open an n-gram, an empty one, V that go on, an empty one.

    Index -1, from the end, is so empty, and V + 1 beyond it as well. WordPiece marks what goes on with a word,
    byte-level BPE and SentencePiece what begins one. Only the first mark is shown, where it opens an n-gram: `##ing`.
    """
    if any(piece.startswith(_CONTINUED) for piece in pieces):
        opening = list(pieces)
        going_on = [piece.removeprefix(_CONTINUED) if piece.startswith(_CONTINUED) else f" {piece}" for piece in pieces]
    else:
        by_bytes = decoders.ByteLevel() if any(piece.startswith(_BYTE_SPACE) for piece in pieces) else None
        going_on = [by_bytes.decode([piece]) if by_bytes else piece.replace(_SPACE, " ") for piece in pieces]
        opening = [text.strip() or text for text in going_on]
    return [text.replace(NGRAM_SEPARATOR, " ") for text in (*opening, "", *going_on, "")]
