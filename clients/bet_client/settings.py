"""The arguments of a client, checked once where they enter, with every fault named in one error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import urlsplit

from bet_client.retries import DEFAULT_RETRIES

Protocol = Literal["grpc", "http"]
Urls = str | Sequence[str] | None
"""One address, several in a sequence or with commas between them, or None for this machine."""

DEFAULT_PORTS = {"grpc": 8001, "http": 8000}
"""Triton's own."""

DEFAULT_TIMEOUT = 10.0
"""Seconds for a whole call. Finite on purpose: tritonclient would wait for ever."""

DEFAULT_MAX_ROWS = 32
"""Texts in one request: the least `max_batch_size` that a served model promises."""


@dataclass(frozen=True)
class Address:
    """Where a server listens; as text ``host:port``, with brackets round an IPv6 address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Settings:
    """Where to call, which model, and within which limits."""

    addresses: tuple[Address, ...]
    protocol: Protocol
    model: str
    timeout: float
    max_rows: int
    retries: int = DEFAULT_RETRIES


def check_settings(
    url: Urls, protocol: str, model: str, timeout: float, max_rows: int, *, retries: int = DEFAULT_RETRIES
) -> Settings:
    """Validate a client's arguments.

    Raises:
        ValueError: naming each argument that cannot be used, and what to write instead.
    """
    faults = []
    if protocol not in get_args(Protocol):
        faults.append(f"protocol {protocol!r} is not known; write 'grpc' or 'http'")
    addresses = []
    for one in _each(url):
        try:
            addresses.append(_split_address(one, DEFAULT_PORTS.get(protocol, 0)))
        except ValueError as error:
            faults.append(str(error))
    if not addresses and not faults:
        faults.append("url names no address; write for instance 'localhost:8001'")
    if not isinstance(model, str) or not model:
        faults.append(f"model {model!r} is not a name; write for instance 'bet'")
    try:
        check_timeout(timeout)
    except ValueError as error:
        faults.append(str(error))
    if not isinstance(max_rows, int) or max_rows < 1:
        faults.append(f"max_rows {max_rows!r} is not a positive number of texts")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        faults.append(f"retries {retries!r} is not a number of times; write 0 for none")
    if faults:
        raise ValueError("; ".join(faults))
    return Settings(
        tuple(addresses), "http" if protocol == "http" else "grpc", model, float(timeout), max_rows, retries
    )


def refuse_both(url: Urls, transport: object) -> None:
    """Refuse an address beside a transport, which has none.

    Raises:
        ValueError: if both are given.
    """
    if url is not None and transport is not None:
        raise ValueError(f"url {url!r} is given beside a transport, which knows its own way; give one of them")


def check_timeout(timeout: float) -> float:
    """A timeout in seconds, if it is one.

    Raises:
        ValueError: if it is not a positive finite number.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise ValueError(f"timeout {timeout!r} is not a positive, finite number of seconds")
    return float(timeout)


def _each(url: Urls) -> Sequence[str]:
    if url is None:
        return ["localhost"]
    if isinstance(url, str):
        return [one.strip() for one in url.split(",")]
    return url if isinstance(url, Sequence) else [url]


def _split_address(url: str, default_port: int) -> Address:
    advice = f"url {url!r} is not an address; write host:port without a scheme or path, for instance 'localhost:8001'"
    if not isinstance(url, str) or "/" in url or any(character.isspace() for character in url):
        raise ValueError(advice)
    try:
        parts = urlsplit(f"//{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(advice) from None
    if not host or parts.username is not None or parts.query or parts.fragment:
        raise ValueError(advice)
    return Address(host, default_port if port is None else port)
