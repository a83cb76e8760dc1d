"""Calibration rows of the heads that have no single label: sets of labels, and numbers.

A set is a list (JSONL, Parquet), or a cell with a JSON list or with names between "|", ";" or ",", an empty one being
no label; or each label has a column of its own that holds 0 or 1. What cannot be read is an error that names the row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.rows import RowFiles
from train.errors import DataError
from train.sources import read_columns

_MARKS = ("|", ";", ",")
_TRUE, _FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")


def multi_label_rows(path: Path, files: RowFiles, label_names: tuple[str, ...]) -> tuple[list[str], NDArray[np.bool_]]:
    """Texts and which labels each carries, bool [N, C].

    Raises:
        DataError: if the file cannot be read, a row has no text, names a label that the checkpoint does not have, or
            holds something else than 0 or 1 in a label's own column; or if no row, or every row, carries a label.
    """
    texts, columns = _read(path, files, label_names)
    if files.label_column in columns:
        known = {name: i for i, name in enumerate(label_names)}
        truth = np.zeros((len(texts), len(label_names)), dtype=bool)
        for row, cell in enumerate(columns[files.label_column]):
            for name in _names(path, row, cell, known):
                if name not in known:
                    raise DataError(
                        f"{path}: row {row + 1} carries the label {name!r}, which the checkpoint does not know; its "
                        f"labels are {', '.join(label_names)}"
                    )
                truth[row, known[name]] = True
    else:
        truth = np.array(
            [[_yes_or_no(path, row, name, cell) for row, cell in enumerate(columns[name])] for name in label_names]
        ).T
    for name, carried in zip(label_names, truth.T, strict=True):
        if carried.all() or not carried.any():
            raise DataError(
                f"{path}: {'every' if carried.all() else 'no'} row carries the label {name!r}, so nothing could be "
                f"said about it; add rows {'without' if carried.all() else 'with'} it"
            )
    return texts, truth


def number_rows(path: Path, files: RowFiles) -> tuple[list[str], NDArray[np.float64]]:
    """Texts and the number of each, float64 [N].

    Raises:
        DataError: if the file cannot be read, a row has no text, or a label that is no finite number.
    """
    texts, columns = _read(path, files)
    return texts, np.array([_number(path, row, cell) for row, cell in enumerate(columns[files.label_column])])


def _read(path: Path, files: RowFiles, own_columns: Sequence[str] = ()) -> tuple[list[str], dict[str, list[Any]]]:
    """The texts, and the label column or, where there is none, the labels' own columns."""
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    columns = read_columns(path, files.text_column, files.label_column, *own_columns)
    texts = columns[files.text_column]
    wrong = [i for i, cell in enumerate(texts) if not isinstance(cell, str) or not cell.strip()]
    if wrong:
        raise DataError(f"{path}: row {wrong[0] + 1} has no text ({len(wrong)} such rows); fill or delete them")
    if files.label_column in columns:
        return texts, {files.label_column: columns[files.label_column]}
    missing = [name for name in own_columns if name not in columns]
    if missing:
        raise DataError(
            f"{path}: no column {files.label_column!r}, and no column {' and no column '.join(map(repr, missing))} for "
            "each label's 0 or 1; name the one that lists the labels with --label-column, or add what is missing"
        )
    return texts, {name: columns[name] for name in own_columns}


def _names(path: Path, row: int, cell: Any, known: Container[str]) -> list[str]:
    """The labels in one cell."""
    if cell is None:
        return []
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except ValueError as error:
            raise DataError(f"{path}: row {row + 1}: {cell!r} is not a JSON list of labels: {error}") from error
    if isinstance(cell, str):
        mark = next((mark for mark in _MARKS if mark in cell), "|")  # the others may stand within a name
        return [cell] if cell in known else [name for part in cell.split(mark) if (name := part.strip())]
    if isinstance(cell, list | tuple) and all(isinstance(name, str) for name in cell):
        return list(cell)
    raise DataError(
        f"{path}: row {row + 1} is labelled {cell!r}; give a list of label names, or names separated by '|'"
    )


def _yes_or_no(path: Path, row: int, name: str, cell: Any) -> bool:
    said = str(cell).strip().lower()
    if said not in _TRUE + _FALSE:
        raise DataError(f"{path}: row {row + 1} has {cell!r} in the column {name!r}, which is neither 0 nor 1")
    return said in _TRUE


def _number(path: Path, row: int, cell: Any) -> float:
    try:
        number = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{path}: row {row + 1} is labelled {cell!r}, and a regression wants a finite number")
    return number
