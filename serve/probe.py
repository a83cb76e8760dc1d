"""Is the answer right? The one question by which start, supervision and health are decided.

Triton counts a model as ready while its Python stub is dead and every request fails, and a request may be answered by
another server on the same port. So the server must call itself by our id, and each ensemble must answer the probe of
its version's manifest as it did when the version was made. Plain HTTP with the standard library (the protocol is
KServe's "v2 inference", github.com/triton-inference-server/server, docs/protocol): a process that starts a server,
such as Locust's under gevent, then needs no gRPC threads for it.
"""

from __future__ import annotations

import http.client
import json
import select
from collections.abc import Sequence
from typing import Any

from serve.errors import ProbeError, ServeError
from serve.repository import Probe

# How Triton's Python backend says that it gave up on a stub: dead, or without a sign of life for a second.
_STUB_LOST = ("is not healthy", "health mutex")


class NotReadyError(ServeError):
    """The server does not answer, or not yet; within this package only."""

    def close(self) -> None:
        """Let go of what the error holds."""


class BusyError(NotReadyError):
    """The server refuses because its queue is full: it lives, and says nothing about its answers."""


class SilentError(NotReadyError):
    """No answer in time. The connection stays open until `close`, so that it can be seen whether one comes later."""

    def __init__(self, message: str, connection: http.client.HTTPConnection) -> None:
        super().__init__(message)
        self._connection = connection

    def answered(self) -> bool:
        """Whether the server has answered, or hung up, by now."""
        return bool(self._connection.sock is None or select.select([self._connection.sock], [], [], 0)[0])

    def close(self) -> None:
        """Hang up, whereupon Triton cancels the request if it still waits."""
        self._connection.close()


class StubLostError(ProbeError):
    """Triton gave up on a stub. If that one was only stopped and goes on, its late answer goes to the next request."""


def require_identity(url: str, server_id: str, timeout: float) -> None:
    """Raise unless our server listens on `url`.

    Raises:
        NotReadyError: if nobody answers yet.
        ProbeError: if another server does.
    """
    status, content = _call("GET", url, "/v2", None, timeout)
    if status != http.client.OK:
        raise NotReadyError(f"{url} answers with status {status}")
    if content.get("name") != server_id:
        raise ProbeError(f"another server ({content.get('name')}) answers on {url}; choose another port")


def require_ready(url: str, model: str, timeout: float) -> None:
    """Raise unless the server counts the model as ready.

    Raises:
        NotReadyError: if it does not.
    """
    status, _ = _call("GET", url, f"/v2/models/{model}/ready", None, timeout)
    if status != http.client.OK:
        raise NotReadyError(f"model {model!r} is not ready on {url} (status {status})")


def pinned_version(url: str, model: str, timeout: float) -> int | None:
    """The version that a loaded ensemble pins for its first step, which may be another than at the server's start.

    None where the model is no ensemble, or pins none.

    Raises:
        NotReadyError: if the server does not say.
    """
    status, content = _call("GET", url, f"/v2/models/{model}/config", None, timeout)
    if status != http.client.OK:
        raise NotReadyError(f"{url} does not give the configuration of {model!r} (status {status})")
    steps = content.get("ensemble_scheduling", {}).get("step", [])
    version = int(steps[0]["model_version"]) if steps else -1
    return version if version > 0 else None


def require_right_answer(url: str, probe: Probe, timeout: float) -> None:
    """Raise unless the probe's text gets the probe's answer, within its tolerance.

    Raises:
        NotReadyError: if the server cannot be reached; SilentError if it does not answer within `timeout` seconds,
            BusyError if it refuses with 503.
        ProbeError: if the inference fails, or its answer differs; StubLostError if Triton gave up on a stub.
    """
    request = {
        "inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [probe.text]}],
        "outputs": [{"name": name} for name in probe.answer],
    }
    status, content = _call("POST", url, f"/v2/models/{probe.model}/infer", request, timeout)
    if status == http.client.SERVICE_UNAVAILABLE:
        raise BusyError(f"model {probe.model!r} is busy: {content.get('error', '')}")
    if status != http.client.OK:
        reason = str(content.get("error", content))
        kind = StubLostError if any(words in reason for words in _STUB_LOST) else ProbeError
        raise kind(f"model {probe.model!r} fails a real inference (status {status}): {reason}")
    answer = {output["name"]: output["data"] for output in content.get("outputs", [])}
    for name, right in probe.answer.items():
        given = answer.get(name, [])
        if not _equal(given, right, probe.tolerance):
            raise ProbeError(
                f"model {probe.model!r} answers the probe of its manifest with {name} = {given}, recorded was "
                f"{list(right)}; the version's files or the engine's libraries have changed: export the version again"
            )


def executions(url: str, model: str, timeout: float) -> int:
    """How many batches the loaded versions of a model have executed with success, by Triton's own statistics.

    Raises:
        NotReadyError: if the server does not say.
    """
    status, content = _call("GET", url, f"/v2/models/{model}/stats", None, timeout)
    if status != http.client.OK:
        raise NotReadyError(f"{url} does not give the statistics of {model!r} (status {status})")
    return sum(int(version["execution_count"]) for version in content["model_stats"])


def _equal(given: list[Any], right: Sequence[str | float], tolerance: float) -> bool:
    if len(given) != len(right):
        return False
    return all(
        abs(a - b) <= tolerance if isinstance(a, int | float) and isinstance(b, float) else a == b
        for a, b in zip(given, right, strict=True)
    )


def _call(method: str, url: str, path: str, body: dict[str, Any] | None, timeout: float) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(url, timeout=timeout)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        try:
            response = connection.getresponse()
        except TimeoutError as error:
            raise SilentError(f"{url} gives no answer to {path} within {timeout:g} s", connection) from error
        text = response.read().decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise NotReadyError(f"{url} does not answer: {error or type(error).__name__}") from error
    connection.close()
    try:
        content = json.loads(text) if text else {}
    except ValueError:
        content = {"error": text[:200]}
    return response.status, content if isinstance(content, dict) else {}
