"""Text that is nothing like the corpus is real, as long as the corpus's, and the same every time."""

from __future__ import annotations

from collections import Counter

import numpy as np

from train.unfamiliar import MOST, unfamiliar_texts

TRAINING = ["a film that moved me to tears and a story that did not"] * 30 + ["dull"]
LENGTHS = np.array([120, 130, 140])


def test_kinds_are_there_and_as_long_as_asked() -> None:
    kinds = unfamiliar_texts(TRAINING, LENGTHS)
    assert {"documents", "code", "word_salad", "unigram_salad"} <= set(kinds)
    for name, texts in kinds.items():
        assert 50 <= len(texts) <= MOST, name
        assert {len(text.split()) for text in texts} <= set(range(120, 141)), name  # or all of a shorter document
    assert unfamiliar_texts(TRAINING, LENGTHS) == kinds
    assert unfamiliar_texts(TRAINING, LENGTHS, seed=1)["word_salad"] != kinds["word_salad"]


def test_salads_take_words_evenly_or_as_frequent_as_they_are() -> None:
    kinds = unfamiliar_texts(TRAINING, LENGTHS)
    even, frequent = (Counter(" ".join(kinds[name]).split()) for name in ("word_salad", "unigram_salad"))
    vocabulary = len({word for text in TRAINING for word in text.split()})
    assert even["dull"] / even.total() > 0.7 / vocabulary
    assert frequent["dull"] / frequent.total() < 0.01
    assert 1.7 < frequent["a"] / frequent["film"] < 2.3
