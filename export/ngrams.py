"""The n-grams that lead a text's evidence, found a second time with NumPy: the truth that the gate compares with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.answers import Floats
from export.encoder import Ids
from export.outputs import LEADING
from train.evidence import ngrams_at_tokens
from train.model import BetForSequenceClassification
from train.model.evidence import HASH_FACTORS, HASHED


def leading_by_hand(
    model: BetForSequenceClassification, document: Ids, predicted: int, said_as: Sequence[str], k: int = LEADING
) -> tuple[list[str], list[float]]:
    """The k n-grams of one text with the largest absolute term, and their nats for the class `predicted`.

    Args:
        document: token ids.
        said_as: the vocabulary as `export.pieces.piece_table` says it, made once for all texts.

    Returns:
        Texts and nats, the heaviest first, filled up with empty texts and 0.
    """
    said: list[tuple[float, tuple[int, ...]]] = []
    for n in HASH_FACTORS:
        first, hashed, weight, foreign = ngrams_at_tokens([document], n, model.config.unk_token_id)
        # The last of each run is the heaviest place of an n-gram.
        order = np.lexsort((first, weight, hashed))
        last = np.append(hashed[order][1:] != hashed[order][:-1], True)[: len(order)]
        at = order[last & ~foreign[order]]
        terms = _log_odds(model, n, hashed[at]) * weight[at, None]
        towards = terms[:, predicted] - terms.mean(1) if terms.shape[1] > 1 else terms[:, 0] * (1 if predicted else -1)
        said += [(float(term), tuple(document[i : i + n])) for term, i in zip(towards, first[at], strict=True) if term]
    scale = float(model.posterior.log_evidence_scale.exp())
    heaviest = sorted(said, key=lambda entry: -abs(entry[0]))[:k]
    later = len(said_as) // 2
    texts = ["".join([said_as[ids[0]], *(said_as[later + i] for i in ids[1:])]) for _, ids in heaviest]
    missing = k - len(heaviest)
    return texts + [""] * missing, [scale * term for term, _ in heaviest] + [0.0] * missing


def _log_odds(model: BetForSequenceClassification, n: int, hashed: Ids) -> Floats:
    """The model's evidence [N, L] of n-grams; 0 for those that training never saw."""
    if n not in HASHED:
        return model.evidence.unigram.numpy()[hashed]
    slots = model.config.hash_slots
    fingerprint, evidence = (table.numpy() for table in model.evidence.table(n))
    known = fingerprint[hashed % slots] == hashed // slots
    return np.where(known[:, None], evidence[hashed % slots], np.float32(0))
