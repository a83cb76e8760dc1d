"""Callers at a fixed rate over several connections while versions are switched.

Each answer is judged, taken whole, by which version's it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from bet_client import BetClientError, Client, Prediction
from second_versions import BET

from export.answers import Answers
from export.manifest import encoder_of, kind_of, read_manifest
from export.parity import Parity, tolerances_of
from export.repository import Names
from export.served import as_answers
from export.texts import GateText
from export.verify import graph_answers, texts_as_they_stand
from train.tokenizer import load_tokenizer
from verdict import Report

CONNECTIONS = 8
CALLERS = 64


@dataclass(frozen=True)
class Call:
    """One request: which text, when it was sent and answered (seconds), and what came back."""

    text: int
    sent: float
    done: float
    answer: Prediction | BetClientError


@dataclass
class Traffic:
    """A context manager: calls go out at `rate` a second as long as it is open.

    Calls are sent when they are due, whether earlier ones were answered or not.
    """

    url: str
    texts: Sequence[str]
    rate: float
    model: str = "bet"
    calls: list[Call] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        self._clients = [Client(self.url, model=self.model, timeout=60, retries=0) for _ in range(CONNECTIONS)]
        self.labels = self._clients[0].labels
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(CALLERS)
        self._pacer = threading.Thread(target=self._pace)
        self._pacer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._pacer.join()
        self._pool.shutdown(cancel_futures=True)  # what a machine that is too slow has not sent is no request
        for client in self._clients:
            client.close()

    def _pace(self) -> None:
        began, number = time.perf_counter(), 0
        while not self._stop.wait(max(0.0, began + number / self.rate - time.perf_counter())):
            self._pool.submit(self._call, number)
            number += 1

    def _call(self, number: int) -> None:
        text, sent = number % len(self.texts), time.perf_counter()
        answer: Prediction | BetClientError
        try:
            answer = self._clients[number % CONNECTIONS].predict(self.texts[text], diagnostics=True)
        except BetClientError as error:
            answer = error
        self.calls.append(Call(text, sent, time.perf_counter(), answer))


@dataclass(frozen=True)
class Truth:
    """What one version answers to the texts, by its graph in this process."""

    answers: Answers
    texts: list[GateText]
    limit: int
    tolerances: dict[str, float]

    @staticmethod
    def of(models: Path, number: int, texts: Sequence[str], names: Names = BET) -> Truth:
        manifest = read_manifest(models / names.classifier / str(number))
        encoder = encoder_of(load_tokenizer(models / names.tokenizer / str(number)), manifest["tokenizer"])
        encoded = texts_as_they_stand(encoder, list(texts))
        answers = graph_answers(models, names, number, manifest, encoded)
        return Truth(
            answers, encoded, encoder.max_length, dict(tolerances_of(kind_of(manifest), len(manifest["labels"])))
        )

    def gave(self, call: Call, labels: Sequence[str]) -> bool:
        """Whether an answer, with everything in it, is this version's."""
        assert isinstance(call.answer, Prediction)
        text = self.texts[call.text]
        if (call.answer.tokens, call.answer.truncated) != (text.tokens, text.tokens > self.limit):
            return False
        parity = Parity(self.answers.take([call.text]), [text], self.tolerances)
        parity.add("served", {"alone": as_answers([call.answer], tuple(labels))})
        report = Report("traffic")
        parity.add_to(report)
        return report.holds


@dataclass(frozen=True)
class Verdict:
    """What was seen of a phase with one switch in it."""

    requests: int
    failed: list[str]
    mixed: list[Call]
    late: int  # sent after the new version was first seen to answer, and answered by the old one
    by: dict[int, int]
    overlap_ms: float  # from the first answer of the new version to the last of the old one
    p99_ms: float


def judge(calls: Sequence[Call], labels: Sequence[str], truths: dict[int, Truth], old: int, new: int) -> Verdict:
    """Which version gave each answer, and whether they switched once."""
    failed = [str(c.answer) for c in calls if isinstance(c.answer, BetClientError)]
    answered = [c for c in calls if isinstance(c.answer, Prediction)]
    given: dict[int, list[Call]] = {old: [], new: []}
    mixed = []
    for call in answered:
        by = [number for number in (old, new) if truths[number].gave(call, labels)]
        if len(by) == 1:
            given[by[0]].append(call)
        else:
            mixed.append(call)
    first = min((c.done for c in given[new]), default=np.inf)
    last = max((c.done for c in given[old]), default=-np.inf)
    return Verdict(
        requests=len(calls),
        failed=failed,
        mixed=mixed,
        late=sum(c.sent > first for c in given[old]),
        by={number: len(own) for number, own in given.items()},
        overlap_ms=max(0.0, float(last - first) * 1000),
        p99_ms=float(np.quantile([c.done - c.sent for c in answered], 0.99) * 1000),
    )
