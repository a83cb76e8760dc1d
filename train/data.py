"""The corpus: labelled texts from any source, cleaned, split without leakage, with a record of how.

First stage of `python -m train fit`. `load_corpus` reads (`train.sources`), names the classes (`train.labels`), removes
duplicates and cuts the parts (`train.splits`). Its provenance travels with the checkpoint, so that evaluation can load
the very same rows again and prove by their hashes that it did.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.errors import DataError
from train.labels import is_missing, match_labels, name_labels, name_rows
from train.sources import Rows, Source, read_dataset, read_file, read_movie_reviews
from train.splits import (
    BLOCKS,
    PARTS,
    assign,
    blocks_for,
    describe_contradictions,
    fingerprint,
    first_rows,
    remove_duplicates,
    sha256_of_rows,
)

IMDB = "imdb"
_IMDB_SOURCES = (IMDB, "stanfordnlp/imdb")  # both name negative first, as the snippets do
DEFAULT_FOLD = 4
TRAINED, TESTED = "", " (test part)"  # how messages name the parts of a source
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """One part of a corpus.

    Attributes:
        texts: [rows], as they stand in the source.
        labels: int64 [rows], index into the corpus' `label_names`.
    """

    texts: list[str]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: NDArray[np.int64]) -> Split:
        """The rows at these indices, in this order."""
        return Split([self.texts[row] for row in rows], self.labels[rows])


@dataclass(frozen=True)
class Corpus:
    """A corpus in four parts, and the record of where it came from (JSON-ready)."""

    name: str
    label_names: tuple[str, ...]
    train: Split
    validation: Split
    calibration: Split
    test: Split
    provenance: dict[str, Any]


def load_corpus(
    source: str = IMDB,
    text_column: str = "text",
    label_column: str = "label",
    fold: int = DEFAULT_FOLD,
    limit: int | None = None,
    *,
    cache_dir: Path | None = None,
) -> Corpus:
    """Read a corpus, remove duplicates and cut it into parts.

    Args:
        source: ``"imdb"`` (the 25,000 labelled reviews of the package `movie-reviews`); the path of a CSV, JSONL or
            Parquet file; else a data set by folder or hub name, such as ``"stanfordnlp/imdb"``.
        text_column: ignored for ``"imdb"``.
        label_column: ignored for ``"imdb"``.
        fold: which fifth is the test part, 0 to 4 (`train.splits.assign`).
        limit: keep the first rows of each part only, for tests and quick trials.
        cache_dir: cache of Hugging Face `datasets`; its own default if None.

    Raises:
        DataError: for anything that cannot be read, labelled or split as asked.
    """
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} rows leaves nothing; give at least 1")
    read = _read(source, text_column, label_column, cache_dir)
    raw = {TRAINED: read.rows} | ({TESTED: read.test} if read.test is not None else {})
    texts = {part: _texts(rows, text_column, label_column, f"{source}{part}") for part, rows in raw.items()}
    labels = name_labels({f"{source}{part}": rows.labels for part, rows in raw.items()}, read.class_names, label_column)
    pool, *own = (Split(texts[part], labels.ids[f"{source}{part}"]) for part in raw)
    own_test = own[0] if own else None
    _every_class_is_trained(pool, own_test, labels.names, source)

    cleaned = remove_duplicates(pool.texts, pool.labels)
    if cleaned.contradictory_rows:
        _log.warning("%s: %s", source, describe_contradictions(cleaned.contradictory_rows))
    clean = pool.take(cleaned.keep)
    in_test = 0
    if own_test is not None:
        tested = {fingerprint(text) for text in own_test.texts}
        stay = np.array([i for i, text in enumerate(clean.texts) if fingerprint(text) not in tested], dtype=np.int64)
        in_test = len(clean) - len(stay)
        clean = clean.take(stay)
    held_out = 1 if source == IMDB else blocks_for(len(clean))
    parts = {
        part: clean.take(indices)
        for part, indices in assign(
            clean.labels, labels.names, fold, has_test=own_test is not None, held_out_blocks=held_out
        ).items()
    }
    if own_test is not None:
        parts["test"] = own_test
    if limit is not None:
        parts = {part: split.take(first_rows(split.labels, limit)) for part, split in parts.items()}

    all_labels = np.concatenate(list(labels.ids.values()))
    provenance = {
        "source": source,
        "text_column": text_column,
        "label_column": label_column,
        "fold": fold,
        "limit": limit,
        "origin": read.origin,
        "rows_read": sum(map(len, texts.values())),
        "removed": {
            "exact_duplicates": cleaned.exact_duplicates,
            "duplicates_after_normalising_white_space": cleaned.near_duplicates,
            "contradictory_rows": [row + 1 for row in cleaned.contradictory_rows],
            "also_in_test_part": in_test,
        },
        "classes": [
            {"name": name, "values": list(values), "rows": int((all_labels == index).sum())}
            for index, (name, values) in enumerate(zip(labels.names, labels.values, strict=True))
        ],
        "rule": _rule(fold, held_out, own_test is not None),
        "rows": {part: len(parts[part]) for part in PARTS},
        "sha256": {
            "data": sha256_of_rows(chain(*texts.values()), (labels.names[label] for label in all_labels)),
            **{part: sha256_of_rows(parts[part].texts, parts[part].labels.tolist()) for part in PARTS},
        },
    }
    return Corpus(
        source, labels.names, parts["train"], parts["validation"], parts["calibration"], parts["test"], provenance
    )


def reload_corpus(provenance: Mapping[str, Any], cache_dir: Path | None = None) -> Corpus:
    """Load the corpus that a checkpoint was trained on, and prove that each part is the same.

    Raises:
        DataError: if the source now gives other rows than those of the record.
    """
    corpus = load_corpus(
        provenance["source"],
        provenance["text_column"],
        provenance["label_column"],
        provenance["fold"],
        provenance["limit"],
        cache_dir=cache_dir,
    )
    changed = [part for part in PARTS if corpus.provenance["sha256"][part] != provenance["sha256"][part]]
    if changed:
        raise DataError(
            f"{provenance['source']}: the parts {', '.join(changed)} differ from those that the checkpoint was "
            "trained on, so held-out rows may have been trained on; restore the data, or train again"
        )
    return corpus


def load_rows(
    source: str,
    label_names: tuple[str, ...],
    text_column: str = "text",
    label_column: str = "label",
    *,
    cache_dir: Path | None = None,
) -> Split:
    """Labelled rows for a model that exists: all rows of a file, or the test part of a data set that brings one.

    Nothing is removed and nothing is cut. Labels are matched to the model's classes (`train.labels.match_labels`).

    Raises:
        DataError: for anything that cannot be read, or a label that is none of the model's classes.
    """
    read = _read(source, text_column, label_column, cache_dir)
    rows = read.rows if read.test is None else read.test
    texts = _texts(rows, text_column, label_column, source)
    declared = read.class_names
    values = rows.labels
    if declared is not None:
        labels = name_labels({source: values}, declared, label_column)
        values = [declared[label] for label in labels.ids[source]]
    return Split(texts, match_labels(values, label_names, label_column, source))


def load_snippets(cache_dir: Path | None = None) -> Split:
    """The 8,530 Rotten Tomatoes snippets of the package `movie-reviews`: the same two classes, out of IMDB's domain.

    Raises:
        DataError: if the package is not installed.
    """
    rows = read_movie_reviews("rotten_tomatoes", cache_dir).rows
    return Split(rows.texts, np.array(rows.labels, dtype=np.int64))


def snippets_beside(corpus: Corpus, cache_dir: Path | None = None) -> Split | None:
    """The snippets to measure a model of IMDB reviews on, in a trial as few as its parts; None for another corpus.

    Raises:
        DataError: if the package is not installed.
    """
    if corpus.name not in _IMDB_SOURCES:
        return None
    snippets = load_snippets(cache_dir)
    return snippets.take(first_rows(snippets.labels, corpus.provenance["limit"] or len(snippets)))


def _read(source: str, text_column: str, label_column: str, cache_dir: Path | None) -> Source:
    if source == IMDB:
        return read_movie_reviews(IMDB, cache_dir)
    path = Path(source)
    if path.is_file():
        return read_file(path, text_column, label_column, cache_dir)
    if not path.exists() and (
        path.suffix.lower() in (".csv", ".json", ".jsonl", ".parquet", ".tsv") or path.is_absolute()
    ):
        raise DataError(f"there is no file {source}")
    return read_dataset(source, text_column, label_column, cache_dir)


def _texts(rows: Rows, text_column: str, label_column: str, where: str) -> list[str]:
    """The text column, after every row was seen to have a text and a label."""
    if not rows.texts:
        raise DataError(f"{where}: there are no rows")
    texts = checked_texts(rows.texts, text_column, where)
    _require_cells(rows.labels, label_column, where)
    return texts


def checked_texts(cells: Sequence[Any], column: str, where: str) -> list[str]:
    """The cells of a text column.

    Raises:
        DataError: for a cell that is missing or no text, naming its row.
    """
    _require_cells(cells, column, where)
    other = [i for i, cell in enumerate(cells) if not isinstance(cell, str)]
    if other:
        raise DataError(
            f"{where}: column {column!r} must hold text, but {name_rows(other, 'holds')} {cells[other[0]]!r}"
        )
    return list(cells)


def _require_cells(cells: Sequence[Any], column: str, where: str) -> None:
    missing = [i for i, cell in enumerate(cells) if is_missing(cell)]
    if missing:
        raise DataError(f"{where}: column {column!r} is empty in {name_rows(missing)}; fill these rows or delete them")


def _every_class_is_trained(pool: Split, own_test: Split | None, names: tuple[str, ...], source: str) -> None:
    """A class that only the test part has would be scored and never learnt."""
    for index, name in enumerate(names):
        if not (pool.labels == index).any():
            tested = np.flatnonzero(own_test.labels == index).tolist() if own_test is not None else []
            where = f"only in its test part ({name_rows(tested)})" if tested else "nowhere"
            raise DataError(f"{source}: class {name!r} occurs {where}; add training rows for it, or remove it")


def _rule(fold: int, held_out_blocks: int, own_test: bool) -> str:
    shares = f"validation {held_out_blocks} and calibration {held_out_blocks} of {BLOCKS} contiguous blocks per class"
    if own_test:
        return f"fold {fold}: {shares}, the source's own test part, the rest training"
    return f"fold {fold}: test 4, {shares}, the rest training"
