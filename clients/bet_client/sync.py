"""`Client`: calls that block the calling thread; `aio.AsyncClient` is its mirror image."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from bet_client.errors import BetClientError
from bet_client.flow import Flow, Send, Session, Step, T, Wait
from bet_client.retries import DEFAULT_RETRIES, Timing
from bet_client.settings import DEFAULT_MAX_ROWS, DEFAULT_TIMEOUT, Protocol, Urls, check_settings, refuse_both
from bet_client.transport import Transport, open_transport
from bet_client.types import Budget, Prediction

REAL_TIME = Timing(time.sleep)


class Client:
    """Asks the served classifier, over gRPC or HTTP.

    One client may be shared by any number of threads, and closed by any of them. It belongs to the process that made
    it: in a forked child each call raises `ClientStateError` at once, and the child makes a client of its own.

    Args:
        url: ``host:port``, or several of these in a sequence or with commas between them; by default Triton's own port
            of the protocol on this machine. Requests go to several in turn, past those that failed a moment ago: see
            `bet_client.endpoints`.
        protocol: ``grpc`` or ``http``. Answers and errors are the same.
        model: name of the served ensemble.
        timeout: seconds for each whole call, however many requests it takes.
        max_rows: most texts in one request; the model's own limit is kept as well.
        retries: how often a request is sent again, within the call's timeout, where the server is unavailable or the
            connection broke; 0 for never. Over time no more than a tenth of a client's requests are retries: see
            `bet_client.retries`.
        timing: replaces the clock, the sleep and the chance in tests.
        transport: stands in place of `url` and `protocol` in tests: see `bet_client.testing`.

    Raises:
        ValueError: if an argument cannot be used.
    """

    def __init__(
        self,
        url: Urls = None,
        *,
        protocol: Protocol = "grpc",
        model: str = "bet",
        timeout: float = DEFAULT_TIMEOUT,
        max_rows: int = DEFAULT_MAX_ROWS,
        retries: int = DEFAULT_RETRIES,
        timing: Timing = REAL_TIME,
        transport: Transport | None = None,
    ) -> None:
        refuse_both(url, transport)
        settings = check_settings(url, protocol, model, timeout, max_rows, retries=retries)
        self._timing = timing
        self._session = Session(settings, timing)
        self._transports: list[Transport] = (
            [open_transport(settings.protocol, address) for address in settings.addresses]
            if transport is None
            else [transport]
        )

    def predict(self, text: str, *, diagnostics: bool = False, timeout: float | None = None) -> Prediction:
        """Classify one text.

        Args:
            text: what to classify; NUL characters and special tokens are plain text.
            diagnostics: also ask for `Prediction.diagnostics`.
            timeout: seconds for this call instead of the client's.

        Raises:
            BetClientError: see `bet_client.errors`.
        """
        return self._run(self._session.predict(text, diagnostics=diagnostics), timeout)

    def predict_many(
        self, texts: Iterable[str], *, diagnostics: bool = False, timeout: float | None = None
    ) -> list[Prediction | BetClientError]:
        """Classify texts, each for itself: as many answers as texts, in their order.

        A text that is refused has its `InvalidInputError` in its place, and the others have their answers. Where a
        request fails, or the deadline passes, the texts concerned have that error in their places; answers that came
        before it are kept.

        Args:
            texts: any number of texts; they travel in requests of at most `max_rows` rows.
            diagnostics: also ask for `Prediction.diagnostics`.
            timeout: seconds for this whole call instead of the client's.

        Raises:
            ClientStateError: if the client is closed or belongs to another process.
            TypeError: if `texts` is a single string, or a numpy array of fixed width, which has lost NULs.
        """
        return self._run(self._session.predict_many(texts, diagnostics=diagnostics), timeout)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in class order; asked of the server at first use.

        Raises:
            BetClientError: see `bet_client.errors`.
        """
        return self._run(self._session.labels(), None)

    def budgets(self, *, timeout: float | None = None) -> list[Budget]:
        """The error budgets that the version which answers now can prove, from strict to lax; asked of the server.

        For callers who need another budget than the one that `Prediction.review` goes by: see `Budget.accepts`. Ask
        again after a promotion, since thresholds are a version's own. Empty for a model that was never calibrated, or
        has no single label for a text.

        Raises:
            BetClientError: see `bet_client.errors`.
        """
        return self._run(self._session.budgets(), timeout)

    def is_ready(self, *, timeout: float | None = None) -> bool:
        """Whether the server can be reached and says that the model is ready; of several servers, one that can be."""
        return self._run(self._session.is_ready(), timeout)

    def close(self) -> None:
        """Give the connections back; further calls raise `ClientStateError`, and calls under way may."""
        if not self._session.closed:
            self._session.closed = True
            for transport in self._transports:
                transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, flow: Flow[T], timeout: float | None) -> T:
        """Drive a flow: take each step, hand back what came of it, return the result."""
        steps = self._session.steps(flow, self._session.begin(timeout))
        try:
            step = next(steps)
            while True:
                try:
                    reply = self._take(step)
                except BetClientError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    def _take(self, step: Step) -> Any:
        match step:
            case Send(call, endpoint, deadline):
                return self._transports[endpoint].send(call, deadline)
            case Wait(seconds):
                return self._timing.sleep(seconds)
