"""What is learned before the streams: tokenizer and word vectors, then n-gram evidence; each made once a run and kept.

They depend on the training part and the preset alone, so a resumed run loads them instead of fitting them again.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from train.checkpoint import verify, written_whole
from train.data import Corpus
from train.embedding import ppmi_vectors
from train.errors import CheckpointError
from train.evidence import EvidenceTables, HeldOut, OutOfFold, fit_evidence
from train.model.bet import BetForSequenceClassification
from train.model.config import BetConfig
from train.model.evidence import HASHED
from train.model.streams import Encoder
from train.prediction import Ids
from train.preset import Preset
from train.tokenizer import adopt_tokenizer, encode, load_tokenizer, save_tokenizer, train_tokenizer

_log = logging.getLogger(__name__)
FEATURES, EVIDENCE = "features", "evidence"
_VECTORS, _TABLES = "vectors.safetensors", "tables.safetensors"
_HONEST = ("whole", "crops")


@dataclass(frozen=True)
class Features:
    """What the encoder starts from."""

    tokenizer: Tokenizer
    vectors: npt.NDArray[np.float32]  # [V, embedding_size]; [0, 0] where the encoder brings its own


def prepare_features(
    corpus: Corpus, preset: Preset, run: Path, *, encoder: Path | None = None, seed: int
) -> tuple[Features, list[Ids]]:
    """Features from the training part, and its token ids; loaded from `run` where they lie there whole.

    With a pretrained `encoder`, its folder gives the tokenizer, and there are no word vectors to make.
    """
    config = BetConfig(**preset.model)
    folder = run / FEATURES
    if _whole(folder, "tokenizer and word vectors"):
        features = Features(load_tokenizer(folder), load_file(folder / _VECTORS)["vectors"])
        return features, encode(features.tokenizer, corpus.train.texts, config.max_tokens, config.head_tokens)
    started = time.perf_counter()
    if encoder is not None:
        tokenizer = adopt_tokenizer(encoder)
    else:
        assert preset.tokenizer is not None
        tokenizer = train_tokenizer(corpus.train.texts, preset.tokenizer.vocab_size)
    documents = encode(tokenizer, corpus.train.texts, config.max_tokens, config.head_tokens)
    pieces = tokenizer.get_vocab_size()
    width = 0 if encoder is not None else config.embedding_size
    features = Features(tokenizer, ppmi_vectors(documents, pieces, width, seed=seed))
    _log.info("tokenizer and word vectors: %d pieces, %.0f s", pieces, time.perf_counter() - started)
    with written_whole(folder) as staging:
        save_tokenizer(tokenizer, staging)
        save_file({"vectors": np.ascontiguousarray(features.vectors)}, staging / _VECTORS)
    return features, documents


def prepare_evidence(
    documents: list[Ids], corpus: Corpus, preset: Preset, run: Path, config: BetConfig, *, seed: int, threads: int
) -> EvidenceTables:
    """Evidence of the training part's n-grams; loaded from `run` where it lies there whole."""
    folder = run / EVIDENCE
    if _whole(folder, "evidence"):
        return load_evidence(run)
    started = time.perf_counter()
    tables = fit_evidence(
        documents,
        corpus.train.labels,
        num_classes=len(corpus.label_names),
        vocab_size=config.vocab_size,
        unk_token_id=config.unk_token_id,
        slots=config.hash_slots,
        folds=preset.evidence.folds,
        inverse_regularisation=preset.evidence.inverse_regularisation,
        crop_weight=preset.evidence.crop_weight,
        seed=seed,
        threads=threads,
    )
    accuracy = (_as_class(tables.whole.evidence) == corpus.train.labels).mean()
    _log.info("evidence: out-of-fold accuracy %.4f, %.0f s", accuracy, time.perf_counter() - started)
    with written_whole(folder) as staging:
        _save(tables, staging)
    return tables


def load_evidence(run: Path) -> EvidenceTables:
    """The evidence that a run keeps in `run`."""
    arrays = load_file(run / EVIDENCE / _TABLES)
    return EvidenceTables(
        unigram=arrays["unigram"],
        fingerprints={n: arrays[f"fingerprint_{n}"] for n in HASHED},
        tables={n: arrays[f"evidence_{n}"] for n in HASHED},
        bias=arrays["bias"],
        **{kind: OutOfFold(arrays[f"{kind}_evidence"], arrays[f"{kind}_novelty"]) for kind in _HONEST},
        held_out=HeldOut(arrays["held_out_by_token"], arrays["held_out_bias"]),
    )


def build_model(config: BetConfig, features: Features) -> BetForSequenceClassification:
    """A model with these word vectors, empty evidence and untrained streams (seed torch before)."""
    model = BetForSequenceClassification(config)
    if isinstance(model.trunk.encoder, Encoder):
        with torch.no_grad():
            model.trunk.encoder.embedding.weight.copy_(torch.from_numpy(features.vectors))
    return model


def place_evidence(model: BetForSequenceClassification, tables: EvidenceTables) -> None:
    """Put learned tables into a model."""
    with torch.no_grad():
        model.evidence.unigram.copy_(torch.from_numpy(tables.unigram))
        model.evidence.bias.copy_(torch.from_numpy(tables.bias))
        model.evidence.fingerprint.copy_(torch.from_numpy(np.concatenate([tables.fingerprints[n] for n in HASHED])))
        model.evidence.ngram.copy_(torch.from_numpy(np.concatenate([tables.tables[n] for n in HASHED])))


def _whole(folder: Path, what: str) -> bool:
    if not folder.is_dir():
        return False
    try:
        verify(folder)
    except CheckpointError as error:
        _log.warning("%s: made again, since %s", what, error)
        return False
    _log.info("%s: reused from %s", what, folder)
    return True


def _as_class(scores: npt.NDArray[np.float32]) -> Ids:
    return (scores[:, 0] > 0).astype(np.int64) if scores.shape[1] == 1 else scores.argmax(1)


def _save(tables: EvidenceTables, folder: Path) -> None:
    arrays = {
        "unigram": tables.unigram,
        "bias": tables.bias,
        **{
            f"{kind}_{name}": getattr(getattr(tables, kind), name)
            for kind in _HONEST
            for name in ("evidence", "novelty")
        },
        "held_out_by_token": tables.held_out.by_token,
        "held_out_bias": tables.held_out.bias,
        **{f"fingerprint_{n}": tables.fingerprints[n] for n in HASHED},
        **{f"evidence_{n}": tables.tables[n] for n in HASHED},
    }
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / _TABLES)
