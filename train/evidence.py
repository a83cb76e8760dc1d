"""Learn the evidence of n-grams: cross-fitted NB-weighted logistic regression (Wang & Manning 2012, "NBSVM").

Each of a few members is fitted on the training part without one contiguous fold, so that every training document also
has a score from a member that never saw it (the out-of-fold score, a precise selection figure that touches no test
row). Their mean is the evidence table of `train.model.evidence`. Beside each document stands a random crop of it with a
small weight: without crops the evidence of short texts is far too weak (0.67 instead of 0.74 accuracy on snippets).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from train.model.evidence import HASH_FACTORS, HASH_PRIME

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OutOfFold:
    """Evidence and novelty of N documents as if training had not seen them: by the member that left each out."""

    evidence: Floats  # [N, L] log-odds
    novelty: Floats  # [N, 2], U²/N of bigrams and trigrams; what only the document itself knows counts as unseen


@dataclass(frozen=True)
class EvidenceTables:
    """What `SufficientStatsEncoder` holds (L columns: one for two classes), and honest scores of the training part."""

    unigram: Floats  # [V, L]
    fingerprints: dict[int, npt.NDArray[np.int32]]  # n -> [M], -1 where a slot is free
    tables: dict[int, Floats]  # n -> [M, L]
    bias: Floats  # [L]
    whole: OutOfFold  # of the training documents
    crops: OutOfFold  # of one random crop of each


def crop(document: Ids, random: np.random.Generator, shortest: int = 12, longest: int = 100) -> Ids:
    """A random stretch of a document, its length log-uniform between `shortest` and `longest` tokens."""
    length = int(np.exp(random.uniform(np.log(shortest), np.log(longest))))
    start = random.integers(0, max(len(document) - length, 0) + 1)
    return document[start : start + length]


def distinct_ngrams(documents: list[Ids], n: int) -> tuple[Ids, Ids]:
    """(document, hash) of every distinct n-gram of every document, sorted by document, then hash; each [N']."""
    lengths = np.array([len(d) for d in documents])
    ids = np.concatenate(documents)
    owner = np.repeat(np.arange(len(documents)), lengths)
    count = max(len(ids) - n + 1, 0)
    hashed = np.zeros(count, np.int64)
    for j, factor in enumerate(HASH_FACTORS[n]):
        hashed += ids[j : count + j] * factor
    within = owner[:count] == owner[n - 1 :]
    pairs = np.unique((owner[:count][within] << 40) + hashed[within] % HASH_PRIME)
    return pairs >> 40, pairs & ((1 << 40) - 1)


def own_slots(hashed: Ids, slots: int) -> tuple[npt.NDArray[np.int32], Ids]:
    """Give each slot to the most frequent n-gram that falls into it.

    n-grams of a single document own nothing: their evidence would be noise, and they keep counting as unseen.

    Returns:
        The owner's fingerprint [slots], -1 where none, and the number of documents that hold it [slots].
    """
    ngram, documents = np.unique(hashed, return_counts=True)
    ngram, documents = ngram[documents > 1], documents[documents > 1]
    order = np.argsort(documents, kind="stable")  # later assignments win
    fingerprint, holders = np.full(slots, -1, np.int32), np.zeros(slots, np.int64)
    fingerprint[ngram[order] % slots] = ngram[order] // slots
    holders[ngram[order] % slots] = documents[order]
    return fingerprint, holders


def occurrence_matrix(
    documents: list[Ids],
    ngrams: dict[int, tuple[Ids, Ids]],
    fingerprints: dict[int, npt.NDArray[np.int32]],
    vocab_size: int,
) -> sp.csr_matrix:
    """Which known n-grams occur in which document: 0/1, [documents, V + M + M]."""
    indptr = np.cumsum([0] + [len(d) for d in documents])
    ids = np.concatenate(documents)
    unigrams = sp.csr_matrix((np.ones(len(ids), np.float32), ids, indptr), shape=(len(documents), vocab_size))
    unigrams.sum_duplicates()
    unigrams.data[:] = 1
    blocks = [unigrams]
    for n, fingerprint in fingerprints.items():
        document, hashed = ngrams[n]
        slots = len(fingerprint)
        slot = hashed % slots
        known = fingerprint[slot] == hashed // slots
        ones = np.ones(int(known.sum()), np.float32)
        blocks.append(sp.csr_matrix((ones, (document[known], slot[known])), shape=(len(documents), slots)))
    return sp.hstack(blocks).tocsr()


def contiguous_folds(labels: Ids, folds: int) -> Ids:
    """Fold of each document: every class cut into `folds` contiguous blocks, since neighbours may share a film."""
    fold = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        fold[members] = np.arange(len(members)) * folds // len(members)
    return fold


def fit_evidence(
    documents: list[Ids],
    labels: Ids,
    *,
    num_classes: int,
    vocab_size: int,
    slots: int,
    folds: int,
    inverse_regularisation: float,
    crop_weight: float,
    seed: int,
    threads: int,
) -> EvidenceTables:
    """Learn the evidence tables from token ids and labels [N] of the training part.

    Two classes give one column, the log-odds of class 1; more classes give one column each, its one-versus-rest
    log-odds, which the posterior's softmax joins.
    """
    random = np.random.default_rng(seed)
    ngrams = {n: distinct_ngrams(documents, n) for n in HASH_FACTORS}
    owners = {n: own_slots(hashed, slots) for n, (_, hashed) in ngrams.items()}
    fingerprints = {n: fingerprint for n, (fingerprint, _) in owners.items()}
    cropped = [crop(d, random) for d in documents]
    cropped_ngrams = {n: distinct_ngrams(cropped, n) for n in HASH_FACTORS}
    whole = occurrence_matrix(documents, ngrams, fingerprints, vocab_size)
    crops = occurrence_matrix(cropped, cropped_ngrams, fingerprints, vocab_size)
    columns = [1] if num_classes == 2 else list(range(num_classes))
    fold = contiguous_folds(labels, folds)

    def member(task: tuple[int, int]) -> tuple[Floats, float]:
        held_out, label = task
        use = fold != held_out
        positive = labels[use] == label
        ratio = _naive_bayes_ratio(whole[use], positive)
        rows = sp.vstack([whole[use], crops[use]]).tocsr()
        rows.data = rows.data * ratio[rows.indices]
        weight = np.concatenate([np.ones(positive.size), np.full(positive.size, crop_weight)])
        # liblinear is the solver that handles half a million sparse columns in seconds; it draws a random permutation.
        model: Any = LogisticRegression(C=inverse_regularisation, solver="liblinear", random_state=seed)
        model.fit(rows, np.concatenate([positive, positive]), weight)
        return (ratio * model.coef_[0]).astype(np.float32), float(model.intercept_[0])

    tasks = [(f, label) for f in range(folds) for label in columns]
    with ThreadPoolExecutor(threads) as pool:
        fitted = list(pool.map(member, tasks))
    weights = np.stack([w for w, _ in fitted], 1).reshape(-1, folds, len(columns))
    intercepts = np.array([b for _, b in fitted], np.float32).reshape(folds, len(columns))

    def honest(rows: sp.csr_matrix, found: dict[int, tuple[Ids, Ids]]) -> OutOfFold:
        evidence = np.zeros((len(labels), len(columns)), np.float32)
        for f in range(folds):
            evidence[fold == f] = rows[fold == f] @ weights[:, f] + intercepts[f]
        novelty = [_novelty_without_itself(*found[n], *owners[n], len(labels)) for n in HASH_FACTORS]
        return OutOfFold(evidence, np.stack(novelty, 1))

    mean = weights.mean(1)
    bounds = np.cumsum([vocab_size] + [slots] * len(HASH_FACTORS))
    return EvidenceTables(
        unigram=mean[:vocab_size],
        fingerprints=fingerprints,
        tables={n: mean[bounds[i] : bounds[i + 1]] for i, n in enumerate(HASH_FACTORS)},
        bias=intercepts.mean(0),
        whole=honest(whole, ngrams),
        crops=honest(crops, cropped_ngrams),
    )


def _novelty_without_itself(
    document: Ids, hashed: Ids, fingerprint: npt.NDArray[np.int32], holders: Ids, documents: int
) -> Floats:
    """U²/N of each training document, an n-gram being known only where two *other* documents hold it."""
    slot = hashed % len(fingerprint)
    known = (fingerprint[slot] == hashed // len(fingerprint)) & (holders[slot] > 2)
    unseen = np.bincount(document[~known], minlength=documents).astype(np.float32)
    distinct = np.bincount(document, minlength=documents).clip(min=1)
    novelty: Floats = (unseen * unseen / distinct).astype(np.float32)
    return novelty


def _naive_bayes_ratio(rows: sp.csr_matrix, positive: npt.NDArray[np.bool_]) -> Floats:
    """log P(n-gram | positive) / P(n-gram | rest) with add-one smoothing, [columns]."""
    p = 1 + np.asarray(rows[positive].sum(0))[0]
    q = 1 + np.asarray(rows[~positive].sum(0))[0]
    ratio: Floats = (np.log(p / p.sum()) - np.log(q / q.sum())).astype(np.float32)
    return ratio
