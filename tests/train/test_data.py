"""A corpus is the same rows for everybody: documented sizes, recorded provenance, no text in two parts."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from train.data import Corpus, load_corpus, load_rows, load_snippets, reload_corpus
from train.errors import DataError
from train.splits import PARTS, fingerprint


@pytest.fixture(scope="module")
def imdb() -> Corpus:
    return load_corpus()


def _write(path: Path, texts: list[str], labels: list[object]) -> str:
    pd.DataFrame({"text": texts, "label": labels}).to_csv(path, index=False)
    return str(path)


def _rows(classes: int, each: int) -> tuple[list[str], list[object]]:
    return [f"text {i} of the file" for i in range(classes * each)], [f"c{i % classes}" for i in range(classes * each)]


def test_imdb_has_the_documented_sizes(imdb: Corpus) -> None:
    assert imdb.label_names == ("negative", "positive")
    assert imdb.provenance["rows"] == {"train": 17_432, "validation": 1_246, "calibration": 1_244, "test": 4_980}
    assert imdb.provenance["removed"]["exact_duplicates"] == 96
    assert imdb.provenance["removed"]["duplicates_after_normalising_white_space"] == 2
    assert imdb.provenance["origin"]["version"] == "0.0.2"
    assert all(abs(getattr(imdb, part).labels.mean() - 0.5) < 0.01 for part in PARTS)


def test_no_text_of_imdb_is_in_two_parts(imdb: Corpus) -> None:
    prints = [set(map(fingerprint, getattr(imdb, part).texts)) for part in PARTS]
    assert not any(a & b for a, b in combinations(prints, 2))


def test_folds_turn_by_four_blocks_of_the_package_order(imdb: Corpus) -> None:
    # Fold 4 calibrates on block 15 and validates on block 14; fold 3 tests blocks 12 to 15, in the same order.
    tested = load_corpus(fold=3).test.texts
    at = {text: place for place, text in enumerate(tested)}
    for part in (imdb.validation, imdb.calibration):
        places = [at[text] for text in part.texts]
        assert places == sorted(places)
    assert not set(tested) & set(imdb.test.texts)


def test_provenance_is_json_and_brings_the_same_rows_back(imdb: Corpus) -> None:
    again = reload_corpus(json.loads(json.dumps(imdb.provenance)))
    assert again.test.texts == imdb.test.texts
    np.testing.assert_array_equal(again.calibration.labels, imdb.calibration.labels)


def test_the_snippets_are_another_domain_with_the_same_classes(imdb: Corpus) -> None:
    snippets = load_snippets()
    assert len(snippets) == 8_530
    assert set(snippets.labels) == {0, 1}
    assert not set(snippets.texts) & set(imdb.train.texts)


def test_a_file_of_any_form_gives_the_same_parts(tmp_path: Path) -> None:
    texts, labels = _rows(3, 30)
    table = pd.DataFrame({"body": texts, "stars": labels})
    table.to_csv(tmp_path / "rows.csv", index=False)
    table.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "rows.parquet")
    corpora = [
        load_corpus(str(path), "body", "stars", cache_dir=tmp_path / "cache")
        for path in sorted(tmp_path.glob("rows.*"))
    ]
    assert len({json.dumps(corpus.provenance["sha256"]) for corpus in corpora}) == 1
    assert corpora[0].label_names == ("c0", "c1", "c2")
    assert corpora[0].provenance["rows"] == {"train": 54, "validation": 9, "calibration": 9, "test": 18}


def test_a_small_corpus_gives_two_blocks_to_calibration_and_a_large_one_one(tmp_path: Path) -> None:
    small = load_corpus(_write(tmp_path / "s.csv", *_rows(2, 1_000)), cache_dir=tmp_path / "cache")
    large = load_corpus(_write(tmp_path / "l.csv", *_rows(2, 2_000)), cache_dir=tmp_path / "cache")
    assert (len(small.calibration), len(small.test)) == (200, 400)
    assert (len(large.calibration), len(large.test)) == (200, 800)


def test_limit_keeps_the_first_rows_of_each_class_in_each_part(imdb: Corpus) -> None:
    small = load_corpus(limit=100)
    assert {part: len(getattr(small, part)) for part in PARTS} == dict.fromkeys(PARTS, 100)
    assert small.provenance["limit"] == 100
    assert small.train.texts[0] == imdb.train.texts[0]
    assert set(small.test.labels) == {0, 1}
    with pytest.raises(DataError, match="leaves nothing"):
        load_corpus(limit=0)


def test_missing_cells_are_named_by_row_and_NA_is_a_text(tmp_path: Path) -> None:
    texts, labels = _rows(2, 30)
    with pytest.raises(DataError, match="column 'text' is empty in rows 3 and 8; fill these rows or delete them"):
        load_corpus(
            _write(tmp_path / "a.csv", [*texts[:2], "", *texts[3:7], " ", *texts[8:]], labels),
            cache_dir=tmp_path / "cache",
        )
    with pytest.raises(DataError, match="column 'label' is empty in row 60"):
        load_corpus(_write(tmp_path / "b.csv", texts, [*labels[:-1], ""]), cache_dir=tmp_path / "cache")
    corpus = load_corpus(_write(tmp_path / "c.csv", ["NA", *texts[1:]], labels), cache_dir=tmp_path / "cache")
    assert "NA" in [text for part in PARTS for text in getattr(corpus, part).texts]


def test_a_text_column_of_numbers_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"text": range(60), "label": [0, 1] * 30}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'text' must hold text, but rows 1, .* hold 0"):
        load_corpus(str(tmp_path / "a.parquet"), cache_dir=tmp_path / "cache")


# happy-transformer#248
def test_scores_are_refused_and_never_become_a_regression(tmp_path: Path) -> None:
    texts, _ = _rows(2, 30)
    with pytest.raises(DataError, match="classes, not scores"):
        load_corpus(_write(tmp_path / "a.csv", texts, [i / 10 for i in range(60)]), cache_dir=tmp_path / "cache")


def test_contradictory_texts_are_dropped_reported_and_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts, labels = _rows(2, 40)
    source = _write(tmp_path / "a.csv", [*texts, "both ways", "both  ways"], [*labels, "c0", "c1"])
    corpus = load_corpus(source, cache_dir=tmp_path / "cache")
    assert corpus.provenance["removed"]["contradictory_rows"] == [81, 82]
    assert not any("both" in text for part in PARTS for text in getattr(corpus, part).texts)
    assert "2 rows dropped: their texts occur with different labels (rows 81 and 82)" in caplog.text


# datasets#5532, mteb#519
def test_a_class_with_one_row_is_named_with_its_count(tmp_path: Path) -> None:
    texts, labels = _rows(2, 40)
    with pytest.raises(DataError, match=r"every class needs 20 different texts .* but 'lonely' has 1"):
        load_corpus(_write(tmp_path / "a.csv", [*texts, "alone"], [*labels, "lonely"]), cache_dir=tmp_path / "cache")


def test_a_missing_file_is_not_taken_for_a_hub_name() -> None:
    with pytest.raises(DataError, match=r"there is no file reviews\.csv"):
        load_corpus("reviews.csv")


def _data_set(folder: Path, test_labels: list[int], test_texts: list[str]) -> str:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    texts, _ = _rows(2, 60)
    train = {"text": texts, "label": [i % 2 for i in range(len(texts))]}
    test = {"text": test_texts, "label": test_labels}
    parts = {
        "train": datasets.Dataset.from_dict(train, features=features),
        "test": datasets.Dataset.from_dict(test, features=features),
    }
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return str(folder)


def test_a_data_set_keeps_its_test_part_and_trains_on_none_of_its_texts(tmp_path: Path) -> None:
    texts = ["fresh one", "fresh two", "fresh two", "text 0 of  the file"]
    corpus = load_corpus(_data_set(tmp_path / "d", [1, 0, 0, 0], texts))
    assert corpus.test.texts == texts
    assert corpus.provenance["removed"]["also_in_test_part"] == 1
    trained = [text for part in ("train", "validation", "calibration") for text in getattr(corpus, part).texts]
    assert "text 0 of the file" not in trained
    assert len(trained) == 119
    assert corpus.label_names == ("neg", "pos")


# tf#27707
def test_a_label_that_only_the_test_part_has_is_refused_before_training(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    texts, labels = _rows(2, 40)
    _write(folder / "train.csv", texts, labels)
    _write(folder / "test.csv", ["x", "y"], ["c0", "never seen"])
    with pytest.raises(DataError, match=r"class 'never seen' occurs only in its test part \(row 2\)"):
        load_corpus(str(folder), cache_dir=tmp_path / "cache")


def test_a_corpus_that_changed_since_training_is_not_evaluated(tmp_path: Path) -> None:
    texts, labels = _rows(2, 40)
    corpus = load_corpus(_write(tmp_path / "a.csv", texts, labels), cache_dir=tmp_path / "cache")
    _write(tmp_path / "a.csv", ["another first row", *texts[1:]], labels)
    with pytest.raises(DataError, match="the parts train differ from those that the checkpoint was trained on"):
        reload_corpus(corpus.provenance, tmp_path / "cache")


def test_rows_for_a_trained_model_are_matched_by_name(tmp_path: Path) -> None:
    source = _write(tmp_path / "a.csv", ["a", "a", "b"], ["positive", "positive", "negative"])
    rows = load_rows(source, ("negative", "positive"), cache_dir=tmp_path / "cache")
    assert (rows.texts, rows.labels.tolist()) == (["a", "a", "b"], [1, 1, 0])
    with pytest.raises(DataError, match="one of the classes 'no', 'yes'"):
        load_rows(source, ("no", "yes"), cache_dir=tmp_path / "cache")
    data_set = _data_set(tmp_path / "d", [1, 0], ["x", "y"])
    assert load_rows(data_set, ("pos", "neg")).labels.tolist() == [0, 1]
