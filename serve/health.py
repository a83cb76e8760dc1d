"""The supervisor's verdict, where a load balancer or a health check can read it: `/live` and `/ready`.

Triton's own `/v2/health/ready` stays 200 over a dead stub, a stalled queue and wrong answers. Here

- `/ready` is 200 while the last real inference on every ensemble was right and is younger than `FRESH_SECONDS`, or the
  queue was full and moved (a busy replica is not taken out of the rotation, or the others inherit its load); else 503:
  while it starts, from the first probe that failed, while it is replaced, and from SIGTERM on, before it drains.
- `/live` is 200 while the supervisor itself is seen to work, whatever the server does: it mends the server, and only
  when `/live` is 503 is there anything for an outer supervisor to restart.

Both answer with JSON: {"ready": false, "reason": "…", "right_seconds_ago": 7.3} (null before the first right answer).
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from serve.ports import require_free

FRESH_SECONDS = 5.0  # several probes; a server that is stopped turns unready before its probe's own time is up
# Longest that the supervisor is rightly silent: a start of 120 s after a back-off of 16 s and a drain.
LIVE_SECONDS = 180.0
_REQUEST_SECONDS = 5.0  # for a caller that connects and says nothing


class Health:
    """What the supervisor last saw; one thread writes it, others read it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason = "the server is starting"
        self._right: float | None = None
        self._seen = time.monotonic()

    def right(self) -> None:
        """A probe was answered rightly, or refused by a full queue that moves."""
        with self._lock:
            self._right = self._seen = time.monotonic()
            self._reason = ""

    def wrong(self, reason: str) -> None:
        """A probe failed, or the server is stopped on purpose."""
        with self._lock:
            self._seen = time.monotonic()
            self._reason = reason

    def ready(self) -> dict[str, Any]:
        """The verdict as `/ready` gives it."""
        with self._lock:
            age = None if self._right is None else time.monotonic() - self._right
            reason = self._reason
        if not reason and age is not None and age > FRESH_SECONDS:
            reason = f"no right answer for {age:.1f} s"
        return {"ready": not reason, "reason": reason, "right_seconds_ago": None if age is None else round(age, 1)}

    def live(self) -> dict[str, Any]:
        """The verdict as `/live` gives it."""
        with self._lock:
            age = time.monotonic() - self._seen
        stuck = age > LIVE_SECONDS
        return {"live": not stuck, "reason": f"the supervisor has done nothing for {age:.0f} s" if stuck else ""}


@contextlib.contextmanager
def published(health: Health, host: str, port: int) -> Iterator[None]:
    """Answer `GET /live` and `GET /ready` on `host:port` until the context ends; other paths get 404.

    Raises:
        PortTakenError: if the port is in use.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _REQUEST_SECONDS

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            content = {"/live": health.live, "/ready": health.ready}.get(path, dict)()
            holds = content.get(path[1:])
            status = (
                HTTPStatus.NOT_FOUND if holds is None else HTTPStatus.OK if holds else HTTPStatus.SERVICE_UNAVAILABLE
            )
            body = json.dumps(content or {"error": "ask for /live or /ready"}).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: a health check asks every few seconds."""

    require_free(host, port)
    endpoint = http.server.ThreadingHTTPServer((host, port), Handler)
    endpoint.daemon_threads = True
    thread = threading.Thread(target=endpoint.serve_forever, name="health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        endpoint.shutdown()
        endpoint.server_close()
        thread.join()
