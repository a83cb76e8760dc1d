"""What can be exported: our own production folders and Hugging Face classifiers, seen the same way.

`Exportable` is all that the rest of this package knows of a checkpoint; behind it stand `BetCheckpoint` and
`HuggingFaceCheckpoint`. Each gives its classifier as a module that takes ragged rows, and its own answers in eager
PyTorch, a text at a time, as the truth that every exported form is held against.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from export.answers import Answers
from export.bet_checkpoint import BetCheckpoint
from export.calibrations import AnyCalibration
from export.decisions import AnyDecision
from export.encoder import Ids, TextEncoder
from export.errors import ExportError
from export.graph import ServedClassifier
from export.hugging_face import HuggingFaceCheckpoint
from export.outputs import Kind
from export.padded import PaddedClassifier
from export.repository import MAX_TEXT_BYTES
from export.rows import RowFiles, texts_of
from export.texts import GateText, Truth, choose_texts
from train.checkpoint import SEAL

_MANY_UNKNOWN = 0.01  # of the tokens; of real text in a model's own language it is a few in ten thousand
_log = logging.getLogger(__name__)


class Exportable(Protocol):
    """A checkpoint that can become a served version."""

    @property
    def kind(self) -> Kind:
        """Its outputs, and how it executes rows."""

    @property
    def path(self) -> Path:
        """Its folder."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities."""

    @property
    def encoder(self) -> TextEncoder:
        """Its tokenizer with its limit."""

    @property
    def tokenizer_file(self) -> bytes:
        """The content of `tokenizer.json` that is served."""

    @property
    def identity(self) -> str:
        """A hash over everything that the checkpoint is made of."""

    def calibrate(self, files: RowFiles, least_rows: int) -> AnyCalibration:
        """Scores to decide on; `least_rows` of them could prove the budget if none were wrong."""

    def held_out(self, files: RowFiles) -> tuple[list[str], list[Truth] | None]:
        """Real texts that it was not trained on, with what they are labelled where known."""

    def classifier(self, decision: AnyDecision) -> ServedClassifier | PaddedClassifier:
        """What is exported."""

    def answers(self, decision: AnyDecision, documents: Sequence[Ids]) -> Answers:
        """Its own answers to texts given as ids, each alone, in eager PyTorch."""

    def record(self, files: RowFiles) -> dict[str, Any]:
        """The manifest's entries about where the version comes from."""


def load_checkpoint(path: Path, max_tokens: int | None = None) -> Exportable:
    """Load a production folder of `train`, or an `AutoModelForSequenceClassification` folder.

    Args:
        max_tokens: most tokens of a text, for architectures that state no limit, or to read less than they can.

    Raises:
        CheckpointError, RefusedCheckpointError: in one sentence, for anything that would not answer rightly.
    """
    if _is_hugging_face(path):
        return HuggingFaceCheckpoint.load(path, max_tokens)
    if max_tokens is not None:
        raise ExportError(f"{path} states its own limit of tokens: leave --max-tokens out")
    return BetCheckpoint.load(path)


def gate_texts(checkpoint: Exportable, files: RowFiles, count: int) -> list[GateText]:
    """The gate's texts: of a file, or what the checkpoint knows that it was not trained on.

    Raises:
        GateError: if there are none to be had.
    """
    texts: list[str]
    labels: list[Truth] | None
    if files.texts is not None:
        texts, labels = texts_of(files.texts, files.text_column), None
    else:
        texts, labels = checkpoint.held_out(files)
    served_at_all = [i for i, text in enumerate(texts) if len(text.encode("utf-8", "replace")) <= MAX_TEXT_BYTES]
    _say_what_is_unknown(checkpoint.encoder, [texts[i] for i in served_at_all])
    return choose_texts(
        checkpoint.encoder,
        [texts[i] for i in served_at_all],
        None if labels is None else [labels[i] for i in served_at_all],
        count=count,
    )


def _say_what_is_unknown(encoder: TextEncoder, texts: Sequence[str]) -> None:
    """Words that are one unknown token are one word to the model, and it answers them without a sign of that."""
    unknown, tokens = encoder.unknown(texts)
    if unknown:
        _log.log(
            logging.WARNING if unknown >= _MANY_UNKNOWN * tokens else logging.INFO,
            "%d of %d tokens of the texts are unknown to the tokenizer (%.2f %%): to the model such words are all one",
            unknown,
            tokens,
            100 * unknown / tokens,
        )


def _is_hugging_face(path: Path) -> bool:
    if (path / SEAL).is_file():
        return False
    if (path / "adapter_config.json").is_file():
        return True
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # said by whoever reads the folder as ours
    return isinstance(config, dict) and config.get("model_type") != "bet"
