"""The gate's texts: every length, from real text, whatever the corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.encoder import TextEncoder
from export.errors import GateError
from export.texts import HOSTILE, choose_texts, length_buckets
from train.tokenizer import UNK_ID, encode, load_tokenizer

REVIEWS = [
    "A wonderful film with a moving story, superb acting and a score that stays with you for days afterwards.",
    "Dull, badly acted and far too long.",
    "I still cannot decide whether I liked it<br /><br />The first half is brilliant, the second is a mess.",
]


@given(st.integers(2, 5000), st.integers(1, 6000))
def test_every_length_lies_in_exactly_one_bucket(limit: int, tokens: int) -> None:
    assert sum(bucket.holds(tokens) for bucket in length_buckets(limit)) == 1


def test_the_limit_and_what_is_beyond_it_have_buckets_of_their_own() -> None:
    assert [bucket.name for bucket in length_buckets(512)] == [
        "1",
        "2-16",
        "17-64",
        "65-256",
        "257-511",
        "512",
        "513",
        ">=514",
    ]


def test_short_texts_are_joined_and_cut_until_every_bucket_is_full(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    texts = choose_texts(TextEncoder(tokenizer, 128, 32, False, UNK_ID), REVIEWS, [1, 0, 0], count=60)
    by_bucket = {name: [t for t in texts if t.bucket == name] for name in {t.bucket for t in texts}}
    assert set(by_bucket) == {"1", "2-16", "17-64", "65-127", "128", "129", ">=130", "hostile"}
    assert {t.tokens for t in by_bucket["129"]} == {129}
    assert all(len(chosen) >= 8 for chosen in by_bucket.values())
    for text, ids in zip(texts, encode(tokenizer, [t.text for t in texts], 128, 32), strict=True):
        np.testing.assert_array_equal(text.ids, ids)
        assert len(ids) == min(text.tokens, 128)
    # Only a text that stands as it was labelled keeps its label.
    assert {t.text: t.label for t in texts if t.label is not None} == dict(zip(REVIEWS, [1, 0, 0], strict=True))


def test_texts_made_to_hurt_are_always_among_them(tiny_checkpoint: Path) -> None:
    encoder = TextEncoder(load_tokenizer(tiny_checkpoint), 64, 16, False, UNK_ID)
    texts = choose_texts(encoder, REVIEWS, None, count=7)
    assert [t.text for t in texts if t.bucket == "hostile"] == list(HOSTILE)


def test_no_text_or_none_that_can_be_cut_is_said(tiny_checkpoint: Path) -> None:
    encoder = TextEncoder(load_tokenizer(tiny_checkpoint), 64, 16, False, UNK_ID)
    with pytest.raises(GateError, match="--texts FILE"):
        choose_texts(encoder, ["", "  "], None, count=7)
