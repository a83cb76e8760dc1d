"""What is learned from n-grams is what the served graph adds up, and unseen ones count as unseen."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.calibration import start_posterior
from train.embedding import ppmi_vectors
from train.evidence import (
    EvidenceTables,
    contiguous_folds,
    distinct_ngrams,
    fit_evidence,
    ngrams_at_tokens,
    own_slots,
)
from train.features import Features, build_model, place_evidence
from train.model import BetConfig, BetForSequenceClassification
from train.model.position import occurrence_weight
from train.model.posterior import Posterior
from train.prediction import components_of, token_batches
from train.stretches import crop

VOCABULARY, SLOTS, UNKNOWN = 60, 512, 1


def documents_of(count: int, seed: int = 0, classes: int = 2) -> tuple[list[np.ndarray], np.ndarray]:
    """Texts in which the words below 10 · (label + 1) are more frequent, so that there is evidence to learn."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    documents = []
    for label in labels:
        own = random.integers(2 + 8 * label, 10 + 8 * label, 12)
        documents.append(
            random.permutation(np.concatenate([own, random.integers(30, VOCABULARY, 20)])).astype(np.int64)
        )
    return documents, labels.astype(np.int64)


def fitted(classes: int = 2) -> tuple[EvidenceTables, list[np.ndarray], np.ndarray]:
    documents, labels = documents_of(120, classes=classes)
    tables = fit_evidence(
        documents, labels, num_classes=classes, vocab_size=VOCABULARY, unk_token_id=UNKNOWN, slots=SLOTS, folds=4,
        inverse_regularisation=1.0,
        crop_weight=0.15, seed=0, threads=2,
    )  # fmt: skip
    return tables, documents, labels


@pytest.mark.parametrize("classes", [2, 3])
def test_the_graph_adds_up_what_was_learned(classes: int) -> None:
    tables, documents, _ = fitted(classes)
    config = BetConfig(
        vocab_size=VOCABULARY, hash_slots=SLOTS, embedding_size=8, hidden_size=8, num_attention_heads=2,
        intermediate_size=8, num_labels=classes,
    )  # fmt: skip
    vectors = np.zeros((VOCABULARY, 8), np.float32)
    model = build_model(config, Features(None, vectors))  # type: ignore[arg-type]
    place_evidence(model, tables)
    components = components_of(model, documents, batch_tokens=200)
    for row in (0, 7, 63):
        words = distinct_ngrams([documents[row]], 1, UNKNOWN)
        expected = tables.bias + words.weight @ tables.unigram[words.hashed]
        for n in (2, 3):
            found = distinct_ngrams([documents[row]], n, UNKNOWN)
            known = tables.fingerprints[n][found.hashed % SLOTS] == found.hashed // SLOTS
            expected = expected + found.weight[known] @ tables.tables[n][found.hashed[known] % SLOTS]
            novelty = len(known) ** 0.5 * (~known).mean() ** 4
            assert components.novelty[row, n - 2].item() == pytest.approx(novelty, rel=1e-5)
        np.testing.assert_allclose(components.evidence[row].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_out_of_fold_scores_find_the_class_and_come_from_members_that_never_saw_the_row(classes: int) -> None:
    tables, _, labels = fitted(classes)
    predicted = tables.whole.evidence[:, 0] > 0 if classes == 2 else tables.whole.evidence.argmax(1)
    assert (predicted == labels).mean() > 0.9
    shuffled = np.random.default_rng(1).permutation(labels)
    documents, _ = documents_of(120, classes=classes)
    noise = fit_evidence(
        documents, shuffled, num_classes=classes, vocab_size=VOCABULARY, unk_token_id=UNKNOWN, slots=SLOTS, folds=4,
        inverse_regularisation=1.0, crop_weight=0.15, seed=0, threads=2,
    )  # fmt: skip
    guessed = noise.whole.evidence[:, 0] > 0 if classes == 2 else noise.whole.evidence.argmax(1)
    # In-sample scores would be near 1 here; honest ones are near chance.
    assert (guessed == shuffled).mean() < 1 / classes + 0.2


def test_an_ngram_that_no_document_shares_owns_no_slot() -> None:
    found = distinct_ngrams([np.array([5, 6, 7]), np.array([5, 6, 9])], 2, UNKNOWN)
    fingerprints, holders = own_slots(found.hashed, SLOTS)
    assert (fingerprints >= 0).sum() == 1  # only (5, 6)
    assert holders[fingerprints >= 0].tolist() == [2]
    assert found.document.tolist() == [0, 0, 1, 1]


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(1, 5000))
def test_weights_stay_in_the_range_that_the_sort_key_tells_n_grams_apart_by(a: int, b: int, length: int) -> None:
    assert 600 <= occurrence_weight(torch.tensor(a), torch.tensor(b), torch.tensor(length)).item() <= 2200


@given(st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=12), min_size=1, max_size=6), st.sampled_from([2, 3]))
@settings(max_examples=60)
def test_distinct_ngrams_are_those_of_a_set(texts: list[list[int]], n: int) -> None:
    found = distinct_ngrams([np.array(t, np.int64) for t in texts], n, UNKNOWN)
    expected: dict[tuple[int, tuple[int, ...]], float] = {}
    for i, text in enumerate(texts):
        length = torch.tensor(len(text))
        for j in range(len(text) - n + 1):
            weight = occurrence_weight(torch.tensor(j), torch.tensor(len(text) - n - j), length).item() / 1000
            key = (i, tuple(text[j : j + n]))
            expected[key] = max(expected.get(key, 0.0), weight)
    assert len(found.hashed) == len(expected)
    assert sorted(found.document.tolist()) == sorted(i for i, _ in expected)
    assert sorted(found.weight.tolist()) == pytest.approx(sorted(expected.values()))


def test_an_ngram_with_an_unknown_token_is_another_one_at_every_place_and_never_seen() -> None:
    text = np.array([UNKNOWN] * 5 + [7, 8] * 3, np.int64)
    found = distinct_ngrams([text], 2, UNKNOWN)
    assert found.foreign.sum() == 5  # four of unknown tokens alone, and the one into the known part
    assert len(found.hashed) == 5 + 2  # (7, 8) and (8, 7)
    tables, *_ = fitted()
    config = BetConfig(
        vocab_size=VOCABULARY, hash_slots=SLOTS, embedding_size=8, hidden_size=8, num_attention_heads=2,
        intermediate_size=8,
    )  # fmt: skip
    model = BetForSequenceClassification(config)
    place_evidence(model, tables)
    model.evidence.fingerprint.zero_()  # a table that would know it under its hash
    novelty = components_of(model, [np.full(40, UNKNOWN, np.int64)]).novelty[0]
    torch.testing.assert_close(novelty, torch.tensor([39.0, 38.0]).sqrt())


@given(st.integers(1, 400), st.integers(0, 2**31))
@settings(max_examples=60)
def test_a_crop_is_the_end_of_the_text(length: int, seed: int) -> None:
    text = np.arange(length)
    part = crop(text, np.random.default_rng(seed))
    assert min(12, length) <= len(part) <= min(100, length)
    assert np.array_equal(part, text[-len(part) :])


@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.6, 0.3, 0.1)])
def test_a_text_without_evidence_gets_the_prior(shares: tuple[float, ...]) -> None:
    documents, labels = documents_of(400, classes=len(shares))
    random = np.random.default_rng(0)
    kept = np.sort(np.concatenate([random.permutation(np.flatnonzero(labels == k))[: int(100 * share)]
                                   for k, share in enumerate(shares)]))  # fmt: skip
    tables = fit_evidence(
        [documents[i] for i in kept], labels[kept], num_classes=len(shares), vocab_size=VOCABULARY,
        unk_token_id=UNKNOWN, slots=SLOTS, folds=4, inverse_regularisation=1.0, crop_weight=0.15, seed=0, threads=1,
    )  # fmt: skip
    posterior = Posterior(len(tables.bias), 9)
    start_posterior(posterior, tables, labels[kept], crop_weight=0.5)
    nothing = torch.zeros(1, len(tables.bias))
    with torch.no_grad():
        found = posterior(nothing + torch.from_numpy(tables.bias), torch.zeros(1, 2), nothing[:, None]).probabilities
    assert found[0].numpy() == pytest.approx(np.array(shares), abs=0.03)


def test_the_unknown_token_is_no_evidence_even_where_one_class_has_it() -> None:
    documents, labels = documents_of(120)
    documents = [np.append(d, [UNKNOWN] * 3) if label else d for d, label in zip(documents, labels, strict=True)]
    tables = fit_evidence(
        documents, labels, num_classes=2, vocab_size=VOCABULARY, unk_token_id=UNKNOWN, slots=SLOTS, folds=4,
        inverse_regularisation=1.0, crop_weight=0.15, seed=0, threads=1,
    )  # fmt: skip
    assert tables.unigram[UNKNOWN] == 0
    assert not tables.held_out.by_token[np.concatenate(documents) == UNKNOWN].any()
    assert tables.unigram.any()


def test_folds_are_contiguous_within_a_class() -> None:
    labels = np.array([0, 1] * 40)
    fold = contiguous_folds(labels, 4)
    for label in (0, 1):
        own = fold[labels == label]
        assert (np.diff(own) >= 0).all()
        assert np.bincount(own).tolist() == [10] * 4


def test_word_vectors_put_words_of_the_same_company_together() -> None:
    random = np.random.default_rng(0)
    documents = [random.permutation(np.repeat([2, 3, 4], 6) + 10 * (i % 2)) for i in range(80)]
    vectors = ppmi_vectors(documents, 20, 8)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    assert unit[2] @ unit[3] > unit[2] @ unit[13]
    assert not vectors[0].any()


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
@settings(max_examples=60)
def test_batches_keep_every_text_once_and_in_order(lengths: list[int], budget: int) -> None:
    documents = [np.zeros(n, np.int64) for n in lengths]
    batches = list(token_batches(documents, budget))
    assert [i for batch in batches for i in batch] == list(range(len(lengths)))
    assert all(len(b) == 1 or sum(lengths[i] for i in b) <= budget for b in batches)


class EvidenceAlone(torch.nn.Module):
    """A model's evidence and novelty, as its graph computes them."""

    def __init__(self, model: BetForSequenceClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.model.evidence(self.model.read_tokens(input_ids, lengths))
        return found.total, found.novelty


def test_real_text_keeps_its_hashes_exact_in_the_graph(untraced_exporter: None, tmp_path: Path) -> None:
    """40-bit hashes need 64-bit integer arithmetic throughout; random small ids would not show a float detour."""
    config = BetConfig(vocab_size=30_000, hash_slots=1 << 18, embedding_size=8, hidden_size=8, num_attention_heads=2)
    model = BetForSequenceClassification(config)
    text = np.random.default_rng(0).integers(20_000, 30_000, 200).astype(np.int64)
    for n in (2, 3):
        hashed = distinct_ngrams([text], n, UNKNOWN).hashed
        fingerprint, evidence = model.evidence.table(n)
        fingerprint[hashed % (1 << 18)] = torch.from_numpy((hashed // (1 << 18)).astype(np.int32))
        evidence[hashed % (1 << 18)] = 1.0
    evidence = components_of(model, [text]).evidence
    weights = sum(distinct_ngrams([text], n, UNKNOWN).weight.sum() for n in (2, 3))
    assert evidence.item() == pytest.approx(weights, abs=3)  # a few n-grams may share a slot
    total = torch.export.Dim("total", min=2, max=1 << 16)
    program = torch.onnx.export(
        EvidenceAlone(model).eval(),
        (torch.arange(50), torch.tensor([[50]], dtype=torch.int32)),
        dynamo=True,
        opset_version=18,
        input_names=["input_ids", "lengths"],
        dynamic_shapes=({0: total}, {}),
        verbose=False,
    )
    assert program is not None
    program.save(str(tmp_path / "evidence.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "evidence.onnx"), providers=["CPUExecutionProvider"])
    served, novelty = session.run(None, {"input_ids": text, "lengths": np.array([[200]], np.int32)})
    np.testing.assert_allclose(served, evidence.numpy(), atol=1e-3)
    np.testing.assert_allclose(novelty, components_of(model, [text]).novelty.numpy(), atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_evidence_at_tokens_comes_from_the_member_that_never_saw_the_text(classes: int) -> None:
    """Summed over the distinct n-grams at their heaviest places, it is the out-of-fold score."""
    tables, documents, _ = fitted(classes)
    model = random_tables(classes)
    start = 0
    for row, document in enumerate(documents[:20]):
        end = start + len(document)
        tokens = model.read_tokens(torch.from_numpy(document), torch.tensor([[len(document)]], dtype=torch.int32))
        member = torch.from_numpy(tables.held_out.by_token[start:end].astype(np.float32))
        bias = torch.from_numpy(tables.held_out.bias[row : row + 1])
        total = model.evidence(tokens, member, bias).total
        np.testing.assert_allclose(total[0].numpy(), tables.whole.evidence[row], atol=5e-3)  # float16 in between
        start = end


def random_tables(classes: int) -> BetForSequenceClassification:
    """A model whose tables would be noticed if they were used."""
    config = BetConfig(
        vocab_size=VOCABULARY, hash_slots=SLOTS, embedding_size=8, hidden_size=8, num_attention_heads=2,
        intermediate_size=8, num_labels=classes,
    )  # fmt: skip
    model = BetForSequenceClassification(config)
    model.evidence.unigram.normal_(0, 10)
    return model


@given(st.lists(st.integers(0, 5), min_size=1, max_size=120), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_weights_fade_to_one_and_an_ngram_counts_once_at_its_heaviest_place(text: list[int], random: Random) -> None:
    document = np.array(text, np.int64)
    for n in (1, 2, 3):
        _, hashed, weight, _ = ngrams_at_tokens([document], n, UNKNOWN)
        found = distinct_ngrams([document], n, UNKNOWN)
        for key, heaviest in zip(found.hashed, found.weight, strict=True):
            assert heaviest == weight[hashed == key].max()
    assert np.abs(ngrams_at_tokens([document[:1]], 1, UNKNOWN).weight - 1).max() < 0.03
