"""Our own production folder as something to export: it brings its calibration and names its corpus."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.answers import Answers
from export.decisions import AnyDecision
from export.encoder import Ids, TextEncoder
from export.errors import ExportError, GateError
from export.graph import ServedClassifier
from export.ngrams import leading_by_hand
from export.outputs import BET, REASONS, Kind
from export.pieces import piece_table, vocabulary
from export.rows import RowFiles, labelled_rows
from export.texts import Truth
from train.calibration import Calibration, score
from train.checkpoint import SEAL, Checkpoint, load_production, sha256_of
from train.data import reload_corpus
from train.decision import Decision
from train.errors import DataError
from train.prediction import pack


@dataclass(frozen=True)
class BetCheckpoint:
    """What `train` wrote."""

    whole: Checkpoint
    kind: Kind = BET

    @staticmethod
    def load(path: Path) -> BetCheckpoint:
        """Load and check a production folder.

        Raises:
            CheckpointError: in one sentence, for anything else.
        """
        return BetCheckpoint(load_production(path))

    @property
    def path(self) -> Path:
        """The production folder."""
        return self.whole.path

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities."""
        return self.whole.label_names

    @cached_property
    def encoder(self) -> TextEncoder:
        """Head and tail of a text, without special tokens."""
        config = self.whole.model.config
        return TextEncoder(self.whole.tokenizer, config.max_tokens, config.head_tokens, False, config.unk_token_id)

    @cached_property
    def pieces(self) -> list[str]:
        """The vocabulary, by id."""
        return vocabulary(self.whole.tokenizer, self.whole.model.config.vocab_size)

    @property
    def tokenizer_file(self) -> bytes:
        """The tokenizer as it was trained."""
        return (self.path / "tokenizer.json").read_bytes()

    @property
    def identity(self) -> str:
        """The hash of the seal, which holds the hash of every file."""
        return sha256_of(self.path / SEAL)

    def calibrate(self, files: RowFiles, least_rows: int) -> Calibration:
        """The checkpoint's own scores, or the scores of the user's labelled rows under its model.

        Rows that are too few are no error here: the model is calibrated, and every answer goes to review.

        Raises:
            DataError, CalibrationError: if the rows cannot be read, or cannot support a decision.
        """
        own = self.whole.calibration
        if files.calibration is None:
            return own
        texts, labels = labelled_rows(files.calibration, files, self.label_names)
        return score(
            self.whole.model,
            self.encoder.encode(texts),
            np.array(labels, dtype=np.int64),
            novelty_threshold=own.novelty_threshold,
            novelty_quantile=own.novelty_quantile,
            fitting_total=own.fitting_total,
            fitting_correct=own.fitting_correct,
        )

    def held_out(self, files: RowFiles) -> tuple[list[str], list[Truth] | None]:
        """The user's labelled rows, or calibration and validation rows of the corpus.

        Raises:
            GateError: if the corpus is not to be had.
        """
        if files.calibration is not None:
            texts, given = labelled_rows(files.calibration, files, self.label_names)
            return texts, list(given)
        try:
            corpus = reload_corpus(self.whole.provenance["data"])
        except (DataError, KeyError) as error:
            raise GateError(
                f"the checkpoint's corpus cannot be loaded for the gate ({error}); give real texts with --texts FILE "
                "or labelled rows with --calibration FILE"
            ) from error
        if corpus.label_names != self.label_names:
            raise ExportError(
                f"the checkpoint names its classes {', '.join(self.label_names)} and its corpus "
                f"{', '.join(corpus.label_names)}: the answers would carry wrong names; train again"
            )
        splits = (corpus.calibration, corpus.validation)
        labels: list[Truth] = np.concatenate([split.labels for split in splits]).tolist()
        return [text for split in splits for text in split.texts], labels

    def classifier(self, decision: AnyDecision) -> ServedClassifier:
        """The model with the decision."""
        assert isinstance(decision, Decision)
        return ServedClassifier(self.whole.model, decision, self.pieces).eval()

    @torch.no_grad()
    def answers(self, decision: AnyDecision, documents: Sequence[Ids]) -> Answers:
        """The model's own answers, each text alone.

        The decision is taken here from its thresholds, and the n-grams are found without the exported module, so that
        its own mistakes show as well.
        """
        assert isinstance(decision, Decision)
        novelty = math.inf if decision.novelty_threshold is None else decision.novelty_threshold
        labels = np.array(self.label_names, dtype=np.str_)
        said_as, parts = piece_table(self.pieces), []
        for document in documents:
            p = self.whole.model.predict(*pack([document]))
            ngrams, nats = leading_by_hand(self.whole.model, document, int(p.probabilities.argmax()), said_as)
            total, epistemic = p.total.numpy(), p.epistemic.numpy()
            uncertain = ~(total <= np.float32(decision.risk_threshold))
            unfamiliar = ~(epistemic <= np.float32(novelty))
            probabilities = p.probabilities.numpy()
            parts.append(
                Answers(
                    label=labels[probabilities.argmax(1)],
                    probabilities=probabilities,
                    total=total,
                    aleatoric=p.aleatoric.numpy(),
                    epistemic=epistemic,
                    review=uncertain | unfamiliar,
                    reason=np.where(uncertain, REASONS[1], np.where(unfamiliar, REASONS[2], REASONS[0])),
                    prediction_set=(1 - probabilities) <= np.float32(decision.conformal_threshold),
                    concentration=p.concentration.numpy(),
                    order_dispersion=p.order_dispersion.numpy(),
                    evidence_budget=p.evidence_budget.numpy().astype(np.int32),
                    evidence_ngrams=np.array([ngrams], dtype=np.str_),
                    evidence_nats=np.array([nats], dtype=np.float32),
                )
            )
        return Answers.joined(parts)

    def record(self, files: RowFiles) -> dict[str, Any]:
        """Configuration, data, metrics and training as the checkpoint records them."""
        provenance = self.whole.provenance
        return {
            "config": json.loads((self.path / "config.json").read_text(encoding="utf-8")),
            "data": provenance.get("data"),
            "metrics": provenance.get("best"),
            "training": {key: provenance.get(key) for key in ("created", "git_commit", "seed", "versions")},
        }
