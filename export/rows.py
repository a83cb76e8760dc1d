"""Rows that a user gives in files: labelled ones to decide on, and texts to compare on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from train.data import checked_texts, load_rows
from train.errors import DataError
from train.sources import read_file


@dataclass(frozen=True)
class RowFiles:
    """Files that a user gave instead of what the checkpoint brings."""

    calibration: Path | None = None  # labelled rows to decide on; also the texts of the gate
    texts: Path | None = None  # texts of the gate
    text_column: str = "text"
    label_column: str = "label"


def labelled_rows(path: Path, files: RowFiles, label_names: tuple[str, ...]) -> tuple[list[str], list[int]]:
    """Texts and class indices of a file, read and matched to the classes as `train evaluate` does it.

    Raises:
        DataError: if it cannot be read, a row has no text, or a label is not one of the checkpoint's.
    """
    _require_file(path)
    rows = load_rows(str(path), label_names, files.text_column, files.label_column)
    return rows.texts, rows.labels.tolist()


def texts_of(path: Path, text_column: str) -> list[str]:
    """The texts of a file, labelled or not.

    Raises:
        DataError: if it cannot be read, or a row has no text.
    """
    _require_file(path)
    return checked_texts(read_file(path, text_column, text_column).rows.texts, text_column, str(path))


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"there is no file {path}")
