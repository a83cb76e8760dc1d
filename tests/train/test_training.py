"""What a step of training sees: fresh stretches, endings, and blanks, the same whenever a run is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from train.evidence import HeldOut
from train.training import Labelled, TrainingTexts

TEXTS, UNKNOWN = 2_000, 1


def texts(**shares: float) -> TrainingTexts:
    """Texts of 1 to 300 tokens that count up from 2, a quarter of class 1, with their own place as evidence."""
    documents = [np.arange(2, 3 + row % 300) for row in range(TEXTS)]
    tokens = sum(map(len, documents))
    evidence = np.arange(tokens, dtype=np.float16)[:, None, None].repeat(3, 1)
    held_out = HeldOut(evidence, np.linspace(-1, 1, TEXTS, dtype=np.float32)[:, None])
    labels = (np.arange(TEXTS) % 4 == 0).astype(np.int64)
    return TrainingTexts(Labelled(documents, labels), held_out, window=64, unknown=UNKNOWN, seed=3, **shares)


def shown(data: TrainingTexts) -> Iterator[tuple[int, dict[str, Any]]]:
    for row in range(TEXTS):
        yield row, data[row]


@pytest.mark.parametrize("crop_share", [0.0, 0.3, 1.0])
def test_a_stretch_is_a_window_or_the_end_of_its_text_with_its_own_evidence(crop_share: float) -> None:
    data = texts(crop_share=crop_share)
    endings = 0
    for row, item in shown(data):
        document, whole = item["document"], data.documents[row]
        start = document[0] - 2
        assert np.array_equal(document, whole[start : start + len(document)])
        first = data.first[row] + start
        assert np.array_equal(item["member"], data.held_out.by_token[first : first + len(document)])
        assert item["label"] == data.labels[row]
        assert len(document) == min(64, len(whole)) or document[-1] == whole[-1]
        endings += len(whole) > 100 and len(document) != 64
    long = sum(len(document) > 100 for document in data.documents)
    assert endings / long == pytest.approx(crop_share, abs=0.04)


def test_a_blank_is_unknown_words_without_evidence_and_with_any_label() -> None:
    data = texts(blank_share=0.5)
    blanks = [item for _, item in shown(data) if (item["document"] == UNKNOWN).all()]
    assert len(blanks) / TEXTS == pytest.approx(0.5, abs=0.04)
    assert np.mean([item["label"] for item in blanks]) == pytest.approx(0.25, abs=0.04)
    for item in blanks:
        assert 12 <= len(item["document"]) <= 100
        assert item["member"].shape == (len(item["document"]), 3, 1)
        assert not item["member"].any()


def test_an_epoch_shows_the_same_again_and_the_next_one_another() -> None:
    first, again, later = texts(crop_share=0.2, blank_share=0.1), texts(crop_share=0.2, blank_share=0.1), texts()
    later.epoch = 1
    rows = range(100, 300)
    assert all(np.array_equal(first[row]["document"], again[row]["document"]) for row in rows)
    assert sum(np.array_equal(first[row]["document"], later[row]["document"]) for row in rows) < 20
