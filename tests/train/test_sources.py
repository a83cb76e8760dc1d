"""Files of every form give the same rows, and a malformed one says what is wrong with it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas as pd
import pytest

from train.errors import DataError
from train.sources import read_dataset, read_file

TEXTS = [
    'He said "superb", twice.',
    "First line\nsecond line",
    "NA",
    "  spaced, with a comma ",
    "naïve 👩‍👩 e\u0301",
    "null",
]
LABELS = ["pos", "neg", "NA", "neg", "pos", "neg"]


def _csv(line_end: str = "\n", bom: bool = False) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator=line_end)
    writer.writerow(["label", "text", "note"])
    writer.writerows(zip(LABELS, TEXTS, ["1"] * len(TEXTS), strict=True))
    return (("\ufeff" if bom else "") + out.getvalue()).encode()


FORMS: dict[str, Callable[[Path], object]] = {
    "plain.csv": lambda p: p.write_bytes(_csv()),
    "windows.csv": lambda p: p.write_bytes(_csv("\r\n", bom=True)),
    "quoted.csv": lambda p: pd.DataFrame({"text": TEXTS, "label": LABELS}).to_csv(
        p, index=False, quoting=csv.QUOTE_ALL
    ),
    "indexed.csv": lambda p: pd.DataFrame({"text": TEXTS, "label": LABELS}).to_csv(p),
    "rows.jsonl": lambda p: pd.DataFrame({"text": TEXTS, "label": LABELS}).to_json(p, orient="records", lines=True),
    "rows.parquet": lambda p: pd.DataFrame({"text": TEXTS, "label": LABELS}).to_parquet(p),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_file_form_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name)
    rows = read_file(tmp_path / name, "text", "label", tmp_path / "cache").rows
    assert rows.texts == TEXTS
    assert rows.labels == LABELS


def test_a_changed_file_is_read_anew_and_not_from_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nold,0\n")
    assert read_file(path, "text", "label", tmp_path / "cache").rows.texts == ["old"]
    path.write_text("text,label\nnew text,0\n")
    assert read_file(path, "text", "label", tmp_path / "cache").rows.texts == ["new text"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"body,stars\ngood,5\n", "no column 'text' and no column 'label'; the columns are 'body', 'stars'"),
        ("a.csv", b"text;label\ngood;5\n", "separated by commas"),
        ("a.csv", "text,label\ncafé,0\n".encode("latin-1"), "save it as UTF-8"),
        (
            "a.csv",
            b"text,label\none, two,0\nthree, four,1\n",
            "line 2: 3 cells under a header of 2; put a text that holds a comma in double quotes",
        ),
        ("a.csv", b"text,label\ngood,0\none, two,1\n", "line 3: 3 cells under a header of 2"),
        ("a.csv", b'text,label\n"never closed,0\nb,1\n', "line 3: unexpected end of data"),
        ("a.csv", b'text,label\n"good" film,0\nb,1\n', "line 2: ',' expected after"),
        ("a.csv", b"text,text,label\na,b,0\n", "'text' more than once"),
        ("a.csv", b"text,label\n", "no rows"),
        ("a.csv", b"", "is empty"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b",\n', "cannot be read as json"),
        ("a.parquet", b"text,label\na,0\n", "cannot be read as parquet"),
        ("a.xlsx", b"anything", "give a .csv, .jsonl or .parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(
    name: str, content: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r".") as refusal:
        read_file(tmp_path / name, "text", "label", tmp_path / "cache")
    assert says in str(refusal.value)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


def _dataset(texts: list[str], labels: list[int]) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)


def test_a_saved_data_set_keeps_its_class_names_and_its_own_test_part(tmp_path: Path) -> None:
    parts = {"train": _dataset(["a", "b"], [0, 1]), "test": _dataset(["c"], [1])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    source = read_dataset(str(tmp_path / "saved"), "text", "label")
    assert source.class_names == ("neg", "pos")
    assert source.rows.texts == ["a", "b"]
    assert source.test is not None
    assert source.test.texts == ["c"]


def test_a_test_part_with_hidden_labels_gives_way_to_the_validation_part(tmp_path: Path) -> None:
    parts = {"train": _dataset(["a"], [0]), "validation": _dataset(["v"], [1]), "test": _dataset(["c", "d"], [-1, -1])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    source = read_dataset(str(tmp_path / "saved"), "text", "label")
    assert source.origin["test_part"] == "validation"
    assert source.test is not None
    assert source.test.texts == ["v"]


def test_a_folder_of_data_files_is_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\na,x\nb,y\n")
    (folder / "test.csv").write_text("text,label\nc,x\n")
    source = read_dataset(str(folder), "text", "label", tmp_path / "cache")
    assert source.rows.labels == ["x", "y"]
    assert source.test is not None
    assert source.test.labels == ["x"]


def test_a_name_that_is_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither 'imdb', nor a file, nor a data set"):
        read_dataset("nobody/nothing", "text", "label", tmp_path / "cache")


def test_a_data_set_without_a_training_part_names_the_parts_it_has(tmp_path: Path) -> None:
    datasets.DatasetDict({"dev": _dataset(["a"], [0])}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="no part named 'train', only dev"):
        read_dataset(str(tmp_path / "saved"), "text", "label")
