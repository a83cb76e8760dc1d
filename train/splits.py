"""Cuts a corpus into training, validation, calibration and test parts that do not leak into each other.

Rows of one film, product or customer stand together in most files, and reviews of one film resemble each other: random
folds flattered a model by 3.4 points of accuracy on IMDB. So duplicates are removed first, and each class is then cut,
in the order of the file, into 20 contiguous blocks, which go to the parts as whole blocks. A row's part depends on its
place alone, so that the same file gives the same parts on every machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.errors import DataError
from train.labels import name_rows

BLOCKS = 20
FOLDS = 5
PARTS = ("train", "validation", "calibration", "test")
SMALL_CORPUS = 4_000
_MARKUP_OR_SPACE = re.compile(r"(?:<br\s*/?>|\s)+")


@dataclass(frozen=True)
class Cleaned:
    """The rows that stay, by index, and what was removed and why."""

    keep: NDArray[np.int64]
    exact_duplicates: int
    near_duplicates: int
    contradictory_rows: tuple[int, ...]


def fingerprint(text: str) -> str:
    """The text with every run of white space and line-break markup as one space: what two copies have in common."""
    return _MARKUP_OR_SPACE.sub(" ", text).strip()


def remove_duplicates(texts: Sequence[str], labels: NDArray[np.int64]) -> Cleaned:
    """Keep the first of equal texts; drop every copy of a text that carries different labels, since none can be
    trusted.

    Args:
        texts: [rows].
        labels: int64 [rows].
    """
    exact_first: dict[str, int] = {}
    label_of: dict[str, int] = {}
    contradicted: set[str] = set()
    first: dict[str, int] = {}
    prints = [fingerprint(text) for text in texts]
    for row, (text, mark, label) in enumerate(zip(texts, prints, labels.tolist(), strict=True)):
        exact_first.setdefault(text, row)
        first.setdefault(mark, row)
        if label_of.setdefault(mark, label) != label:
            contradicted.add(mark)
    keep = [row for mark, row in first.items() if mark not in contradicted]
    dropped = tuple(row for row, mark in enumerate(prints) if mark in contradicted)
    agreeing = {text for text, row in exact_first.items() if prints[row] not in contradicted}
    exact = sum(1 for text, mark in zip(texts, prints, strict=True) if mark not in contradicted) - len(agreeing)
    return Cleaned(np.array(sorted(keep), dtype=np.int64), exact, len(agreeing) - len(keep), dropped)


def blocks_for(rows: int) -> int:
    """Blocks of 20 that validation and calibration get each: one, or two in a corpus under 4,000 rows.

    Under 59 accepted calibration rows no 5 % error budget can be proven at 95 % confidence, so a small corpus gives a
    larger share to the rows that calibrate (training then has 12 blocks instead of 14).
    """
    return 2 if rows < SMALL_CORPUS else 1


def assign(
    labels: NDArray[np.int64], names: Sequence[str], fold: int, *, has_test: bool, held_out_blocks: int = 1
) -> dict[str, NDArray[np.int64]]:
    """Row indices of each part by contiguous blocks per class.

    Fold f: of the 20 blocks of each class, blocks 4f … 4f+3 are the test part, the following ones training, the last
    `held_out_blocks` pairs before the circle closes validation and calibration. With `has_test` (the source brings its
    own test part) the four test blocks are training too, and the result has no "test".

    Args:
        labels: int64 [rows], after duplicates were removed.
        names: the classes, for messages.
        fold: 0 to 4.

    Raises:
        DataError: for a class too small to be in every part, with the number of rows that it takes.
    """
    if fold not in range(FOLDS):
        raise DataError(f"fold {fold} does not exist; choose 0 to {FOLDS - 1}")
    needed = 2 * BLOCKS // held_out_blocks  # two rows of it in calibration, of which one fits and one is scored
    counts = np.bincount(labels, minlength=len(names))
    small = [f"{name!r} has {count}" for name, count in zip(names, counts, strict=True) if count < needed]
    if small:
        raise DataError(
            f"every class needs {needed} different texts to be in every part, but {', '.join(small)}; "
            "add rows, merge such a class with another, or leave it out"
        )
    block = np.empty(len(labels), dtype=np.int64)
    for label in range(len(names)):
        rows = np.flatnonzero(labels == label)
        block[rows] = (np.arange(len(rows)) * BLOCKS // len(rows) - 4 * fold) % BLOCKS  # counted from the test's first
    calibration = block >= BLOCKS - held_out_blocks
    validation = ~calibration & (block >= BLOCKS - 2 * held_out_blocks)
    test = (block < 4) & (not has_test)
    masks = {"train": ~(calibration | validation | test), "validation": validation, "calibration": calibration}
    if not has_test:
        masks["test"] = test
    return {part: np.flatnonzero(mask) for part, mask in masks.items()}


def first_rows(labels: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Indices of the first rows of each class, in proportion to the classes, at most `limit` but one per class at
    least.

    Args:
        labels: int64 [rows].
    """
    if limit >= len(labels):
        return np.arange(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    quotas = np.diff(np.cumsum(counts) * limit // len(labels), prepend=0)  # differences of a rounded sum: they add up
    keep = [np.flatnonzero(labels == c)[: max(1, quota)] for c, quota in zip(classes, quotas, strict=True)]
    return np.sort(np.concatenate(keep))


def sha256_of_rows(texts: Iterable[str], labels: Iterable[object]) -> str:
    """A hash of texts and labels with their order: equal exactly where all rows are equal."""
    digest = hashlib.sha256()
    for text, label in zip(texts, labels, strict=True):
        for cell in (text, str(label)):
            data = cell.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "big"))  # else ("ab", "c") and ("a", "bc") would be one row
            digest.update(data)
    return digest.hexdigest()


def describe_contradictions(rows: Sequence[int]) -> str:
    """One sentence about texts that carry different labels."""
    return f"{len(rows)} rows dropped: their texts occur with different labels ({name_rows(rows)})"
