"""Servers that misbehave on the wire, on real sockets: what a broken network or a wrong address looks like."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket], None], port: int = 0) -> Iterator[str]:
    """Accept connections on a port (0: a free one) and let `answer` handle each in a thread; gives the address."""
    listener = socket.create_server(("127.0.0.1", port))
    connections: list[socket.socket] = []

    def handle(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            answer(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join(5)


class Relay:
    """Passes bytes on between clients and a server; connections that are frozen stay open, and dead."""

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._frozen: list[threading.Event] = []

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """Relay on a free port; gives the address."""
        with serving(self._relay) as url:
            yield url

    def freeze(self) -> None:
        """Let no byte through any more on the connections that there are; new ones are not concerned."""
        for frozen in self._frozen:
            frozen.set()

    def _relay(self, client: socket.socket) -> None:
        frozen = threading.Event()
        self._frozen.append(frozen)
        with socket.create_connection(self._server) as server:
            back = threading.Thread(target=self._copy, args=(server, client, frozen), daemon=True)
            back.start()
            self._copy(client, server, frozen)
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            back.join(5)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket, frozen: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not frozen.is_set():
                    target.sendall(data)


def read_request(connection: socket.socket) -> bytes:
    """An HTTP request to the end of its head, with what came along; empty where the client has closed it."""
    received = b""
    while b"\r\n\r\n" not in received:
        more = connection.recv(65536)
        if not more:
            return b""
        received += more
    return received


def http_answer(body: bytes, status: str = "200 OK", headers: Mapping[str, str] | None = None) -> bytes:
    """A complete HTTP answer on a connection that stays open."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return f"HTTP/1.1 {status}\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def always(answer: bytes) -> Callable[[socket.socket], None]:
    """Answer every request alike, and keep the connection."""

    def handle(connection: socket.socket) -> None:
        while read_request(connection):
            connection.sendall(answer)

    return handle


def once(answer: bytes) -> Callable[[socket.socket], None]:
    """Answer one request, then close without having said so."""

    def handle(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)

    return handle


def trickle(connection: socket.socket) -> None:
    """Send a header that never ends, a byte at a time."""
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    stop = threading.Event()
    while not stop.wait(0.02):
        connection.sendall(b"x")


def silent(connection: socket.socket) -> None:
    """Take everything and say nothing."""
    while connection.recv(65536):
        pass
