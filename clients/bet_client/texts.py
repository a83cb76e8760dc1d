"""Texts from a file, for the command line: one text a line, or the `text` column of CSV or JSONL.

Read as training reads the same files (`train.sources`): UTF-8 with or without a byte-order mark, any line ends, quoted
line breaks and doubled quotes in CSV.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

COLUMN = "text"


class TextsError(Exception):
    """A file that cannot be read as texts; the message says where and what to do."""


def read_texts(path: str) -> Iterator[Any]:
    """The texts of a file in their order; ``-`` is standard input, one text a line.

    A value that is no text (a number, a missing field) is given as it is, for the client to refuse in its place.

    Raises:
        TextsError: if the file cannot be opened, is not UTF-8, or is not in the form that its name says.
    """
    readers = {".csv": _csv, ".jsonl": _jsonl, ".txt": _lines}
    kind = ".txt" if path == "-" else Path(path).suffix.lower()
    if kind not in readers:
        raise TextsError(f"{path}: only .txt (one text a line), .csv and .jsonl are read here; convert the file to one")
    try:
        # newline="" leaves line ends inside quoted CSV fields as they are; the readers below know every kind.
        descriptor: str | int = sys.stdin.fileno() if path == "-" else path
        with open(descriptor, encoding="utf-8-sig", newline="", closefd=path != "-") as stream:
            yield from readers[kind](stream, path)
    except UnicodeDecodeError as error:
        raise TextsError(f"{path} is not UTF-8 ({error}); convert it, for instance with iconv") from error
    except OSError as error:
        raise TextsError(f"{path} cannot be read: {error.strerror}") from error


def _lines(stream: TextIO, path: str) -> Iterator[str]:
    for line in stream:
        yield line.rstrip("\r\n")


def _csv(stream: TextIO, path: str) -> Iterator[Any]:
    csv.field_size_limit(2**31 - 1)  # a long text is the server's to refuse, not the reader's
    rows = csv.DictReader(stream, strict=True)
    try:
        header = list(rows.fieldnames or [])
        if COLUMN not in header:
            raise TextsError(f"{path} has no column {COLUMN!r}, only {header}; name the column so")
        if header.count(COLUMN) > 1:
            raise TextsError(f"{path} names {COLUMN!r} more than once in its header; rename the other columns")
        for row in rows:
            if None in row:  # cells beyond the header: a comma that should have been quoted has cut the text
                raise TextsError(
                    f"{path}, line {rows.line_num}: more cells than the header's {len(header)}; put a text that holds "
                    "a comma in double quotes"
                )
            yield row[COLUMN]
    except csv.Error as error:
        raise TextsError(f"{path}, line {rows.reader.line_num}: {error}; mend the quotes there") from error


def _jsonl(stream: TextIO, path: str) -> Iterator[Any]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TextsError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or COLUMN not in record:
            raise TextsError(f"{path}, line {number} is not an object with a field {COLUMN!r}")
        yield record[COLUMN]
