"""How a `Call` travels while an event loop does other things: the mirror image of `transport`.

Connections belong to the event loop in which they were opened, so they are opened at the first call.
"""

from __future__ import annotations

import asyncio
import io
from typing import Any, Protocol

import aiohttp
import grpc
from tritonclient.grpc import aio as triton_grpc
from tritonclient.utils import InferenceServerException
from yarl import URL

from bet_client.deadline import Deadline
from bet_client.faults import from_grpc, unreachable
from bet_client.settings import Address
from bet_client.tracing import trace_headers
from bet_client.transport import CONNECT_SECONDS, IDLE_SECONDS, channel_arguments
from bet_client.wire import (
    HEADER_LENGTH,
    RETRY_AFTER,
    Call,
    CheckReady,
    Infer,
    ReadConfig,
    http_reply,
    http_request,
    read_tensors,
    tensors,
)


class AsyncTransport(Protocol):
    """Carries calls to one server, from one event loop."""

    async def send(self, call: Call, deadline: Deadline) -> Any:
        """The reply to `call`, or its `BetClientError` raised."""

    async def close(self) -> None:
        """Give the connections back."""


def open_transport(protocol: str, address: Address) -> AsyncTransport:
    """The transport of the chosen protocol; called inside the event loop that will use it."""
    return AsyncGrpcTransport(address) if protocol == "grpc" else AsyncHttpTransport(address)


class AsyncGrpcTransport:
    """One gRPC channel, which multiplexes the calls of all tasks."""

    def __init__(self, address: Address) -> None:
        self._client = triton_grpc.InferenceServerClient(str(address), channel_args=channel_arguments())

    async def send(self, call: Call, deadline: Deadline) -> Any:
        """See `AsyncTransport`."""
        client, timeout, headers = self._client, deadline.remaining(), trace_headers()
        try:
            match call:
                case ReadConfig(model):
                    answer = await client.get_model_config(model, headers=headers, as_json=True, client_timeout=timeout)
                    return answer["config"]
                case CheckReady(model):
                    return await client.is_model_ready(model, headers=headers, client_timeout=timeout)
                case Infer(model, _, names):
                    inputs, outputs = tensors(triton_grpc, call)
                    result = await client.infer(
                        model,
                        inputs,
                        outputs=outputs,
                        timeout=deadline.microseconds(),
                        client_timeout=timeout,
                        headers=headers,
                    )
                    return read_tensors(result, names)
        except InferenceServerException as error:
            raise from_grpc(error, deadline) from error
        except grpc.aio.UsageError as error:  # gRPC's word for a channel that another task has closed just now
            raise unreachable(deadline.address, error) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled this task: gRPC cancels the calls under way on a channel that is closed.
            raise unreachable(deadline.address, "the channel was closed") from error

    async def close(self) -> None:
        """See `AsyncTransport`."""
        await self._client.close()


class AsyncHttpTransport:
    """A pool of keep-alive HTTP connections."""

    def __init__(self, address: Address) -> None:
        self._address = address
        # Time is kept by the call's deadline, which covers waiting for a free connection too.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(keepalive_timeout=IDLE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def send(self, call: Call, deadline: Deadline) -> Any:
        """See `AsyncTransport`."""
        request = http_request(call, deadline.microseconds())
        # As a stream: aiohttp warns of large bodies given as bytes, which it sends in one piece.
        content = None if request.body is None else io.BytesIO(request.body)
        headers = request.headers | trace_headers()
        url = URL(f"http://{self._address}{request.path}", encoded=True)
        try:
            async with (
                asyncio.timeout(deadline.remaining()),
                self._session.request(request.method, url, data=content, headers=headers) as answer,
            ):
                body = await answer.read()
        except aiohttp.ServerTimeoutError as error:
            raise unreachable(deadline.address, f"not connected within {CONNECT_SECONDS:g} s") from error
        except TimeoutError as error:
            raise deadline.exceeded() from error
        except (OSError, aiohttp.ClientError) as error:
            raise unreachable(deadline.address, error or type(error).__name__) from error
        header_length, retry_after = answer.headers.get(HEADER_LENGTH), answer.headers.get(RETRY_AFTER)
        return http_reply(call, answer.status, header_length, body, deadline, retry_after=retry_after)

    async def close(self) -> None:
        """See `AsyncTransport`."""
        await self._session.close()
