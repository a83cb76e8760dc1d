"""Where the rows come from: the checkpoint, the rows to decide on, the texts to compare on.

A checkpoint brings its own calibration scores and names its corpus, which is loaded again for the gate; a file of
labelled rows may stand in for both, and a file of texts for the corpus.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import ExportError, GateError
from export.repository import MAX_TEXT_BYTES
from export.texts import GateText, Ids, choose_texts
from train.calibration import Calibration, score
from train.checkpoint import Checkpoint, load_production
from train.data import reload_corpus
from train.errors import CheckpointError, DataError
from train.sources import Rows, read_file
from train.tokenizer import encode


@dataclass(frozen=True)
class RowFiles:
    """Files that a user gave instead of what the checkpoint brings."""

    calibration: Path | None = None  # labelled rows to decide on; also the texts of the gate
    texts: Path | None = None  # texts of the gate
    text_column: str = "text"
    label_column: str = "label"


def load_checkpoint(path: Path) -> Checkpoint:
    """Load what `train` wrote.

    Raises:
        CheckpointError: in one sentence, for anything else.
    """
    config = path / "config.json"
    if config.is_file():
        try:
            kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        except (ValueError, AttributeError):
            kind = None
        if kind != "bet":
            raise CheckpointError(
                f"{path} holds a model of type {kind!r}; give a production folder that `python -m train fit` wrote"
            )
    return load_production(path)


def gate_texts(checkpoint: Checkpoint, files: RowFiles, count: int) -> list[GateText]:
    """The gate's texts: of a file, of the calibration rows, or of the checkpoint's own corpus.

    Raises:
        GateError: if there are none to be had.
    """
    if files.texts is not None:
        texts, labels = texts_of(files.texts, files.text_column), None
    elif files.calibration is not None:
        texts, labels = _labelled_rows(checkpoint, files.calibration, files)
    else:
        try:
            corpus = reload_corpus(checkpoint.provenance["data"])
        except (DataError, KeyError) as error:
            raise GateError(
                f"the checkpoint's corpus cannot be loaded for the gate ({error}); give real texts with --texts FILE "
                "or labelled rows with --calibration FILE"
            ) from error
        if corpus.label_names != checkpoint.label_names:
            raise ExportError(
                f"the checkpoint names its classes {', '.join(checkpoint.label_names)} and its corpus "
                f"{', '.join(corpus.label_names)}: the answers would carry wrong names; train again"
            )
        held_out = (corpus.calibration, corpus.validation)
        texts = [text for split in held_out for text in split.texts]
        labels = np.concatenate([split.labels for split in held_out]).tolist()
    served_at_all = [i for i, text in enumerate(texts) if len(text.encode("utf-8", "replace")) <= MAX_TEXT_BYTES]
    config = checkpoint.model.config
    return choose_texts(
        checkpoint.tokenizer,
        [texts[i] for i in served_at_all],
        None if labels is None else [labels[i] for i in served_at_all],
        max_length=config.max_tokens,
        head_length=config.head_tokens,
        count=count,
    )


def calibration_of(checkpoint: Checkpoint, files: RowFiles) -> Calibration:
    """The checkpoint's own scores, or the scores of the user's labelled rows under its model.

    Raises:
        DataError, CalibrationError: if the rows cannot be read, or cannot support a decision.
    """
    if files.calibration is None:
        return checkpoint.calibration
    texts, labels = _labelled_rows(checkpoint, files.calibration, files)
    return score(
        checkpoint.model,
        encode_texts(checkpoint, texts),
        np.array(labels, dtype=np.int64),
        novelty_threshold=checkpoint.calibration.novelty_threshold,
        novelty_quantile=checkpoint.calibration.novelty_quantile,
        fitting_total=checkpoint.calibration.fitting_total,
        fitting_correct=checkpoint.calibration.fitting_correct,
    )


def _labelled_rows(checkpoint: Checkpoint, path: Path, files: RowFiles) -> tuple[list[str], list[int]]:
    rows = _read(path, files.text_column, files.label_column)
    index = {name: i for i, name in enumerate(checkpoint.label_names)}
    unknown = [i for i, label in enumerate(rows.labels) if str(label) not in index]
    if unknown:
        raise DataError(
            f"{path}: row {unknown[0] + 1} is labelled {rows.labels[unknown[0]]!r}, and {len(unknown)} rows in all "
            f"have a label that the checkpoint does not know; its labels are {', '.join(index)}"
        )
    return _texts_only(path, rows.texts), [index[str(label)] for label in rows.labels]


def texts_of(path: Path, text_column: str) -> list[str]:
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


def encode_texts(checkpoint: Checkpoint, texts: list[str]) -> list[Ids]:
    config = checkpoint.model.config
    return encode(checkpoint.tokenizer, texts, config.max_tokens, config.head_tokens)
