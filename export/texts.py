"""The texts of the gate: real ones, at every length that a user can send.

A graph that is right at one shape may be wrong at another, and right on random ids may be wrong on text. So the texts
are the corpus' own, grouped in length buckets from one token to beyond the limit; where a corpus has no text of a
length, one is made of its texts, by cutting or joining them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.encoder import Ids, TextEncoder
from export.errors import GateError

HOSTILE = (
    "good\0bad",  # a string must not end at NUL
    "\0\0\0 ... \0",
    "👩‍👩‍👧‍👦 great 🎬🍿 👍🏽",  # zero-width joiners, skin tones
    "café cafe\u0301 naïve nai\u0308ve",  # composed and decomposed
    "\u202egnihton ,yako\u202c שלום עולם",  # bidirectional overrides
    "[UNK] [PAD] [CLS] [SEP] <pad> </s>",  # special tokens are plain text
    "a" * 100 + " " + "b" * 101,  # at and over usual limits of a word
    "\u200b\ufeff\u2060",  # nothing that is visible
    "<br /><br/>\r\n\t  terrible<br />",
    "電影很好看。 Ταινία! фильм 🎥",
)
"""Texts made to hurt; they are answered like any other."""


Truth = int | float | tuple[bool, ...]
"""What a row is labelled with: a class index, a number, or which labels it carries."""


@dataclass(frozen=True)
class GateText:
    """One text of the gate."""

    text: str
    ids: Ids  # int64 [1 … limit], as served
    tokens: int  # before the cut
    bucket: str
    label: Truth | None  # where the text is a labelled row as it stands


@dataclass(frozen=True)
class Bucket:
    """Texts of `low` to `high` tokens before the cut; `high` is None where there is no end."""

    low: int
    high: int | None

    @property
    def name(self) -> str:
        """Such as "17-64"."""
        if self.high is None:
            return f">={self.low}"
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"

    def holds(self, tokens: int) -> bool:
        """Whether a text of so many tokens belongs here."""
        return self.low <= tokens and (self.high is None or tokens <= self.high)


def length_buckets(limit: int) -> list[Bucket]:
    """One token, up to 16, 64, 256, below the limit, at the limit, one over it, further over it."""
    ends = [end for end in (1, 16, 64, 256) if end < limit - 1] + [limit - 1, limit]
    lows = [1, *(end + 1 for end in ends[:-1])]
    over = Bucket(limit + 1, limit + 1)
    return [
        *(Bucket(low, high) for low, high in zip(lows, ends, strict=True) if low <= high),
        over,
        Bucket(limit + 2, None),
    ]


def choose_texts(
    encoder: TextEncoder,
    texts: Sequence[str],
    labels: Sequence[Truth] | None,
    *,
    count: int,
    seed: int = 0,
) -> list[GateText]:
    """At least `count` texts, equally many of each bucket, and the hostile ones.

    A bucket counts what the text itself yields, without the special tokens around it.

    Args:
        texts: real texts; blank ones are left out.
        labels: of each, if known.

    Raises:
        GateError: if the texts are too few to make every length from them.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    rows = [int(i) for i in order if texts[i].strip()]
    if not rows:
        raise GateError("there is no text to compare on; give some with --texts FILE")
    added = encoder.added
    sizes = [n - added for n in encoder.count([texts[i] for i in rows])]
    buckets = length_buckets(encoder.max_length - added)
    quota = -(-count // len(buckets))
    chosen: list[tuple[str, int, str, Truth | None]] = []
    for bucket in buckets:
        own = [(i, n) for i, n in zip(rows, sizes, strict=True) if bucket.holds(n)][:quota]
        chosen += [(texts[i], n, bucket.name, None if labels is None else labels[i]) for i, n in own]
        made = _make(encoder, [texts[i] for i in rows], bucket, quota - len(own), seed)
        chosen += [(text, n, bucket.name, None) for text, n in made]
    hostile = zip(HOSTILE, encoder.count(HOSTILE), strict=True)
    chosen += [(text, n - added, "hostile", None) for text, n in hostile]
    ids = encoder.encode([text for text, *_ in chosen])
    return [
        GateText(text, row, n + added, name, label) for (text, n, name, label), row in zip(chosen, ids, strict=True)
    ]


def _make(encoder: TextEncoder, texts: Sequence[str], bucket: Bucket, count: int, seed: int) -> list[tuple[str, int]]:
    """`count` texts of the bucket, each cut from real texts that are joined until they are long enough."""
    random = np.random.default_rng((seed, bucket.low))
    made: list[tuple[str, int]] = []
    for attempt in range(50 * count):
        if len(made) == count:
            break
        wanted = int(random.integers(bucket.low, (bucket.high or bucket.low + 64) + 1))
        source, encoding = texts[attempt % len(texts)], None
        for more in range(1, wanted + 1):
            encoding = encoder.tokenizer.encode(source, add_special_tokens=False)
            if len(encoding.ids) >= wanted:
                break
            source = f"{source} {texts[(attempt + more) % len(texts)]}"
        assert encoding is not None
        if len(encoding.ids) < wanted:
            continue
        text = source[: encoding.offsets[wanted - 1][1]]  # a word that is cut may fall into other pieces: count again
        tokens = encoder.count([text])[0] - encoder.added
        if bucket.holds(tokens):
            made.append((text, tokens))
    if len(made) < count:
        raise GateError(
            f"the {len(texts)} texts given yield only {len(made)} of {count} texts of {bucket.name} tokens; "
            "give more or longer ones with --texts FILE"
        )
    return made
