"""The live part of the gate: what the real Triton answers, through the client that applications use.

Each text alone, the same texts under many concurrent callers (so that requests of different lengths are joined), and in
requests of several rows. Triton's own counters show whether requests were joined at all.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from bet_client import BetClientError, Client, Diagnostics, Prediction
from numpy.typing import NDArray
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http
from tritonclient.utils import InferenceServerException

from export.answers import Answers, Floats
from export.errors import GateError
from export.outputs import LEADING
from export.parity import ways_of_asking
from export.repository import Names
from export.texts import GateText

T = TypeVar("T")
Protocol = Literal["grpc", "http"]
CONCURRENT_CALLERS = 40
_TIMEOUT = 60.0  # seconds a call; the gate waits for right answers, it does not judge speed


@dataclass(frozen=True)
class ServedAnswers:
    """Answers of a live server to all texts, by way of asking."""

    answers: dict[str, Answers]
    miscounted: int  # answers whose `tokens` or `truncated` is not what the tokenizer gives here
    joined_rows: int  # rows that the classifier answered while many callers asked at once, by Triton's counters
    joined_executions: int  # executions that it took for them


def ask(
    url: str,
    names: Names,
    protocol: Protocol,
    texts: Sequence[GateText],
    limit: int,
    *,
    torchscript: bool = False,
    padded: bool = False,
) -> ServedAnswers:
    """Put every text to the live server, alone, concurrently, and in requests of several rows.

    Args:
        url: host:port of the protocol.
        names: of the models; the main ensemble is asked, or the one over TorchScript.
        limit: tokens that the model reads.
        padded: whether rows of one request are padded, so that requests mix lengths as `parity.ways_of_asking` says.

    Raises:
        GateError: if a text gets no answer, naming it.
    """
    model = names.torchscript_ensemble if torchscript else names.ensemble
    classifier = names.torchscript_classifier if torchscript else names.classifier
    plain = [text.text for text in texts]
    try:
        with Client(url, protocol=protocol, model=model, timeout=_TIMEOUT) as client:
            labels = client.labels
            ways = {"alone": [_one(client, text) for text in plain]}
            before = _counted(url, protocol, classifier)
            ways["concurrent"] = _concurrently(client, plain)
            after = _counted(url, protocol, classifier)
            ways["rows"] = _in_rows(client, texts) if padded else client.predict_many(plain, diagnostics=True)
    except (BetClientError, InferenceServerException) as error:
        raise GateError(f"the live server cannot be compared with: {error}") from error
    predictions = {way: _all_answered(way, given) for way, given in ways.items()}
    miscounted = sum(
        (p.tokens, p.truncated) != (text.tokens, text.tokens > limit)
        for given in predictions.values()
        for p, text in zip(given, texts, strict=True)
    )
    answers = {way: as_answers(given, labels) for way, given in predictions.items()}
    return ServedAnswers(answers, miscounted, after[0] - before[0], after[1] - before[1])


def _one(client: Client, text: str) -> Prediction | BetClientError:
    try:
        return client.predict(text, diagnostics=True)
    except BetClientError as error:
        return error


def _in_rows(client: Client, texts: Sequence[GateText]) -> list[Prediction | BetClientError]:
    """Requests of several rows, each filled up to its longest by the server."""
    answers: list[Prediction | BetClientError] = [BetClientError("not asked")] * len(texts)
    for group, _ in ways_of_asking([text.ids for text in texts], padded=True)["filled"]:
        given = client.predict_many([texts[i].text for i in group], diagnostics=True)
        for i, answer in zip(group, given, strict=True):
            answers[i] = answer
    return answers


def _counted(url: str, protocol: Protocol, model: str) -> tuple[int, int]:
    """Rows and executions that Triton has counted for a model, over all its versions."""
    if protocol == "grpc":
        with triton_grpc.InferenceServerClient(url) as client:
            statistics = client.get_inference_statistics(model, as_json=True)["model_stats"]
    else:
        with triton_http.InferenceServerClient(url) as client:
            statistics = client.get_inference_statistics(model)["model_stats"]
    return (
        sum(int(entry.get("inference_count", 0)) for entry in statistics),
        sum(int(entry.get("execution_count", 0)) for entry in statistics),
    )


def _concurrently(client: Client, texts: Sequence[str]) -> list[Prediction | BetClientError]:
    # All callers start together, so that the queue is as deep as it can be.
    start = threading.Barrier(CONCURRENT_CALLERS)
    answers: list[Prediction | BetClientError] = [BetClientError("not asked")] * len(texts)

    def call(caller: int) -> None:
        start.wait()
        for i in range(caller, len(texts), CONCURRENT_CALLERS):
            answers[i] = _one(client, texts[i])

    with ThreadPoolExecutor(CONCURRENT_CALLERS) as pool:
        list(pool.map(call, range(CONCURRENT_CALLERS)))
    return answers


def _all_answered(way: str, given: Sequence[Prediction | BetClientError]) -> list[Prediction]:
    answers = []
    for i, answer in enumerate(given):
        if isinstance(answer, BetClientError):
            raise GateError(f"the live server gave no answer to text {i} ({way}): {answer}")
        answers.append(answer)
    return answers


def as_answers(predictions: Sequence[Prediction], labels: Sequence[str]) -> Answers:
    """Typed answers as arrays; a field that only some answers give counts as not finite where it is missing."""
    diagnostics = [p.diagnostics or Diagnostics(None, None, None) for p in predictions]
    evidence = [d.evidence for d in diagnostics]
    none_named = all(named is None for named in evidence)
    budget = [d.evidence_budget for d in diagnostics]
    return Answers(
        label=_names([p.label for p in predictions]),
        probabilities=_by_label([p.probabilities for p in predictions], labels),
        total=_column([p.total for p in predictions]),
        review=None if all(p.review is None for p in predictions) else np.array([bool(p.review) for p in predictions]),
        reason=_names([p.reason for p in predictions]),
        prediction_set=_members([p.prediction_set for p in predictions], labels),
        aleatoric=_column([p.aleatoric for p in predictions]),
        epistemic=_column([p.epistemic for p in predictions]),
        concentration=_by_label([d.concentration for d in diagnostics], labels),
        order_dispersion=_column([d.order_dispersion for d in diagnostics]),
        evidence_budget=None
        if all(orders is None for orders in budget)
        else np.array([-1 if orders is None else orders for orders in budget], dtype=np.int32),
        evidence_ngrams=None if none_named else np.array([_padded([e.text for e in n or ()], "") for n in evidence]),
        evidence_nats=None
        if none_named
        else np.array([_padded([e.nats for e in n or ()], 0.0) for n in evidence], dtype=np.float32),
        assigned=_members([p.labels for p in predictions], labels),
        undecided=_members([p.undecided for p in predictions], labels),
        value=_column([p.value for p in predictions]),
        prediction_interval=None
        if all(p.prediction_interval is None for p in predictions)
        else np.array([p.prediction_interval or (np.nan, np.nan) for p in predictions], dtype=np.float32),
    )


# Each None where no answer gives the field: then the ensemble does not declare it.


def _padded(values: list[T], fill: T) -> list[T]:
    return values + [fill] * (LEADING - len(values))


def _names(values: Sequence[str | None]) -> NDArray[np.str_] | None:
    return None if all(value is None for value in values) else np.array([str(value) for value in values], dtype=np.str_)


def _by_label(values: Sequence[dict[str, float] | None], labels: Sequence[str]) -> Floats | None:
    if all(value is None for value in values):
        return None
    return np.array([[(value or {}).get(name, np.nan) for name in labels] for value in values], dtype=np.float32)


def _members(values: Sequence[tuple[str, ...] | None], labels: Sequence[str]) -> NDArray[np.bool_] | None:
    if all(value is None for value in values):
        return None
    return np.array([[name in (value or ()) for name in labels] for value in values], dtype=bool)


def _column(values: Sequence[float | None]) -> Floats | None:
    if all(value is None for value in values):
        return None
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)
