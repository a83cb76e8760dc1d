"""The baseline is a fair bar: fitted on training rows, tuned on validation rows, remembered by what it depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from train import metrics
from train.baseline import fit_baseline
from train.data import Corpus, Split, load_corpus
from train.errors import DataError


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(limit=600)


def test_it_learns_the_sentiment_of_reviews_it_never_saw(corpus: Corpus) -> None:
    baseline = fit_baseline(corpus, {"test": corpus.test.texts})
    p = baseline.probabilities["test"]
    assert p.shape == (600, 2)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert metrics.accuracy(p, corpus.test.labels) > 0.7
    assert baseline.validation_nll[f"{baseline.strength:g}"] == min(baseline.validation_nll.values())


def test_the_test_part_does_not_matter_and_the_calibration_part_sets_the_temperature_alone(corpus: Corpus) -> None:
    shuffled = replace(corpus, test=Split(corpus.test.texts[::-1], corpus.test.labels[::-1]))
    other = replace(corpus, calibration=corpus.test)
    first, second, third = (fit_baseline(c, {"a": corpus.test.texts[:50]}) for c in (corpus, shuffled, other))
    np.testing.assert_array_equal(first.probabilities["a"], second.probabilities["a"])
    log_odds, others = (np.log(b.probabilities["a"] / (1 - b.probabilities["a"])) for b in (first, third))
    np.testing.assert_allclose(log_odds * first.temperature, others * third.temperature, rtol=1e-4)
    assert first.temperature != third.temperature
    assert 0 < first.calibration.decide(max_error=0.4).accepted_share <= 1


def test_a_second_call_reads_what_the_first_one_found(corpus: Corpus, tmp_path: Path) -> None:
    asked = {"a": corpus.test.texts[:20]}
    first = fit_baseline(corpus, asked, tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    second = fit_baseline(corpus, asked, tmp_path)
    assert file.stat().st_mtime_ns == written
    assert (second.strength, second.seconds) == (first.strength, first.seconds)
    np.testing.assert_array_equal(second.probabilities["a"], first.probabilities["a"])


def test_other_rows_are_never_answered_from_the_cache(corpus: Corpus, tmp_path: Path) -> None:
    fit_baseline(corpus, {"a": corpus.test.texts[:20]}, tmp_path)
    fit_baseline(corpus, {"a": corpus.test.texts[1:21]}, tmp_path)
    fit_baseline(load_corpus(limit=300), {"a": corpus.test.texts[:20]}, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_it_takes_any_number_of_classes(tmp_path: Path) -> None:
    words = {"fruit": "apple pear plum", "metal": "iron zinc tin", "colour": "red blue green"}
    rows = [
        (f"{word} number {i}", label) for label, group in words.items() for word in group.split() for i in range(20)
    ]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "a.csv", index=False)
    corpus = load_corpus(str(tmp_path / "a.csv"), cache_dir=tmp_path / "cache")
    p = fit_baseline(corpus, {"x": ["an apple", "some zinc", "very red"]}).probabilities["x"]
    assert [corpus.label_names[i] for i in p.argmax(axis=1)] == ["fruit", "metal", "colour"]


def test_texts_without_a_common_word_are_refused(tmp_path: Path) -> None:
    rows = {"text": [f"w{i}" for i in range(40)], "label": ["a", "b"] * 20}
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match="no baseline can be fitted"):
        fit_baseline(load_corpus(str(tmp_path / "a.csv"), cache_dir=tmp_path / "cache"), {})
