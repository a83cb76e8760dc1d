"""A fine-tuned `AutoModelForSequenceClassification` folder as something to export.

Loaded with nothing left to chance: eager attention, float32, safetensors alone, no code of its own, and no tensor
missing or unexpected. It has no calibration, so the user's labelled rows give it one: a temperature and the scores to
decide on. Whatever would answer wrongly without an error is refused here, before anything is exported.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from scipy.special import expit, log_softmax
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from export.answers import Answers, Floats
from export.calibrations import AnyCalibration, MultiLabelCalibration, RegressionCalibration, require_enough
from export.decisions import AnyDecision
from export.encoder import Ids, TextEncoder
from export.errors import GateError, RefusedCheckpointError
from export.folder_facts import FolderFacts, read_facts
from export.label_columns import multi_label_rows, number_rows
from export.outputs import MULTI_LABEL, REGRESSION, Kind
from export.padded import PaddedClassifier
from export.reference import answers_of_logits
from export.rows import RowFiles, labelled_rows
from export.texts import Truth
from train.calibration import Calibration, every_class, fitting_and_scoring
from train.checkpoint import sha256_of
from train.errors import CalibrationError
from train.temperature import fit_temperature

PADDING_TOLERANCE = 1e-4  # largest |Δp| by padding; the ten families are within 5e-7, FNet and XLNet 0.7 off
_PADDED_TOGETHER = 4
_TOKENIZER = "tokenizer.json"
_VOCABULARIES = ("vocab.txt", "vocab.json", "spiece.model", "spm.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class HuggingFaceCheckpoint:
    """A sequence classifier of the Hugging Face kind, loaded; `model` is in evaluation mode."""

    path: Path
    facts: FolderFacts
    model: PreTrainedModel
    encoder: TextEncoder
    tokenizer_file: bytes
    known: dict[bytes, Floats] = field(default_factory=dict, repr=False, compare=False)  # logits of texts seen alone

    @staticmethod
    def load(path: Path, max_tokens: int | None = None) -> HuggingFaceCheckpoint:
        """Load and check a folder.

        Raises:
            RefusedCheckpointError: in one sentence, for what would not answer as it did in training.
        """
        facts = read_facts(path, max_tokens)
        model = _load_model(path, facts)
        content = _tokenizer_file(path)
        encoder = _encoder(path, content, facts)
        embedding: Any = model.get_input_embeddings()
        rows = int(embedding.weight.shape[0])
        highest = max(encoder.tokenizer.get_vocab(with_added_tokens=True).values())
        if highest >= rows:
            raise RefusedCheckpointError(
                f"{path}: the tokenizer gives ids up to {highest} and the model has embeddings for {rows}: this is "
                "another model's tokenizer; put the right one into the folder"
            )
        return HuggingFaceCheckpoint(path, facts, model, encoder, content)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities."""
        return self.facts.label_names

    @property
    def identity(self) -> str:
        """A hash over configuration, weights and tokenizer."""
        return self.facts.identity

    @property
    def kind(self) -> Kind:
        """What its head answers, as its configuration says."""
        return self.facts.kind

    def calibrate(self, files: RowFiles, least_rows: int) -> AnyCalibration:
        """Score the user's rows; a temperature is fitted on a quarter of them, of every label of a multi-label head.

        Raises:
            DataError, CalibrationError: if the rows cannot be read, or are too few to prove anything.
            RefusedCheckpointError: if the model's answers depend on padding, or are not numbers.
        """
        path = files.calibration
        if path is None:
            raise CalibrationError(
                f"{self.path} brings no calibration: give labelled rows that it was not trained on with "
                "--calibration FILE (some hundreds, CSV, JSONL or Parquet)"
            )
        if self.kind == MULTI_LABEL:
            texts, truth = multi_label_rows(path, files, self.label_names)
            require_enough(path, len(texts), int((~MultiLabelCalibration.fitting(len(texts))).sum()), least_rows)
            return MultiLabelCalibration(self.label_names, self._logits_of_rows(path, texts), truth)
        if self.kind == REGRESSION:
            texts, numbers = number_rows(path, files)
            return RegressionCalibration(path, self._logits_of_rows(path, texts)[:, 0].astype(np.float64), numbers)
        texts, given = labelled_rows(path, files, self.label_names)
        labels = np.array(given, dtype=np.int64)
        fit, scored = fitting_and_scoring(labels)
        every_class(labels[fit], labels[scored], self.label_names)
        require_enough(path, len(labels), len(scored), least_rows)
        logits = self._logits_of_rows(path, texts)
        temperature = fit_temperature(logits[fit], labels[fit])
        log_p = log_softmax(logits / np.float32(temperature), axis=1)
        total = -(np.exp(log_p) * log_p).sum(1)
        right = log_p.argmax(1) == labels
        return Calibration(
            total=total[scored].tolist(),
            epistemic=[],
            true_probability=np.exp(log_p[scored, labels[scored]]).tolist(),
            correct=right[scored].tolist(),
            num_classes=len(self.label_names),
            novelty_threshold=None,
            novelty_quantile=None,
            fitting_total=total[fit].tolist(),
            fitting_correct=right[fit].tolist(),
            temperature=temperature,
        )

    def _logits_of_rows(self, path: Path, texts: Sequence[str]) -> Floats:
        documents = self.encoder.encode(texts)
        self.require_padding_is_harmless(documents)
        logits = np.concatenate([self.logits([document]) for document in documents])
        if not np.isfinite(logits).all():
            first = int(np.flatnonzero(~np.isfinite(logits).all(1))[0])
            raise RefusedCheckpointError(
                f"{self.path} answers row {first + 1} of {path} with {logits[first].tolist()}, which are "
                "no numbers; its weights are damaged or overflow: use another checkpoint"
            )
        return logits

    def held_out(self, files: RowFiles) -> tuple[list[str], list[Truth] | None]:
        """The user's labelled rows.

        Raises:
            GateError: without any.
        """
        if files.calibration is None:
            raise GateError(f"{self.path} names no corpus; give real texts with --texts FILE")
        if self.kind == MULTI_LABEL:
            texts, truth = multi_label_rows(files.calibration, files, self.label_names)
            return texts, [tuple(row) for row in truth.tolist()]
        if self.kind == REGRESSION:
            texts, numbers = number_rows(files.calibration, files)
            return texts, numbers.tolist()
        texts, labels = labelled_rows(files.calibration, files, self.label_names)
        return texts, list(labels)

    def classifier(self, decision: AnyDecision) -> PaddedClassifier:
        """The model with its head and decision, ragged outside."""
        return PaddedClassifier(self.model, decision, self.facts.max_tokens, self.facts.pad_id).eval()

    def answers(self, decision: AnyDecision, documents: Sequence[Ids]) -> Answers:
        """The model's own answers, each text alone, with the decision taken here and not by the exported module."""
        logits = np.concatenate([self.logits([document]) for document in documents])
        return answers_of_logits(logits, decision, self.label_names)

    def record(self, files: RowFiles) -> dict[str, Any]:
        """The configuration, and the rows that it was calibrated on; what it was trained on, nobody says."""
        rows = files.calibration
        return {
            "config": json.loads((self.path / "config.json").read_text(encoding="utf-8")),
            "data": rows
            and {
                "calibration": str(rows.resolve()),
                "sha256": sha256_of(rows),
                "text_column": files.text_column,
                "label_column": files.label_column,
            },
            "metrics": None,
            "training": {
                "dtype": str(self.facts.config.dtype or "float32").removeprefix("torch."),
                "served": "float32",
            },
        }

    def logits(self, documents: Sequence[Ids]) -> Floats:
        """Logits [R, C] of texts side by side, in eager PyTorch; of a single text without any padding.

        A single text is computed once: calibration rows are texts of the gate as well.
        """
        if len(documents) != 1:
            return self.run(documents)
        key = documents[0].tobytes()
        if key not in self.known:
            self.known[key] = self.run(documents)
        return self.known[key]

    @torch.no_grad()
    def run(self, documents: Sequence[Ids]) -> Floats:
        """Logits [R, C] of texts side by side, computed now."""
        width = max(map(len, documents))
        ids = torch.full((len(documents), width), self.facts.pad_id)
        mask = torch.zeros((len(documents), width), dtype=torch.int64)
        for row, document in enumerate(documents):
            ids[row, : len(document)] = torch.from_numpy(document)
            mask[row, : len(document)] = 1
        answer: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return answer.numpy()

    def require_padding_is_harmless(self, documents: Sequence[Ids]) -> None:
        """Compare texts beside a longer one with the same texts alone, before anything is built on it.

        Raises:
            RefusedCheckpointError: with the largest difference.
        """
        by_length = sorted(documents, key=len)
        some = [by_length[i * (len(by_length) - 1) // (_PADDED_TOGETHER - 1)] for i in range(_PADDED_TOGETHER)]
        full = np.resize(by_length[-1], self.facts.max_tokens)  # a text at the limit, or positions that do not reach it
        try:
            together = self.logits([*some, full])
            alone = np.concatenate([self.logits([document]) for document in [*some, full]])
        except (IndexError, RuntimeError, ValueError) as error:
            raise RefusedCheckpointError(
                f"{self.path}: {type(self.model).__name__} fails on texts of up to {self.facts.max_tokens} tokens "
                f"({error}); give the right limit with --max-tokens, or another architecture"
            ) from error
        with np.errstate(invalid="ignore", divide="ignore"):  # no numbers are said with the rows that they come from
            gap = np.abs(self._comparable(together, alone) - self._comparable(alone, alone)).max()
        if gap > PADDING_TOLERANCE:
            unit = "units of its values' size" if self.kind == REGRESSION else "probability"
            raise RefusedCheckpointError(
                f"{self.path}: {type(self.model).__name__} answers differently where a text is padded, by {gap:.2g} in "
                f"{unit}, so joined requests would change each other's answers; use an encoder such as BERT, "
                "RoBERTa, DeBERTa or ModernBERT"
            )

    def _comparable(self, logits: Floats, alone: Floats) -> Floats:
        """Logits as what is answered: probabilities, or values in units of their size (root mean square)."""
        if self.kind == REGRESSION:
            return logits / np.float32(np.sqrt(np.square(alone).mean()))
        answered: Floats = expit(logits) if self.kind == MULTI_LABEL else np.exp(log_softmax(logits, axis=1))
        return answered


def _load_model(path: Path, facts: FolderFacts) -> PreTrainedModel:
    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=facts.config,
            attn_implementation="eager",
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the loading info, where they can be named
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RefusedCheckpointError(f"{path} cannot be loaded as a sequence classifier: {first}") from error
    faults = {
        kind: sorted(key if isinstance(key, str) else key[0] for key in loaded[kind])
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if any(faults.values()):
        said = "; ".join(
            f"{kind.removesuffix('_keys')}: {', '.join(keys[:4])}" for kind, keys in faults.items() if keys
        )
        raise RefusedCheckpointError(
            f"{path}: the weights are not those of a {type(model).__name__} ({said}); what is missing would be random: "
            "give the folder that fine-tuning wrote"
        )
    damaged = [name for name, tensor in model.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if damaged:
        raise RefusedCheckpointError(
            f"{path}: {len(damaged)} tensors hold values that are no numbers ({damaged[0]} …); use another checkpoint"
        )
    loaded_model: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded_model


def _tokenizer_file(path: Path) -> bytes:
    """The folder's `tokenizer.json`, or the one that transformers converts a slow tokenizer to."""
    if (path / _TOKENIZER).is_file():
        return (path / _TOKENIZER).read_bytes()
    if not any((path / file).is_file() for file in _VOCABULARIES):  # transformers would make up an empty one
        raise RefusedCheckpointError(
            f"{path} has no {_TOKENIZER}, and no {', '.join(_VOCABULARIES)} to make one from; save the tokenizer that "
            "the model was trained with into the folder"
        )
    try:
        converted = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        with tempfile.TemporaryDirectory() as folder:
            converted.save_pretrained(folder)
            return (Path(folder) / _TOKENIZER).read_bytes()
    except Exception as error:  # whatever a converter raises, the folder lacks what it would take
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RefusedCheckpointError(
            f"{path} has no {_TOKENIZER}, and its tokenizer could not be converted ({first}); load it with "
            "AutoTokenizer(use_fast=True) where it was trained, and save it into the folder"
        ) from error


def _encoder(path: Path, content: bytes, facts: FolderFacts) -> TextEncoder:
    try:
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise RefusedCheckpointError(f"{path / _TOKENIZER} is not a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # a user's "[SEP]" is plain text
    example = tokenizer.encode("a")
    if any(example.type_ids):
        raise RefusedCheckpointError(
            f"{path / _TOKENIZER} gives a single text the type ids {example.type_ids}, and the served graph knows type "
            "0 alone; use a tokenizer whose template gives 0"
        )
    special = example.special_tokens_mask
    opening, closing = (special.index(0), special[::-1].index(0)) if 0 in special else (0, 0)
    head = opening if _cuts_on_the_left(path) else facts.max_tokens - closing
    return TextEncoder(tokenizer, facts.max_tokens, head, True, facts.pad_id)


def _cuts_on_the_left(path: Path) -> bool:
    """Whether a long text was cut at its beginning in training, as models of dialogues are."""
    file = path / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return isinstance(config, dict) and config.get("truncation_side") == "left"
