"""A server that is not there, for the tests of applications: real clients, answers of the test's own.

    from bet_client import Client, UnavailableError
    from bet_client.testing import INSTANTLY, FakeTransport, prediction

    fake = FakeTransport([prediction("positive", 0.9), UnavailableError("full"), prediction("negative", 0.6)])
    with Client(transport=fake, timing=INSTANTLY) as client:
        ...

Everything above the wire is what runs in production: which texts are refused, how a list is cut into requests, what is
sent again. As a Triton does, the fake answers a request of several texts as a whole: an `InvalidInputError` for one has
the client send each by itself, any other error is that of the whole request. ``max_rows=1`` keeps texts apart.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from typing import Any

from bet_client.contract import DIAGNOSTICS, INPUT, SHAPES
from bet_client.deadline import Deadline
from bet_client.errors import BetClientError, InvalidInputError
from bet_client.flow import Answer
from bet_client.retries import Timing
from bet_client.types import Budget, Prediction
from bet_client.wire import Call, CheckReady, Infer, ReadConfig

DEFAULT_LABELS = ("negative", "positive")

Answers = Callable[[str], Answer] | Sequence[Answer]
"""What the fake answers to a text, an error being raised: from a function, or one after the other from a list."""


class _Done:
    """Nothing to wait for, whether it is awaited or not."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


INSTANTLY = Timing(lambda seconds: _Done())
"""Has a `Client` or an `AsyncClient` send again without a pause."""


def prediction(
    label: str, probability: float, *, labels: Sequence[str] = DEFAULT_LABELS, review: bool = False
) -> Prediction:
    """An answer with one label, for which the other classes share what is left of the probability.

    Raises:
        ValueError: if `label` is none of `labels`, or `probability` is none or not the largest.
    """
    others = [name for name in labels if name != label]
    rest = (1 - probability) / len(others) if others else 0.0
    if len(others) == len(labels) or not rest <= probability <= 1:
        raise ValueError(f"{label!r} with probability {probability!r} is no answer of a model with the labels {labels}")
    return Prediction(
        label=label,
        probabilities={name: probability if name == label else rest for name in labels},
        total=None,
        aleatoric=None,
        epistemic=None,
        review=review,
        reason="uncertain" if review else "",
        prediction_set=None,
        tokens=None,
        truncated=None,
    )


class _Fake:
    def __init__(
        self,
        answers: Answers,
        *,
        labels: Sequence[str] = DEFAULT_LABELS,
        budgets: Sequence[Budget] = (),
        ready: bool = True,
    ) -> None:
        self.texts: list[str] = []
        self._function = answers if callable(answers) else None
        self._list = [] if callable(answers) else list(answers)
        self._ready = ready
        self._config = {
            "max_batch_size": 64,
            "input": [{"name": INPUT}],
            "output": [{"name": name} for name in (*SHAPES[0], *DIAGNOSTICS)],
            "parameters": {
                "labels": {"string_value": json.dumps(list(labels))},
                "budgets": {"string_value": json.dumps([asdict(budget) for budget in budgets])},
            },
        }
        self._lock = threading.Lock()

    def _reply(self, call: Call) -> Any:
        match call:
            case ReadConfig():
                return self._config
            case CheckReady():
                return self._ready
            case Infer(_, texts, outputs):
                with self._lock:
                    answers = self._answers([raw.decode("utf-8") for raw in texts])
                told = set(DIAGNOSTICS) & set(outputs)
                return tuple(answer if told else replace(answer, diagnostics=None) for answer in answers)

    def _answers(self, texts: list[str]) -> list[Prediction]:
        self.texts += texts
        due = self._list[: len(texts)] if self._function is None else [self._function(text) for text in texts]
        answers = [answer for answer in due if isinstance(answer, Prediction)]
        error = next((answer for answer in due if isinstance(answer, BetClientError)), None)
        if error is None and len(answers) < len(texts):
            raise LookupError(f"the fake is asked for {len(texts)} answers and has {len(answers)} left: {texts}")
        if self._function is None and error is None:
            del self._list[: len(texts)]
        if error is None:
            return answers
        falls_apart = isinstance(error, InvalidInputError) and len(texts) > 1
        if self._function is None and not falls_apart and error is not self._list[-1]:
            self._list.remove(error)
        raise error


class FakeTransport(_Fake):
    """Answers a `Client`: ``Client(transport=FakeTransport(...))``.

    Args:
        answers: a function of the text, or a list with an entry for each text that is sent. An error is raised, and a
            request that is sent again takes the list's next entry; an error at the list's end is there to stay.
        labels: the names of the classes.
        budgets: what `Client.budgets` gives.
        ready: what `Client.is_ready` gives.

    Attributes:
        texts: what was sent, in order, again each time that it was sent again.

    A call raises `LookupError` where the list has too few answers for it.
    """

    def send(self, call: Call, deadline: Deadline) -> Any:
        """See `bet_client.transport.Transport`."""
        deadline.remaining()
        return self._reply(call)

    def close(self) -> None:
        """See `bet_client.transport.Transport`."""


class AsyncFakeTransport(_Fake):
    """Answers an `AsyncClient`; see `FakeTransport`."""

    async def send(self, call: Call, deadline: Deadline) -> Any:
        """See `bet_client.transport_aio.AsyncTransport`."""
        deadline.remaining()
        return self._reply(call)

    async def close(self) -> None:
        """See `bet_client.transport_aio.AsyncTransport`."""
