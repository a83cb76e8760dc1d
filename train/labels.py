"""From what stands in a label column to named classes.

Files say the same class in many ways: ``0/1``, ``"0"/"1"``, ``0.0/1.0``, ``True``, ``1..5``, ``-1``, ``" positive"``.
Each of them becomes a class with a name and a number, and the mapping is recorded. A number that is no whole number is
refused: it says that the column is a score, and a classifier trained on scores as if they were names (or, as some
trainers do silently, a regression head) is never what was asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.errors import DataError

# "01" and "007" are codes, not numbers: only the plain decimal form counts as one.
_NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d*)(?:\.\d+)?\Z")


@dataclass(frozen=True)
class Labels:
    """Labels by number, with the names of the classes and the values that stood for them in the source.

    Attributes:
        ids: int64 [rows], index into `names`.
        names: the classes in their order: numbers by size, words by alphabet, or as the source declares them.
        values: for each class the different spellings found, for the record.
    """

    ids: NDArray[np.int64]
    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: null, NaN or blank text. The word "NA" is text."""
    if value is None:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, str) and not value.strip()


def name_labels(values: Sequence[object], declared: tuple[str, ...] | None, column: str, where: str) -> Labels:
    """Map the values of a label column to classes.

    Args:
        values: one per row, none of them missing.
        declared: the class names that the source itself declares (a Hugging Face `ClassLabel`), whose values are
            indices.
        column: the column's name, for messages.
        where: the source, for messages.

    Raises:
        DataError: for a value that is no label (with the rows, counted from 1), or fewer than two classes.
    """
    if declared is not None:
        return _declared(values, declared, column, where)
    cells = [_cell(value) for value in values]
    _refuse(
        [i for i, cell in enumerate(cells) if cell is None], values, column, where, "a name or a whole number per row"
    )
    written = [cell for cell in cells if cell is not None]
    if all(_NUMBER.match(cell) for cell in set(written)):
        whole = {cell: _whole(cell) for cell in set(written)}
        fractions = [i for i, cell in enumerate(written) if whole[cell] is None]
        _refuse(
            fractions,
            values,
            column,
            where,
            "classes, not scores: name the classes, or round the scores to whole numbers",
        )
        numbers = sorted({number for number in whole.values() if number is not None})
        names = tuple(str(number) for number in numbers)
        name_of = {cell: str(number) for cell, number in whole.items()}
    else:
        names = tuple(sorted(set(written)))
        name_of = {name: name for name in names}
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise DataError(f"{where}: column {column!r} must hold at least two classes, but holds {found}")
    position = {name: index for index, name in enumerate(names)}
    ids = np.array([position[name_of[cell]] for cell in written], dtype=np.int64)
    spellings: list[set[str]] = [set() for _ in names]
    for cell in set(written):
        spellings[position[name_of[cell]]].add(cell)
    return Labels(ids, names, tuple(tuple(sorted(found)) for found in spellings))


def _cell(value: object) -> str | None:
    """The value as it would stand in a text file; None for what cannot be a label (a list, a date, infinity)."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating) and math.isfinite(value):
        return format(float(value), "f") if float(value).is_integer() else repr(float(value))
    return None


def _whole(cell: str) -> int | None:
    whole, _, fraction = cell.partition(".")
    return int(whole) if not fraction.strip("0") else None


def _declared(values: Sequence[object], declared: tuple[str, ...], column: str, where: str) -> Labels:
    inside = [isinstance(value, int) and 0 <= value < len(declared) for value in values]
    outside = [i for i, ok in enumerate(inside) if not ok]
    _refuse(
        outside,
        values,
        column,
        where,
        f"a class from 0 to {len(declared) - 1} (-1 means unlabelled: leave such rows out)",
    )
    names = tuple(str(name) for name in declared)
    return Labels(np.array(values, dtype=np.int64), names, tuple((name,) for name in names))


def _refuse(rows: list[int], values: Sequence[object], column: str, where: str, wanted: str) -> None:
    if rows:
        raise DataError(f"{where}: column {column!r} must hold {wanted}; {name_rows(rows)} holds {values[rows[0]]!r}")


def name_rows(rows: Sequence[int], shown: int = 5) -> str:
    """Row indices as people count them, from 1 and without the header: ``rows 3, 17 and 40 (and 12 more)``."""
    numbers = [str(row + 1) for row in rows[:shown]]
    text = numbers[0] if len(numbers) == 1 else ", ".join(numbers[:-1]) + " and " + numbers[-1]
    more = f" (and {len(rows) - shown:,} more)" if len(rows) > shown else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {text}{more}"
