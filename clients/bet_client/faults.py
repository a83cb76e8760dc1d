"""Failures as gRPC, HTTP and tritonclient report them, turned into the error tree.

tritonclient has one exception class for everything, and HTTP has numbers; both are mapped here and nowhere else, so
that the same fault is the same class on both protocols. Codes are those that Triton 2.51 was seen to send.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
from datetime import UTC, datetime
from typing import Any

from tritonclient.utils import InferenceServerException

from bet_client.deadline import Deadline
from bet_client.errors import (
    BetClientError,
    ConnectionFailedError,
    IncompatibleModelError,
    InvalidInputError,
    ModelNotFoundError,
    ServerError,
    UnavailableError,
)

# gRPC has one code, UNAVAILABLE, for "I could not connect" and for "the server says it is too busy", and nothing in
# the error but its words tells them apart (grpcio 1.85: no metadata, no peer). These are the words of gRPC itself;
# those of Envoy, which is a server to us, begin with "upstream".
_BROKEN_CHANNEL = re.compile(
    r"^(?!upstream).*"
    r"(failed to connect|errors? resolving|DNS resolution|name resolution|address list|socket closed|stream removed"
    r"|connection (reset|refused|closed|aborted|timed out)|broken pipe|recvmsg|sendmsg|goaway|keepalive"
    r"|transport closed|endpoint clos|timed out before receiving SETTINGS)",
    re.IGNORECASE | re.DOTALL,
)

# Triton answers with these where the client and the model no longer agree about the tensors.
_DISAGREEMENT = re.compile(
    r"unexpected inference (in|out)put|expected \d+ inputs|unexpected shape for input", re.IGNORECASE
)

# gRPC says so by RESOURCE_EXHAUSTED, of a request or of its answer; the same again would fail again.
_TOO_LARGE = re.compile(r"message larger than max", re.IGNORECASE)

_UNKNOWN_MODEL = re.compile(r"unknown model", re.IGNORECASE)

# The dynamic batcher's word, by UNAVAILABLE and 503, for a request whose own timeout passed before it was executed.
_EXPIRED = re.compile(r"request timeout expired", re.IGNORECASE)

_REQUEST_ID = re.compile(r"^\[request id: [^\]]*\] ")

_GRPC_TO_HTTP = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


def from_grpc(error: InferenceServerException, deadline: Deadline) -> BetClientError:
    """The typed error for what tritonclient's gRPC clients raise."""
    code = str(error.status() or "").removeprefix("StatusCode.")
    message = str(error.message() or "")
    if code == "UNAVAILABLE" and _BROKEN_CHANNEL.search(message):
        return unreachable(deadline.address, message)
    if code == "RESOURCE_EXHAUSTED" and _TOO_LARGE.search(message):
        return InvalidInputError(
            f"too much for one message to or from the server at {deadline.address}: {message}; send fewer or shorter "
            "texts at once"
        )
    return _typed(_GRPC_TO_HTTP.get(code, 500), code, message, deadline, _pushback(error))


def from_http(status: int, body: bytes, deadline: Deadline, retry_after: str | None = None) -> BetClientError:
    """The typed error for an HTTP answer other than 200; `retry_after` is its header of that name."""
    text = body.decode("utf-8", errors="replace")
    try:
        message = str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        message = text.strip()[:500]  # a proxy's page rather than Triton's JSON
    return _typed(status, f"HTTP {status}", message, deadline, _seconds(retry_after))


def unreachable(address: str, cause: object) -> ConnectionFailedError:
    """The error for a connection that could not be made or that broke."""
    return ConnectionFailedError(
        f"no connection to {address} ({cause}); check that the server runs and that this is its port for the protocol "
        "(Triton: 8001 for gRPC, 8000 for HTTP)"
    )


def _pushback(error: InferenceServerException) -> float | None:
    """Seconds until the server wants to be asked again, from the metadata at the end of a gRPC answer.

    `grpc-retry-pushback-ms` is gRPC's own word (proposal A6: what is no number, or a negative one, means never);
    `retry-after` is what proxies carry over from HTTP.
    """
    # tritonclient hides gRPC's error behind its own, which leaves it as the context.
    trailing: Any = getattr(error.__context__, "trailing_metadata", tuple)() or ()
    metadata = {key: value for key, value in trailing if isinstance(value, str)}
    if "grpc-retry-pushback-ms" in metadata:
        milliseconds = metadata["grpc-retry-pushback-ms"]
        return int(milliseconds) / 1000 if milliseconds.isascii() and milliseconds.isdecimal() else math.inf
    return _seconds(metadata.get("retry-after"))


def _seconds(retry_after: str | None) -> float | None:
    """A `Retry-After`, which is a number of seconds or a date, as seconds; None where it is neither."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after)
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (date.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _typed(
    status: int, code: str, message: str, deadline: Deadline, retry_after: float | None = None
) -> BetClientError:
    message = _REQUEST_ID.sub("", message)
    if status == 404 or (status == 400 and _UNKNOWN_MODEL.search(message)):
        return ModelNotFoundError(
            f"the server at {deadline.address} does not serve this model: {message}; check the model's name"
        )
    if status == 400 and _DISAGREEMENT.search(message):
        return IncompatibleModelError(
            f"the model at {deadline.address} takes or gives other tensors than asked for: {message}"
        )
    if status in (400, 413):
        return InvalidInputError(message or f"the server at {deadline.address} refused the request ({code})")
    if status in (408, 504) or (status == 503 and _EXPIRED.search(message)):
        return deadline.exceeded()
    if status in (429, 503):
        return UnavailableError(
            f"the server at {deadline.address} cannot answer now: {message}; try again later", retry_after
        )
    return ServerError(f"the server at {deadline.address} failed ({code}): {message}")
