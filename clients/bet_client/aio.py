"""`AsyncClient`: calls that an event loop awaits; the mirror image of `sync.Client`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, Self

from bet_client.errors import BetClientError, ClientStateError
from bet_client.flow import Flow, Send, Session, Step, T, Wait
from bet_client.retries import DEFAULT_RETRIES, Timing
from bet_client.settings import DEFAULT_MAX_ROWS, DEFAULT_TIMEOUT, Protocol, Urls, check_settings, refuse_both
from bet_client.transport_aio import AsyncTransport, open_transport
from bet_client.types import Budget, Prediction

REAL_TIME = Timing(asyncio.sleep)


class AsyncClient:
    """Asks the served classifier without blocking the event loop, over gRPC or HTTP.

    One client may be shared by any number of tasks of one event loop; it belongs to the loop and the process of its
    first call, and raises `ClientStateError` in any other. Arguments as for `Client`.

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
        transport: AsyncTransport | None = None,
    ) -> None:
        refuse_both(url, transport)
        self._settings = check_settings(url, protocol, model, timeout, max_rows, retries=retries)
        self._timing = timing
        self._session = Session(self._settings, timing)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._given = transport
        self._transports: list[AsyncTransport] | None = None

    async def predict(self, text: str, *, diagnostics: bool = False, timeout: float | None = None) -> Prediction:
        """Classify one text; see `Client.predict`."""
        return await self._run(self._session.predict(text, diagnostics=diagnostics), timeout)

    async def predict_many(
        self, texts: Iterable[str], *, diagnostics: bool = False, timeout: float | None = None
    ) -> list[Prediction | BetClientError]:
        """Classify texts, each for itself; see `Client.predict_many`."""
        return await self._run(self._session.predict_many(texts, diagnostics=diagnostics), timeout)

    @property
    def labels(self) -> Coroutine[Any, Any, tuple[str, ...]]:
        """The names of the classes, in class order: ``await client.labels``; see `Client.labels`."""
        return self._run(self._session.labels(), None)

    async def budgets(self, *, timeout: float | None = None) -> list[Budget]:
        """The error budgets that the version which answers now can prove; see `Client.budgets`."""
        return await self._run(self._session.budgets(), timeout)

    async def is_ready(self, *, timeout: float | None = None) -> bool:
        """Whether the server can be reached and says that the model is ready; see `Client.is_ready`."""
        return await self._run(self._session.is_ready(), timeout)

    async def close(self) -> None:
        """Give the connections back; further calls raise `ClientStateError`, and calls under way may."""
        if not self._session.closed:
            self._session.closed = True
            for transport in self._transports or ():
                await transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, flow: Flow[T], timeout: float | None) -> T:
        """Drive a flow: take each step, hand back what came of it, return the result."""
        steps = self._session.steps(flow, self._session.begin(timeout))
        transports = self._open_transports()
        try:
            step = next(steps)
            while True:
                try:
                    reply = await self._take(step, transports)
                except BetClientError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _take(self, step: Step, transports: list[AsyncTransport]) -> Any:
        match step:
            case Send(call, endpoint, deadline):
                return await transports[endpoint].send(call, deadline)
            case Wait(seconds):
                return await self._timing.sleep(seconds)

    def _open_transports(self) -> list[AsyncTransport]:
        loop = asyncio.get_running_loop()
        if self._transports is None:
            settings = self._settings
            self._loop = loop
            self._transports = (
                [open_transport(settings.protocol, address) for address in settings.addresses]
                if self._given is None
                else [self._given]
            )
        if self._loop is not loop:
            raise ClientStateError("the client belongs to another event loop; make one in each")
        return self._transports
