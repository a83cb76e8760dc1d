"""Answers of a model for many texts: packed into batches by token budget, the same way that training reads them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from train.model.bet import BetComponents, BetForSequenceClassification
from train.model.evidence import MAX_ROWS
from train.tokenizer import encode

Ids = npt.NDArray[np.int64]


def pack(documents: list[Ids]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of R texts -> input_ids [T] int64, lengths [R, 1] int32."""
    lengths = torch.tensor([[len(d)] for d in documents], dtype=torch.int32)
    return torch.from_numpy(np.concatenate(documents)), lengths


def token_batches(documents: list[Ids], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of consecutive texts, at most `MAX_ROWS` and `batch_tokens` tokens (one text may exceed these alone)."""
    batch: list[int] = []
    size = 0
    for i, document in enumerate(documents):
        if batch and (size + len(document) > batch_tokens or len(batch) == MAX_ROWS):
            yield batch
            batch, size = [], 0
        batch.append(i)
        size += len(document)
    if batch:
        yield batch


@torch.no_grad()
def predict_ids(
    model: BetForSequenceClassification, documents: list[Ids], batch_tokens: int = 16_384
) -> dict[str, npt.NDArray[np.float32]]:
    """Every field of `BetPrediction` for N texts given as token ids, as arrays with N rows."""
    model.train(False)
    parts = [model.predict(*_packed(model, documents, b)) for b in token_batches(documents, batch_tokens)]
    return {
        name: torch.cat([getattr(part, name) for part in parts]).cpu().numpy()
        for name in (parts[0]._fields if parts else ())
    }


def predict_texts(
    model: BetForSequenceClassification, tokenizer: Tokenizer, texts: list[str], batch_tokens: int = 16_384
) -> dict[str, npt.NDArray[np.float32]]:
    """Every field of `BetPrediction` for N texts: probabilities [N, C], total [N], …"""
    documents = encode(tokenizer, texts, model.config.max_tokens, model.config.head_tokens)
    return predict_ids(model, documents, batch_tokens)


@torch.no_grad()
def components_of(
    model: BetForSequenceClassification, documents: list[Ids], batch_tokens: int = 16_384
) -> BetComponents:
    """Evidence, novelty and trunk logits of N texts, for calibration."""
    model.train(False)
    parts = [model.components(*_packed(model, documents, b)) for b in token_batches(documents, batch_tokens)]
    return BetComponents(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _packed(model: BetForSequenceClassification, documents: list[Ids], batch: list[int]) -> list[torch.Tensor]:
    return [tensor.to(model.device) for tensor in pack([documents[i] for i in batch])]
