"""The terms of the evidence: their sum, and the largest of them against a plain reference in Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.evidence import ngrams_at_tokens
from train.model import BetConfig, BetForSequenceClassification
from train.model.leading import leading_ngrams
from train.model.segments import FILL
from train.prediction import pack

VOCABULARY, SLOTS, UNKNOWN, K = 40, 512, 1, 8
Ngram = tuple[int, ...]


def model_of(classes: int) -> BetForSequenceClassification:
    """Random tables in which most slots have an owner among the n-grams of small vocabularies."""
    torch.manual_seed(classes)
    config = BetConfig(
        vocab_size=VOCABULARY, hash_slots=SLOTS, embedding_size=8, hidden_size=8, num_attention_heads=2,
        intermediate_size=8, num_labels=classes, max_tokens=64, head_tokens=16, noise_nodes=2,
    )  # fmt: skip
    model = BetForSequenceClassification(config).eval()
    model.evidence.unigram.normal_()
    model.evidence.bias.normal_()
    draw = np.random.default_rng(classes)
    for n in (2, 3):
        texts = [draw.integers(0, 12, 60) for _ in range(20)]
        hashed = ngrams_at_tokens(texts, n, UNKNOWN).hashed
        slot = torch.from_numpy(hashed % SLOTS)
        fingerprint, evidence = model.evidence.table(n)
        fingerprint[slot] = torch.from_numpy((hashed // SLOTS).astype(np.int32))
        evidence.normal_()
    with torch.no_grad():
        model.posterior.log_evidence_scale.fill_(-0.4)
    return model


MODELS = {classes: model_of(classes) for classes in (2, 3)}


def terms_by_hand(model: BetForSequenceClassification, text: list[int]) -> dict[Ngram, np.ndarray]:
    """Every known n-gram of a text -> its term [L], place by place."""
    terms: dict[Ngram, np.ndarray] = {}
    heaviest: dict[Ngram, float] = {}
    document = np.array(text, np.int64)
    for n in (1, 2, 3):
        if len(text) < n:
            continue
        for first, hashed, weight, foreign in zip(*ngrams_at_tokens([document], n, UNKNOWN), strict=True):
            ngram = tuple(text[first : first + n])
            if n == 1:
                theta = model.evidence.unigram[hashed]
            elif foreign or model.evidence.table(n)[0][hashed % SLOTS] != hashed // SLOTS:
                continue
            else:
                theta = model.evidence.table(n)[1][hashed % SLOTS]
            if weight > heaviest.get(ngram, 0):
                heaviest[ngram], terms[ngram] = weight, theta.numpy() * weight
    return terms


def towards(term: np.ndarray, predicted: int) -> float:
    return float(term[0] * (1 if predicted else -1) if len(term) == 1 else term[predicted] - term.mean())


texts_of_ids = st.lists(st.lists(st.integers(0, 12), min_size=0, max_size=40), min_size=1, max_size=5)


@pytest.mark.parametrize("classes", [2, 3])
@given(texts=texts_of_ids, fill=st.integers(0, 3))
@settings(max_examples=40)
def test_the_leading_ngrams_are_the_largest_terms_of_the_sum(classes: int, texts: list[list[int]], fill: int) -> None:
    model = MODELS[classes]
    ids, lengths = pack([np.array(text + [FILL] * fill, np.int64) for text in texts])
    ids = torch.cat([ids, torch.tensor([FILL])])  # as the served graph does, where no text may have a token
    with torch.no_grad():
        tokens = model.read_tokens(ids, lengths)
        evidence = model.evidence(tokens)
        predicted = torch.arange(len(texts)) % classes
        scale = model.posterior.log_evidence_scale.exp()
        found = leading_ngrams(evidence.terms, tokens, predicted, scale, K)
    for row, text in enumerate(texts):
        terms = terms_by_hand(model, text)
        total = model.evidence.bias.numpy() + sum(terms.values())
        np.testing.assert_allclose(evidence.total[row].numpy(), total, atol=1e-4)
        nats = {ngram: float(scale) * towards(term, int(predicted[row])) for ngram, term in terms.items()}
        loudest = sorted((abs(value) for value in nats.values()), reverse=True)[:K]
        expected = loudest + [0.0] * (K - len(loudest))
        np.testing.assert_allclose(found.nats[row].abs().numpy(), expected, atol=1e-5)
        named = [tuple(i for i in ngram if i != FILL) for ngram in found.ids[row].tolist()]
        assert len({ngram for ngram in named if ngram}) == sum(value > 0 for value in expected)
        for ngram, value in zip(named, found.nats[row].tolist(), strict=True):
            assert value == pytest.approx(nats[ngram] if ngram else 0.0, abs=1e-5)


def test_the_answer_and_its_ngrams_are_the_same_alone_and_among_others() -> None:
    draw = np.random.default_rng(0)
    documents = [draw.integers(0, 13, length).astype(np.int64) for length in (1, 2, 50, 7, 33, 64)]
    for model in MODELS.values():
        with torch.no_grad():
            prediction, together = model.explain(*pack(documents), K)
            for row, document in enumerate(documents):
                p, alone = model.explain(*pack([document]), K)
                torch.testing.assert_close(prediction.probabilities[row], p.probabilities[0])
                torch.testing.assert_close(together.nats[row], alone.nats[0])
                assert torch.equal(together.ids[row], alone.ids[0])
