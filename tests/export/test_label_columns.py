"""Calibration rows of multi-label and regression heads, in every form that users have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from export.label_columns import multi_label_rows, number_rows
from export.rows import RowFiles
from train.errors import DataError

LABELS = ("anger", "joy", "a, b")
SETS: list[list[str]] = [["joy", "anger"], [], ["a, b"], ["joy"]]
RIGHT = [[True, True, False], [False, False, False], [False, False, True], [False, True, False]]


def write(path: Path, labels: list[Any], column: str = "label") -> Path:
    table = pd.DataFrame({"text": [f"text {i}" for i in range(len(labels))], column: labels})
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")), encoding="utf-8")
    else:
        table.to_parquet(path)
    return path


def read(path: Path, labels: tuple[str, ...] = LABELS, **names: str) -> list[list[bool]]:
    texts, truth = multi_label_rows(path, RowFiles(**names), labels)
    assert texts == [f"text {i}" for i in range(len(truth))]
    found: list[list[bool]] = truth.tolist()
    return found


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_list_is_a_set_of_labels(suffix: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / f"rows{suffix}", SETS)) == RIGHT


def test_a_cell_may_hold_a_json_list(tmp_path: Path) -> None:
    assert read(write(tmp_path / "rows.csv", [json.dumps(names) for names in SETS])) == RIGHT


@pytest.mark.parametrize("between", ["|", ";", ",", " | "])
def test_a_cell_may_hold_names_and_an_empty_one_is_no_label(between: str, tmp_path: Path) -> None:
    cells = [between.join(names) for names in [["joy", "anger"], [], ["anger"]]]
    path = write(tmp_path / "rows.csv", cells, "tags")
    assert read(path, LABELS[:2], label_column="tags") == [[True, True], [False, False], [True, False]]


def test_a_name_with_a_separator_in_it_is_a_name(tmp_path: Path) -> None:
    assert read(write(tmp_path / "rows.csv", ["joy|anger", "", "a, b", "joy"])) == RIGHT
    (both, *_) = read(write(tmp_path / "more.csv", ["a, b|joy", "anger", "", ""]))
    assert both == [False, True, True]


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("True", "False"), ("1.0", "0.0")])
def test_a_column_of_each_label_may_hold_0_and_1(yes: str, no: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    table = pd.DataFrame(np.where(RIGHT, yes, no), columns=LABELS).assign(text=[f"text {i}" for i in range(4)])
    table.to_csv(path, index=False)
    assert read(path) == RIGHT


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["joy|angry", "anger", ""], r"row 1 carries the label 'angry', which .* its labels are anger, joy"),
        (["joy", "joy|anger", "joy"], "every row carries the label 'joy'"),
        (["joy", "", "joy"], "no row carries the label 'anger'"),
        (["joy", '["anger"', ""], "row 2: .* is not a JSON list"),
        (["joy", "[1]", ""], "row 2 is labelled"),
    ],
)
def test_what_is_no_set_of_known_labels_is_named(cells: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read(write(tmp_path / "rows.csv", cells), LABELS[:2])


def test_a_cell_that_is_neither_0_nor_1_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,anger,joy\na,1,0\nb,0,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="row 2 has '2' in the column 'joy', which is neither 0 nor 1"):
        read(path, LABELS[:2])


def test_a_label_without_a_column_of_its_own_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,anger\na,1\nb,0\n", encoding="utf-8")
    with pytest.raises(DataError, match="no column 'label', and no column 'joy'"):
        read(path, LABELS[:2])
    path.write_text("text,tags\na,anger\nb,joy\n", encoding="utf-8")
    with pytest.raises(DataError, match="no column 'label'; the columns are 'text', 'tags'"):
        read(path, LABELS[:2])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_numbers_of_any_format_are_read(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"rows{suffix}", [1.5, -2.0, 1000.0], "stars")
    texts, numbers = number_rows(path, RowFiles(label_column="stars"))
    assert texts == ["text 0", "text 1", "text 2"]
    assert numbers.tolist() == [1.5, -2, 1000]


@pytest.mark.parametrize("cell", ["good", "", "nan", "inf", "1,5"])
def test_a_cell_that_is_no_finite_number_is_named_with_its_row(cell: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f'text,label\na,1\nb,"{cell}"\n', encoding="utf-8")
    with pytest.raises(DataError, match=f"row 2 is labelled '{cell}', and a regression wants a finite number"):
        number_rows(path, RowFiles())


def test_a_row_without_a_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,1\n ,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="row 2 has no text"):
        number_rows(path, RowFiles())
