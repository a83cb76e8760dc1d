"""HTTP/1.1 on a raw connection, as cheap as Python can: bytes out, the bytes of a whole answer back.

Both generators, closed and open loop, stand on it: requests are made beforehand, answers are kept as bytes, and nothing
is parsed but where an answer ends (60–90 µs an exchange).
"""

from __future__ import annotations

import asyncio
import re

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


def http_post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """The bytes of one POST request on a connection that stays open."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join((*lines, f"Content-Length: {len(body)}")).encode("latin-1") + _HEAD_END + body


def status_of(reply: bytes) -> int:
    """The status of an answer; 0 where there was none."""
    return int(reply[9:12]) if reply else 0


def body_of(reply: bytes) -> bytes:
    """What follows the headers of an answer."""
    return reply.partition(_HEAD_END)[2]


def header_of(reply: bytes, name: str) -> str | None:
    """The value of a header of an answer."""
    for line in reply.partition(_HEAD_END)[0].split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.decode("latin-1").lower() == name.lower():
            return value.decode("latin-1").strip()
    return None


class HttpConnection(asyncio.Protocol):
    """One connection with at most one request under way; what happens to it is told to `answered` and `lost`."""

    def __init__(self) -> None:
        self._missing: int | None = None  # bytes of the answer still to come, once its head is here
        self._parts: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    def answered(self, reply: bytes) -> None:
        """A whole answer is there: status line, headers and body."""
        raise NotImplementedError

    def lost(self) -> None:
        """The connection is closed, by whomever; what was under way will have no answer."""
        raise NotImplementedError

    def send(self, request: bytes) -> None:
        """Send the bytes of a request; the one before must have been answered."""
        self._missing, self._parts = None, []
        assert self._transport is not None
        self._transport.write(request)

    def close(self) -> None:
        """Give the connection back."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, reason: Exception | None) -> None:
        self.lost()

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        if self._missing is None:
            start = b"".join(self._parts)
            head = start.find(_HEAD_END)
            if head < 0:
                return
            length = _LENGTH.search(start, 0, head + 2)
            if length is None:  # chunked, which no system here needs: as good as no answer
                self.close()
                return
            self._missing = head + len(_HEAD_END) + int(length[1]) - len(start)
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            self.answered(b"".join(self._parts))
