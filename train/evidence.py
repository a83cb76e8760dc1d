"""Learn the evidence of n-grams: cross-fitted NB-weighted logistic regression (Wang & Manning 2012, "NBSVM").

Each of a few members is fitted on the training part without one contiguous fold, so that every training document also
has evidence from a member that never saw it: a precise selection figure that touches no test row, and an honest input
for the streams that are trained on top. The members' mean is the evidence table of `train.model.evidence`. An n-gram
counts with the weight of its heaviest place (`train.model.position`). Beside each document stands a crop of it with a
small weight: without crops the evidence of short texts is far too weak (0.67 instead of 0.74 accuracy on snippets).

What is learnt is what a text's n-grams say for a class against the rest, whatever the classes' shares; what a text
without evidence gets is the prior. An intercept that is fitted along balances whole documents instead, whose rare and
strong words speak for one class more than for another, and every short text pays for it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from sklearn.linear_model import LogisticRegression

from train.model.evidence import HASH_FACTORS, HASH_PRIME, HASHED, novelty_of
from train.model.position import occurrence_weight
from train.stretches import crop

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ngrams:
    """Distinct n-grams of documents, sorted by document, then hash; each [N']."""

    document: Ids
    hashed: Ids
    weight: Floats  # of the heaviest place
    foreign: npt.NDArray[np.bool_]  # holds an unknown token, so it is unseen and stands for one occurrence


@dataclass(frozen=True)
class HeldOut:
    """Evidence at the tokens of the training documents, by the member that left each document out.

    Attributes:
        by_token: [T, 3, L] float16, documents end to end: evidence of the n-gram that starts at each token, without the
            weight of its place; 0 where it is unknown.
        bias: [N, L] the prior of each document's member.
    """

    by_token: npt.NDArray[np.float16]
    bias: Floats


@dataclass(frozen=True)
class OutOfFold:
    """Evidence and novelty of N documents as if training had not seen them: by the member that left each out."""

    evidence: Floats  # [N, L] log-odds
    novelty: Floats  # [N, 2], of bigrams and trigrams; what only the document itself knows counts as unseen


@dataclass(frozen=True)
class EvidenceTables:
    """What `SufficientStatsEncoder` holds (L columns: one for two classes), and honest scores of the training part."""

    unigram: Floats  # [V, L]
    fingerprints: dict[int, npt.NDArray[np.int32]]  # n -> [M], -1 where a slot is free
    tables: dict[int, Floats]  # n -> [M, L]
    bias: Floats  # [L], the prior's log-odds (of two classes) or log probabilities
    whole: OutOfFold  # of the training documents
    crops: OutOfFold  # of one crop of each
    held_out: HeldOut


class Occurrences(NamedTuple):
    """Every n-gram that lies within a document; each [N'']."""

    first: Ids  # index of its first token, documents end to end
    hashed: Ids  # its place where it is foreign, as in `train.model.evidence`
    weight: Floats
    foreign: npt.NDArray[np.bool_]


def ngrams_at_tokens(documents: list[Ids], n: int, unknown: int) -> Occurrences:
    """The n-grams of documents; `unknown` is the id of the unknown token."""
    lengths = np.array([len(d) for d in documents])
    ids = np.concatenate(documents)
    owner = np.repeat(np.arange(len(documents)), lengths)
    count = max(len(ids) - n + 1, 0)
    hashed = np.zeros(count, np.int64)
    foreign = np.zeros(count, bool)
    for j, factor in enumerate(HASH_FACTORS[n]):
        hashed += ids[j : count + j] * factor
        foreign |= ids[j : count + j] == unknown
    foreign &= n in HASHED
    first = np.flatnonzero(owner[:count] == owner[n - 1 :])
    length = lengths[owner[first]]
    place = first - (np.cumsum(lengths) - lengths)[owner[first]]
    weight = occurrence_weight(*(torch.from_numpy(x) for x in (place, length - n - place, length))) / 1000
    named = np.where(foreign[first], place, hashed[first] % HASH_PRIME)
    return Occurrences(first, named, weight.numpy(), foreign[first])


def distinct_ngrams(documents: list[Ids], n: int, unknown: int) -> Ngrams:
    """The distinct n-grams of every document, each with the weight of its heaviest place."""
    first, hashed, weight, foreign = ngrams_at_tokens(documents, n, unknown)
    owner = np.repeat(np.arange(len(documents)), [len(d) for d in documents])[first]
    pair = (owner << 40) + hashed
    order = np.argsort(pair, kind="stable")
    starts = np.flatnonzero(np.diff(pair[order], prepend=-1))
    pairs = pair[order][starts]
    heaviest = np.maximum.reduceat(weight[order], starts) if len(starts) else weight[:0]
    return Ngrams(pairs >> 40, pairs & ((1 << 40) - 1), heaviest, foreign[order][starts])


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
    documents: int,
    ngrams: dict[int, Ngrams],
    fingerprints: dict[int, npt.NDArray[np.int32]],
    vocab_size: int,
    unknown: int,
) -> sp.csr_matrix:
    """Weight of each known n-gram that occurs in each document: [documents, V + M + M]."""
    blocks = []
    for n, found in ngrams.items():
        column, known = _columns(n, found.hashed, fingerprints, unknown)
        known &= ~found.foreign
        size = vocab_size if n not in HASHED else len(fingerprints[n])
        entries = (found.weight[known], (found.document[known], column[known]))
        blocks.append(sp.csr_matrix(entries, shape=(documents, size)))
    return sp.hstack(blocks).tocsr()


def _columns(
    n: int, hashed: Ids, fingerprints: dict[int, npt.NDArray[np.int32]], unknown: int
) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Column of each n-gram within the table of n, and whether training knew it.

    The unknown token by itself is no evidence either: the little that it said in training was said again by each token
    of a text in another script, and the evidence stream made a sure answer of it.
    """
    if n not in HASHED:
        return hashed, hashed != unknown
    slots = len(fingerprints[n])
    slot = hashed % slots
    return slot, fingerprints[n][slot] == hashed // slots


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
    unk_token_id: int,
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
    ngrams = {n: distinct_ngrams(documents, n, unk_token_id) for n in HASH_FACTORS}
    owners = {n: own_slots(ngrams[n].hashed[~ngrams[n].foreign], slots) for n in HASHED}
    fingerprints = {n: fingerprint for n, (fingerprint, _) in owners.items()}
    cropped = [crop(d, random) for d in documents]
    cropped_ngrams = {n: distinct_ngrams(cropped, n, unk_token_id) for n in HASH_FACTORS}
    whole = occurrence_matrix(len(documents), ngrams, fingerprints, vocab_size, unk_token_id)
    crops = occurrence_matrix(len(documents), cropped_ngrams, fingerprints, vocab_size, unk_token_id)
    present = whole.astype(bool).astype(np.float32)
    columns = [1] if num_classes == 2 else list(range(num_classes))
    fold = contiguous_folds(labels, folds)

    def member(task: tuple[int, int]) -> tuple[Floats, float]:
        held_out, label = task
        use = fold != held_out
        positive = labels[use] == label
        ratio = _naive_bayes_ratio(present[use], positive)
        rows = sp.vstack([whole[use], crops[use]]).tocsr()
        rows.data = rows.data * ratio[rows.indices]
        weight = np.concatenate([np.ones(positive.size), np.full(positive.size, crop_weight)])
        # liblinear is the solver that handles half a million sparse columns in seconds; it draws a random permutation.
        model: Any = LogisticRegression(
            C=inverse_regularisation,
            solver="liblinear",
            random_state=seed,
            fit_intercept=False,
            class_weight="balanced",
        )
        model.fit(rows, np.concatenate([positive, positive]), weight)
        share = positive.mean()
        prior = np.log(share / (1 - share)) if num_classes == 2 else np.log(share)
        return (ratio * model.coef_[0]).astype(np.float32), float(prior)

    tasks = [(f, label) for f in range(folds) for label in columns]
    with ThreadPoolExecutor(threads) as pool:
        fitted = list(pool.map(member, tasks))
    weights = np.stack([w for w, _ in fitted], 1).reshape(-1, folds, len(columns))
    intercepts = np.array([b for _, b in fitted], np.float32).reshape(folds, len(columns))

    def honest(rows: sp.csr_matrix, found: dict[int, Ngrams]) -> OutOfFold:
        evidence = np.zeros((len(labels), len(columns)), np.float32)
        for f in range(folds):
            evidence[fold == f] = rows[fold == f] @ weights[:, f] + intercepts[f]
        novelty = [_novelty_without_itself(found[n], *owners[n], len(labels)) for n in HASHED]
        return OutOfFold(evidence, np.stack(novelty, 1))

    bounds = np.cumsum([0, vocab_size] + [slots] * len(HASHED))
    by_member = {n: weights[bounds[i] : bounds[i + 1]] for i, n in enumerate(HASH_FACTORS)}
    return EvidenceTables(
        unigram=by_member[1].mean(1),
        fingerprints=fingerprints,
        tables={n: by_member[n].mean(1) for n in HASHED},
        bias=intercepts.mean(0),
        whole=honest(whole, ngrams),
        crops=honest(crops, cropped_ngrams),
        held_out=HeldOut(_by_token(documents, fold, by_member, fingerprints, unk_token_id), intercepts[fold]),
    )


def _by_token(
    documents: list[Ids],
    fold: Ids,
    by_member: dict[int, Floats],
    fingerprints: dict[int, npt.NDArray[np.int32]],
    unknown: int,
) -> npt.NDArray[np.float16]:
    """Evidence at each token of each document by the member of its fold: [T, 3, L] float16."""
    member = np.repeat(fold, [len(d) for d in documents])
    columns = by_member[1].shape[-1]
    evidence = np.zeros((len(member), len(HASH_FACTORS), columns), np.float16)
    for i, n in enumerate(HASH_FACTORS):
        first, hashed, _, foreign = ngrams_at_tokens(documents, n, unknown)
        column, known = _columns(n, hashed, fingerprints, unknown)
        known &= ~foreign
        first, column = first[known], column[known]
        evidence[first, i] = by_member[n][column, member[first]]
    return evidence


def _novelty_without_itself(ngrams: Ngrams, fingerprint: npt.NDArray[np.int32], holders: Ids, documents: int) -> Floats:
    """Novelty of each training document, an n-gram being known only where two *other* documents hold it."""
    slot = ngrams.hashed % len(fingerprint)
    known = (fingerprint[slot] == ngrams.hashed // len(fingerprint)) & (holders[slot] > 2) & ~ngrams.foreign
    unseen = np.bincount(ngrams.document[~known], minlength=documents).astype(np.float32)
    distinct = np.bincount(ngrams.document, minlength=documents).astype(np.float32)
    novelty: Floats = novelty_of(torch.from_numpy(unseen), torch.from_numpy(distinct)).numpy()
    return novelty


def _naive_bayes_ratio(rows: sp.csr_matrix, positive: npt.NDArray[np.bool_]) -> Floats:
    """log P(n-gram | positive) / P(n-gram | rest) with add-one smoothing, [columns]."""
    p = 1 + np.asarray(rows[positive].sum(0))[0]
    q = 1 + np.asarray(rows[~positive].sum(0))[0]
    ratio: Floats = (np.log(p / p.sum()) - np.log(q / q.sum())).astype(np.float32)
    return ratio
