"""From what stands in a label column to named classes.

Files say the same class in many ways: ``0/1``, ``"0"/"1"``, ``0.0/1.0``, ``True``, ``1..5``, ``-1``, ``" positive"``.
Each of them becomes a class with a name and a number, and the mapping is recorded. A number that is no whole number is
refused: it says that the column is a score, and a classifier trained on scores as if they were names (or, as some
trainers do silently, a regression head) is never what was asked for.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.errors import DataError

_log = logging.getLogger(__name__)
# "01" and "007" are codes, not numbers: only the plain decimal form counts as one.
_NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d*)(?:\.\d+)?\Z")


@dataclass(frozen=True)
class Labels:
    """Labels by number, with the names of the classes and the values that stood for them in the source.

    Attributes:
        ids: for each part of the source int64 [rows], index into `names`.
        names: the classes in their order: numbers by size, words by alphabet, or as the source declares them.
        values: for each class the different spellings found, for the record.
    """

    ids: dict[str, NDArray[np.int64]]
    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: null, NaN or blank text. The word "NA" is text."""
    if value is None:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, str) and not value.strip()


def name_labels(parts: Mapping[str, Sequence[object]], declared: tuple[str, ...] | None, column: str) -> Labels:
    """Map the values of a label column to classes.

    Args:
        parts: the column of each part of the source under the part's name, no cell of it missing. All parts together
            decide what the classes are.
        declared: the class names that the source itself declares (a Hugging Face `ClassLabel`); the values are indices.
        column: the column's name, for messages.

    Raises:
        DataError: for a value that is no label (with the rows, counted from 1), or fewer than two classes.
    """
    name_of = _declared(parts, declared, column) if declared is not None else _spelled(parts, column)
    names = declared if declared is not None else _in_order(set(name_of.values()))
    if len(names) < 2:
        raise DataError(
            f"{next(iter(parts))}: column {column!r} must hold at least two classes, but holds "
            + (f"only {names[0]!r}" if names else "none")
        )
    position = {name: index for index, name in enumerate(names)}
    ids = {
        part: np.array([position[name_of[_cell(value)]] for value in values], dtype=np.int64)
        for part, values in parts.items()
    }
    spellings = tuple(tuple(sorted(s for s, name in name_of.items() if s is not None and name == n)) for n in names)
    return Labels(ids, names, spellings)


def match_labels(values: Sequence[object], names: tuple[str, ...], column: str, where: str) -> NDArray[np.int64]:
    """Map the values of a label column to classes that are already fixed; int64 [rows].

    By name; or by class number from 0 where every value is one and no class is named by a number, which is said.

    Raises:
        DataError: for a value that names none of them (with the rows, counted from 1).
    """
    position = {name: index for index, name in enumerate(names)}
    cells = [_cell(value) for value in values]
    known = [cell if cell in position else _whole_number(cell) for cell in cells]
    numbers = {str(index): index for index in range(len(names))}
    if not any(map(_whole_number, names)) and numbers.keys() >= set(known):
        position = numbers
        _log.info("%s: column %r holds numbers of classes: %s", where, column, dict(enumerate(names)))
    unknown = [row for row, cell in enumerate(known) if cell not in position]
    _refuse(unknown, values, column, where, f"one of the classes {', '.join(map(repr, names))}")
    return np.array([position[cell] for cell in known if cell is not None], dtype=np.int64)


def _spelled(parts: Mapping[str, Sequence[object]], column: str) -> dict[str | None, str]:
    """Class name of each spelling, where the values themselves are the names."""
    cells = {part: [_cell(value) for value in values] for part, values in parts.items()}
    for part, found in cells.items():
        odd = [row for row, cell in enumerate(found) if cell is None]
        _refuse(odd, parts[part], column, part, "a name or a whole number per row")
    different = {cell for found in cells.values() for cell in found if cell is not None}
    if not all(map(_NUMBER.match, different)):
        return {cell: cell for cell in different}
    name_of: dict[str | None, str] = {}
    for cell in different:
        number = _whole_number(cell)
        if number is not None:
            name_of[cell] = number
    for part, found in cells.items():
        fractions = [row for row, cell in enumerate(found) if cell not in name_of]
        _refuse(
            fractions, parts[part], column, part, "classes, not scores (name the classes, or round to whole numbers)"
        )
    return name_of


def _declared(parts: Mapping[str, Sequence[object]], declared: tuple[str, ...], column: str) -> dict[str | None, str]:
    """Class name of each index into the declared names."""
    name_of: dict[str | None, str] = {str(index): name for index, name in enumerate(declared)}
    for part, values in parts.items():
        outside = [row for row, value in enumerate(values) if _cell(value) not in name_of]
        wanted = f"a class from 0 to {len(declared) - 1} (-1 means unlabelled: leave such rows out)"
        _refuse(outside, values, column, part, wanted)
    return name_of


def _cell(value: object) -> str | None:
    """The value as it would stand in a text file; None for what cannot be a label (a list, a date, infinity)."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return format(value, "f") if value.is_integer() else repr(value)
    return None


def _whole_number(cell: str | None) -> str | None:
    """``"1"`` for ``"1"``, ``"1.0"`` and ``"+1"``; None for what is not a whole number."""
    if cell is None or not _NUMBER.match(cell):
        return None
    whole, _, fraction = cell.partition(".")
    return None if fraction.strip("0") else str(int(whole))


def _in_order(names: set[str]) -> tuple[str, ...]:
    numeric = all(_whole_number(name) == name for name in names)
    return tuple(sorted(names, key=int) if numeric else sorted(names))


def _refuse(rows: list[int], values: Sequence[object], column: str, where: str, wanted: str) -> None:
    if rows:
        raise DataError(
            f"{where}: column {column!r} must hold {wanted}; {name_rows(rows, 'holds')} {values[rows[0]]!r}"
        )


def name_rows(rows: Sequence[int], verb: str = "", shown: int = 5) -> str:
    """Row indices as people count them, from 1 and without the header: ``rows 3, 17 and 40 (and 12 more)``.

    With a verb in the singular ("holds") the sentence goes on in the right number.
    """
    numbers = [str(row + 1) for row in rows[:shown]]
    text = numbers[0] if len(numbers) == 1 else ", ".join(numbers[:-1]) + " and " + numbers[-1]
    more = f" (and {len(rows) - shown:,} more)" if len(rows) > shown else ""
    if len(rows) == 1:
        return f"row {text} {verb}".rstrip()
    return f"rows {text}{more} {verb.removesuffix('s')}".rstrip()
