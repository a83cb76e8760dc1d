"""What a client does in one call, written once for `Client` and `AsyncClient`.

A flow is a generator: it yields the `Call`s that it needs, gets their replies (or has the error thrown in), and
returns the result. Who drives it decides whether waiting blocks a thread or yields to an event loop; the decisions -
what is checked before sending, how a list is cut, what happens to a bad item's neighbours, whether a request is sent
again - are made here.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from bet_client.contract import ModelContract, read_budgets, read_contract
from bet_client.deadline import Deadline
from bet_client.endpoints import Endpoints
from bet_client.errors import (
    BetClientError,
    ClientStateError,
    ConnectionFailedError,
    DeadlineExceededError,
    IncompatibleModelError,
    InvalidInputError,
    ModelNotFoundError,
    ServerError,
    TransportError,
    UnavailableError,
)
from bet_client.retries import RetryBudget, Timing
from bet_client.settings import Settings, check_timeout
from bet_client.types import Budget, Prediction
from bet_client.wire import Call, CheckReady, Infer, ReadConfig, Row, encode_text, read_predictions, split_rows

T = TypeVar("T")
Flow = Generator[Call, Any, T]
Answer = Prediction | BetClientError


@dataclass(frozen=True)
class Send:
    """Have a server answer a call; what comes back is its reply, or its error thrown in."""

    call: Call
    endpoint: int
    """The server's place among the addresses."""
    deadline: Deadline


@dataclass(frozen=True)
class Wait:
    """Let so many seconds pass."""

    seconds: float


Step = Send | Wait
Steps = Generator[Step, Any, T]
"""A flow with each of its calls as the steps it takes; what a client drives."""


class Session:
    """One client's state, which its flows share: what was learned about the model, and whether calls may be made."""

    def __init__(self, settings: Settings, timing: Timing) -> None:
        self.closed = False
        self._settings = settings
        self._model = settings.model
        self._timing = timing
        self._retry_budget = RetryBudget()
        self._addresses = [str(address) for address in settings.addresses]
        self._endpoints = Endpoints(len(self._addresses), timing)
        self._process = os.getpid()
        # Set by whichever thread reads the configuration first; two that race read the same thing twice.
        self._contract: ModelContract | None = None

    def begin(self, timeout: float | None) -> Deadline:
        """The deadline of a call that begins now; `timeout` in seconds, or None for the client's own.

        Raises:
            ClientStateError: if the client is closed or was carried over a fork, which a gRPC channel does not survive.
            ValueError: if the timeout is not a positive, finite number.
        """
        if self.closed:
            raise ClientStateError("the client is closed; make a new one")
        if self._process != os.getpid():
            raise ClientStateError(
                f"the client was made in process {self._process} and cannot be used in its fork {os.getpid()}; "
                "make one in each process"
            )
        seconds = self._settings.timeout if timeout is None else check_timeout(timeout)
        return Deadline(seconds, ", ".join(self._addresses), self._timing.clock)

    def steps(self, flow: Flow[T], deadline: Deadline) -> Steps[T]:
        """All that is to be done for a flow, by the deadline."""
        try:
            call = next(flow)
            while True:
                try:
                    reply = yield from self._attempts(call, deadline)
                except BetClientError as error:
                    call = flow.throw(error)
                else:
                    call = flow.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    def _attempts(self, call: Call, deadline: Deadline) -> Steps[Any]:
        """One call: sent, and where the server was unavailable or the connection broke, sent again.

        To a server that has not been tried it goes at once if it was the connection that failed: that made no work for
        anybody, and servers which cannot be reached are left out, so that it seldom happens. Else it goes a little
        later, a limited number of times.
        """
        self._retry_budget.earn()
        tried: set[int] = set()
        retries = 0
        while True:
            endpoint = self._endpoints.choose(tried)
            try:
                reply = yield Send(call, endpoint, deadline.at(self._addresses[endpoint]))
            except BetClientError as error:
                if self.closed:  # which breaks the calls under way, whatever they met
                    raise ClientStateError("the client was closed during the call") from error
                self._learn(endpoint, error)
                tried.add(endpoint)
                elsewhere = len(tried) < len(self._addresses)
                if isinstance(error, ConnectionFailedError) and elsewhere and self._settings.retries:
                    continue
                pause = self._pause(call, retries, error, deadline, elsewhere=elsewhere)
                if pause is None:
                    raise
            else:
                self._endpoints.worked(endpoint)
                return reply
            retries += 1
            yield Wait(pause)
            if self.closed:
                raise ClientStateError("the client was closed during the call")

    def _learn(self, endpoint: int, error: BetClientError) -> None:
        """What a failure says about the server: nothing where time ran out, for that may be the text's fault."""
        if isinstance(error, UnavailableError):
            self._endpoints.failed(endpoint, error.retry_after)
        elif isinstance(error, ConnectionFailedError):
            self._endpoints.failed(endpoint)
        elif not isinstance(error, DeadlineExceededError):
            self._endpoints.worked(endpoint)

    def _pause(
        self, call: Call, retries: int, error: BetClientError, deadline: Deadline, *, elsewhere: bool
    ) -> float | None:
        """Seconds until a call that failed is sent again, after so many retries; None if it is not."""
        if not isinstance(error, UnavailableError | ConnectionFailedError) or retries == self._settings.retries:
            return None
        if isinstance(call, CheckReady):
            return None  # whoever asks wants to know about now
        pause = self._timing.backoff(retries)
        hint = error.retry_after if isinstance(error, UnavailableError) else None
        if hint is not None and (hint == math.inf or not elsewhere):  # another server has a queue of its own
            pause += hint
        # What cannot be answered in time any more is told at once, and with what went wrong rather than "too late".
        return pause if deadline.allows(pause) and self._retry_budget.spend() else None

    def labels(self) -> Flow[tuple[str, ...]]:
        """The names of the classes, in class order."""
        contract = yield from self._known_contract()
        return contract.labels

    def budgets(self) -> Flow[list[Budget]]:
        """What the version that answers now proves; never remembered, for the next version proves something else."""
        config = yield ReadConfig(self._model)
        return read_budgets(self._model, config)

    def is_ready(self) -> Flow[bool]:
        """Whether a server can be reached and says that the model is ready."""
        try:
            ready: bool = yield CheckReady(self._model)
        except (TransportError, ServerError):
            return False  # that is the answer to the question
        return ready

    def predict(self, text: str, *, diagnostics: bool) -> Flow[Prediction]:
        """The answer to one text, or its error raised."""
        [answer] = yield from self.predict_many([text], diagnostics=diagnostics)
        if isinstance(answer, BetClientError):
            raise answer
        return answer

    def predict_many(self, texts: Iterable[str], *, diagnostics: bool) -> Flow[list[Answer]]:
        """For each text its answer or its own error, in order."""
        if isinstance(texts, str | bytes):
            raise TypeError("predict_many takes a list of texts; for one text call predict")
        if getattr(getattr(texts, "dtype", None), "kind", None) in ("S", "U"):
            raise TypeError(
                "predict_many takes a list of texts: a numpy array of fixed width has lost the NULs that its texts end "
                "in; give a list, or an array of dtype=object"
            )
        answers: dict[int, Answer] = {}
        rows: list[Row] = []
        number = 0
        for number, text in enumerate(texts, start=1):
            try:
                rows.append((number - 1, encode_text(text)))
            except InvalidInputError as error:
                answers[number - 1] = error
        if rows:
            try:
                yield from self._send_all(rows, answers, diagnostics)
            except ClientStateError:
                raise
            except BetClientError as error:
                # It concerns the call, not an item: whoever has no answer yet has this one.
                for place, _ in rows:
                    answers.setdefault(place, error)
        return [answers[place] for place in range(number)]

    def _send_all(self, rows: list[Row], answers: dict[int, Answer], diagnostics: bool) -> Flow[None]:
        contract = yield from self._known_contract()
        sendable = []
        for row in rows:
            try:
                contract.check_length(row[1])
                sendable.append(row)
            except InvalidInputError as error:
                answers[row[0]] = error
        chunks = deque(split_rows(sendable, min(self._settings.max_rows, contract.max_rows)))
        while chunks:
            chunk = chunks.popleft()
            try:
                predictions = yield from self._infer(tuple(raw for _, raw in chunk), diagnostics)
            except InvalidInputError as error:
                if len(chunk) > 1:  # some row is bad, and Triton refused all: each row by itself
                    chunks.extendleft([row] for row in reversed(chunk))
                else:
                    answers[chunk[0][0]] = error
            except (ModelNotFoundError, IncompatibleModelError):
                raise  # it will not be otherwise for the next request
            except ServerError as error:
                answers.update((place, error) for place, _ in chunk)
            else:
                answers.update((place, answer) for (place, _), answer in zip(chunk, predictions, strict=True))

    def _infer(self, texts: tuple[bytes, ...], diagnostics: bool) -> Flow[list[Prediction]]:
        try:
            return (yield from self._infer_once(texts, diagnostics))
        except IncompatibleModelError:
            # The model may have been replaced by one with other labels or outputs: look again, once.
            self._contract = None
            return (yield from self._infer_once(texts, diagnostics))

    def _infer_once(self, texts: tuple[bytes, ...], diagnostics: bool) -> Flow[list[Prediction]]:
        contract = yield from self._known_contract()
        outputs = contract.wanted(diagnostics=diagnostics)
        answers = yield Infer(self._model, texts, outputs)
        if isinstance(answers, tuple):  # from a test's transport, which has predictions and no tensors
            return list(answers)
        return read_predictions(answers, contract, rows=len(texts), outputs=outputs, diagnostics=diagnostics)

    def _known_contract(self) -> Flow[ModelContract]:
        contract = self._contract
        if contract is None:
            config = yield ReadConfig(self._model)
            contract = self._contract = read_contract(self._model, config)
        return contract
