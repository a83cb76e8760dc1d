"""How a `Call` travels while the calling thread waits: over gRPC, or over HTTP.

gRPC goes through tritonclient. HTTP does not: tritonclient's client is bound to the greenlet that made it, so that a
second thread can neither call nor close it. The standard library's connections have no such bond; a pool lends each to
one thread at a time, and tritonclient still packs and unpacks the bodies.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import socket
import threading
import time
from email.message import Message
from typing import Any, Protocol

from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from bet_client.contract import MAX_REQUEST_BYTES
from bet_client.deadline import Deadline
from bet_client.faults import from_grpc, unreachable
from bet_client.settings import Address
from bet_client.tracing import trace_headers
from bet_client.wire import (
    HEADER_LENGTH,
    RETRY_AFTER,
    Call,
    CheckReady,
    HttpRequest,
    Infer,
    ReadConfig,
    http_reply,
    http_request,
    read_tensors,
    tensors,
)

MAX_ANSWER_BYTES = 64 * 2**20
"""The largest gRPC message that is accepted from the server."""

CONNECT_SECONDS = 2.0
"""For one connection to be made: a host that answers nothing must leave time to ask another, and a lost packet is sent
again after one second."""

IDLE_SECONDS = 15.0
"""For which an unused HTTP connection is kept. Firewalls and balancers forget idle connections after minutes without
telling either side, and a request on a forgotten one waits in vain; a new one costs a round trip."""

KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT = 30.0, 5.0
"""After so long without a byte, a gRPC connection on which a call waits is pinged, and given up where the second passes
without a sign of life: what is sent then must be acknowledged within it as well. Not sooner, and not while nothing
waits, for a server takes many pings as an attack: Triton's defaults bear two without data in five minutes."""

_channel_numbers = itertools.count()


class Transport(Protocol):
    """Carries calls to one server; safe to use from several threads."""

    def send(self, call: Call, deadline: Deadline) -> Any:
        """The reply to `call`, or its `BetClientError` raised."""

    def close(self) -> None:
        """Give the connections back."""


def open_transport(protocol: str, address: Address) -> Transport:
    """The transport of the chosen protocol; nothing is sent yet."""
    return GrpcTransport(address) if protocol == "grpc" else HttpTransport(address)


def channel_arguments() -> list[tuple[str, int]]:
    """Options of one gRPC channel."""
    return [
        # Channels with equal arguments share one connection: a number of its own gives each client its own.
        ("bet_client.channel", next(_channel_numbers)),
        ("grpc.max_send_message_length", MAX_REQUEST_BYTES + 2**16),
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        # Else a server that comes back after a while is not tried again for up to two minutes.
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1000)),  # which bounds one attempt to connect
        ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * 1000)),
        ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT * 1000)),
        # gRPC (1.85) starts this timer with a ping, and its default of a minute is what counts if it is left out.
        ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_TIMEOUT * 1000)),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 2),
        # As over HTTP, the address is taken as it stands; gRPC alone would obey $http_proxy.
        ("grpc.enable_http_proxy", 0),
    ]


class GrpcTransport:
    """One gRPC channel, which multiplexes the calls of all threads."""

    def __init__(self, address: Address) -> None:
        self._client = triton_grpc.InferenceServerClient(str(address), channel_args=channel_arguments())

    def send(self, call: Call, deadline: Deadline) -> Any:
        """See `Transport`."""
        client, timeout, headers = self._client, deadline.remaining(), trace_headers()
        try:
            match call:
                case ReadConfig(model):
                    answer = client.get_model_config(model, headers=headers, as_json=True, client_timeout=timeout)
                    return answer["config"]
                case CheckReady(model):
                    return client.is_model_ready(model, headers=headers, client_timeout=timeout)
                case Infer(model, _, names):
                    inputs, outputs = tensors(triton_grpc, call)
                    result = client.infer(
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
        except ValueError as error:  # gRPC's word for a channel that another thread has closed just now
            raise unreachable(deadline.address, error) from error

    def close(self) -> None:
        """See `Transport`."""
        self._client.close()


class HttpTransport:
    """Keep-alive HTTP connections, as many as calls were under way at once."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    def send(self, call: Call, deadline: Deadline) -> Any:
        """See `Transport`."""
        connection = self._take()
        reusable = False
        try:
            status, headers, body, reusable = connection.exchange(http_request(call, deadline.microseconds()), deadline)
        except TimeoutError as error:
            raise deadline.exceeded() from error
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(deadline.address, error or type(error).__name__) from error
        finally:
            self._give_back(connection, reusable)
        return http_reply(call, status, headers[HEADER_LENGTH], body, deadline, retry_after=headers[RETRY_AFTER])

    def close(self) -> None:
        """See `Transport`; a connection in use is closed when its call is done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> _Connection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return _Connection(self._address.host, self._address.port)
            if time.monotonic() - connection.used < IDLE_SECONDS and connection.is_alive():
                return connection
            connection.close()

    def _give_back(self, connection: _Connection, reusable: bool) -> None:
        with self._lock:
            if reusable and not self._closed:
                self._idle.append(connection)
                return
        connection.close()


class _DeadlineSocket(socket.socket):
    """A socket that never waits beyond its call's deadline, however slowly the bytes trickle in."""

    deadline: Deadline

    def recv_into(self, *args: Any, **options: Any) -> int:
        self.settimeout(self.deadline.remaining())
        return super().recv_into(*args, **options)


def _connected(host: str, port: int, deadline: Deadline) -> _DeadlineSocket:
    """A connection to the first of the host's addresses that takes one, within one deadline for all of them."""
    failure = OSError(f"{host} has no address")
    # The standard library cannot limit the time of this look-up; the system's resolver has limits of its own.
    for family, kind, number, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connecting = _DeadlineSocket(family, kind, number)
        try:
            connecting.settimeout(min(deadline.remaining(), CONNECT_SECONDS))
            connecting.connect(address)
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connecting
        except TimeoutError:
            connecting.close()
            deadline.remaining()  # tells if it was the call's time that ran out
            failure = OSError(f"not connected within {CONNECT_SECONDS:g} s")
        except OSError as error:
            connecting.close()
            failure = error
    raise failure


class _Connection(http.client.HTTPConnection):
    """One keep-alive connection; used by one thread at a time."""

    sock: _DeadlineSocket | None
    used: float
    """When the last exchange ended, by the monotonic clock."""

    def exchange(self, request: HttpRequest, deadline: Deadline) -> tuple[int, Message, bytes, bool]:
        """Status, headers and body of the answer; whether the connection can be used again."""
        if self.sock is None:
            self.sock = _connected(self.host, self.port, deadline)
        self.sock.deadline = deadline
        self.sock.settimeout(deadline.remaining())
        self.request(request.method, request.path, request.body, request.headers | trace_headers())
        response = self.getresponse()
        body = response.read()
        self.used = time.monotonic()
        return response.status, response.headers, body, not response.will_close

    def is_alive(self) -> bool:
        """Whether the idle connection is still open: the server may have closed it meanwhile."""
        if self.sock is None:
            return False
        self.sock.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            self.sock.recv(1, socket.MSG_PEEK)
            return False  # closed, or an answer that nobody asked for
        return True
