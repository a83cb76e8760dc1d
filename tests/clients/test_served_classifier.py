"""The clients against the project's own ensemble, by all four ways."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from bet_client import BetClientError, InvalidInputError

import serve
from tests.clients.conftest import Protocol

REVIEWS = [
    "A dull, overlong film; I looked at my watch every ten minutes.",
    "I loved every minute of it, and so will you.",
    "[UNK] [SEP] is what the critics said.",
    "café, naïve: 👩‍👩‍👧‍👦",
]


@pytest.fixture
def client(connect: Callable[..., Any], protocol: Protocol, server: serve.Server) -> Any:
    return connect(server.http_url if protocol == "http" else server.grpc_url, timeout=30)


def test_every_output_of_the_ensemble_is_read(client: Any) -> None:
    for answer in client.predict_many(REVIEWS, diagnostics=True):
        assert set(answer.probabilities) == set(client.labels)
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)
        entropy = -sum(p * math.log(p) for p in answer.probabilities.values())
        assert answer.total == pytest.approx(entropy, abs=1e-4)
        assert answer.aleatoric + answer.epistemic == pytest.approx(answer.total, abs=1e-4)
        assert answer.review is bool(answer.reason)
        assert set(answer.prediction_set) <= set(client.labels)
        assert answer.tokens > 0
        assert answer.truncated is False
        assert set(answer.diagnostics.concentration) == set(client.labels)
        assert answer.diagnostics.order_dispersion >= 0
        assert answer.diagnostics.evidence_budget >= 1


def test_the_ngrams_that_spoke_are_those_of_the_text_by_either_file(
    connect: Callable[..., Any], protocol: Protocol, server: serve.Server
) -> None:
    url = server.http_url if protocol == "http" else server.grpc_url
    by_onnx, by_torchscript = (
        connect(url, model=model, timeout=30).predict_many(REVIEWS, diagnostics=True)
        for model in ("bet", "bet_torchscript")
    )
    for answer, other in zip(by_onnx, by_torchscript, strict=True):
        evidence = answer.diagnostics.evidence
        assert [e.nats for e in evidence] == pytest.approx([e.nats for e in other.diagnostics.evidence], abs=1e-4)
        assert [abs(e.nats) for e in evidence] == sorted((abs(e.nats) for e in evidence), reverse=True)
        assert {e.text for e in evidence} == {e.text for e in other.diagnostics.evidence}
    assert len(by_onnx[0].diagnostics.evidence) == 8
    letters = "".join(filter(str.isalnum, REVIEWS[0].lower()))
    assert all("".join(filter(str.isalnum, e.text)) in letters for e in by_onnx[0].diagnostics.evidence)


def test_a_text_gets_the_same_answer_alone_and_beside_others(client: Any) -> None:
    together = client.predict_many(REVIEWS)
    for text, beside in zip(REVIEWS, together, strict=True):
        alone = client.predict(text)
        assert alone.label == beside.label
        assert alone.probabilities == pytest.approx(beside.probabilities, abs=1e-5)


def test_bad_texts_are_their_own_errors(client: Any) -> None:
    answers = client.predict_many([REVIEWS[0], "", " \n", "x" * 70_000, REVIEWS[1]])
    assert [isinstance(answer, BetClientError) for answer in answers] == [False, True, True, True, False]
    assert all(isinstance(answer, InvalidInputError) for answer in answers[1:4])
