"""Rows that a user gives in files: labelled ones to decide on, and texts to compare on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.errors import DataError
from train.sources import Rows, read_file


@dataclass(frozen=True)
class RowFiles:
    """Files that a user gave instead of what the checkpoint brings."""

    calibration: Path | None = None  # labelled rows to decide on; also the texts of the gate
    texts: Path | None = None  # texts of the gate
    text_column: str = "text"
    label_column: str = "label"


def labelled_rows(path: Path, files: RowFiles, label_names: tuple[str, ...]) -> tuple[list[str], list[int]]:
    """Texts and class indices of a file whose labels are class names, or class numbers where no name is a number.

    Raises:
        DataError: if it cannot be read, a row has no text, or a label is not one of the checkpoint's.
    """
    rows = _read(path, files.text_column, files.label_column)
    index = {name: i for i, name in enumerate(label_names)}
    given = [str(label) for label in rows.labels]
    numbers = {str(i): i for i in range(len(label_names))}
    if not any(name.isdecimal() for name in label_names) and all(label in numbers for label in given):
        index = numbers
    unknown = [i for i, label in enumerate(given) if label not in index]
    if unknown:
        raise DataError(
            f"{path}: row {unknown[0] + 1} is labelled {rows.labels[unknown[0]]!r}, and {len(unknown)} rows in all "
            f"have a label that the checkpoint does not know; its labels are {', '.join(label_names)}"
        )
    return _texts_only(path, rows.texts), [index[label] for label in given]


def texts_of(path: Path, text_column: str) -> list[str]:
    """The texts of a file, labelled or not.

    Raises:
        DataError: if it cannot be read, or a row has no text.
    """
    return _texts_only(path, _read(path, text_column, text_column).texts)


def _read(path: Path, text_column: str, label_column: str) -> Rows:
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    return read_file(path, text_column, label_column).rows


def _texts_only(path: Path, cells: Sequence[Any]) -> list[str]:
    wrong = [i for i, cell in enumerate(cells) if not isinstance(cell, str) or not cell.strip()]
    if wrong:
        raise DataError(f"{path}: row {wrong[0] + 1} has no text ({len(wrong)} such rows); fill or delete them")
    return list(cells)
