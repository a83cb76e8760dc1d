"""Start a server and hold it: from a repository folder to a process that was seen to answer rightly, and back.

`start` decides the plan, lets an engine prepare the command (serve/embedded.py, serve/container.py), executes it, and
returns only when a real inference on every ensemble is right. `Server.stop` drains what is queued and leaves neither
processes nor shared memory.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from serve import container, embedded, leftovers, probe
from serve.cache import servers_folder
from serve.errors import BrokenLockError, PortTakenError, ProbeError, ServeError, StartupError
from serve.integrity import require_intact
from serve.leftovers import ProcessIdentity, ServerState
from serve.log import failed_loads, read_log, says_lock_broke, says_port_in_use, tail
from serve.plan import DRAIN_SECONDS, Launch, Plan, Ports
from serve.ports import free_port, require_free
from serve.repository import Repository, read_repository

LOG = logging.getLogger("serve")

Device = Literal["cpu", "gpu"]
Engine = Literal["embedded", "container"]

_POLL_SECONDS = 0.05
_PROBE_SECONDS = 5.0
_UNLOAD_SECONDS = 10.0  # after the last answer; measured 3 s for two idle models
# A port that was free when it was picked may be taken when Triton, its models loaded, asks for it; and on a loaded
# machine Triton may abort while starting, over a lock of its own.
_ATTEMPTS = 3


def start(
    repository: Path,
    *,
    http_port: int | None = None,
    grpc_port: int | None = None,
    metrics_port: int | None = None,
    host: str = "127.0.0.1",
    device: Device = "cpu",
    engine: Engine = "embedded",
    models: Sequence[str] | None = None,
    log_path: Path | None = None,
    timeout: float = 120.0,
) -> Server:
    """Start Triton on `repository` and return when it answers rightly.

    Args:
        http_port, grpc_port, metrics_port: None picks a free one.
        host: the address to listen on; only this machine by default.
        device: "gpu" takes a model's `configs/gpu.pbtxt` where it has one.
        models: the models to load; by default every ensemble with an exported version.
        log_path: where the server's log is appended; by default a file that is removed when the server stops.
        timeout: seconds until every ensemble must have answered its probe.

    Raises:
        ServeError: one of the tree in serve/errors.py; nothing is left running then.
    """
    for line in leftovers.sweep():
        LOG.warning("%s", line)
    content = read_repository(repository, device)
    names = content.servable(models)
    require_intact(content, names)
    for name in names:
        if warning := content.processor_warning(name):
            LOG.warning("%s", warning)
    LOG.info("starting Triton (%s, %s) on %s with %s", engine, device, content.path, ", ".join(names))
    for attempt in range(1, _ATTEMPTS + 1):
        ports = Ports(*(free_port(host) if p is None else p for p in (http_port, grpc_port, metrics_port)))
        plan = Plan(secrets.token_hex(6), content, names, device, host, ports)
        asked = [port for port in (http_port, grpc_port, metrics_port) if port is not None]
        for port in asked:
            require_free(host, port)
            if asked.count(port) > 1:
                raise PortTakenError(port, "this server itself, which needs three different ones")
        try:
            return _launch(plan, _engine(engine)(plan), log_path, timeout)
        except PortTakenError as error:
            picked = error.port not in (http_port, grpc_port, metrics_port)
            if not picked or attempt == _ATTEMPTS:
                raise
            LOG.info("%s; trying others", error)
        except BrokenLockError as error:
            if attempt == _ATTEMPTS:
                raise
            reason = str(error).partition("\n")[0]
            LOG.warning("start %d of %d failed and is tried again: %s", attempt, _ATTEMPTS, reason)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _engine(name: Engine) -> Callable[[Plan], Launch]:
    return {"embedded": embedded.prepare, "container": container.prepare}[name]


def _launch(plan: Plan, launch: Launch, log_path: Path | None, timeout: float) -> Server:
    launcher = ProcessIdentity.of(os.getpid())
    state = ServerState(plan.token, str(servers_folder()), plan.shm_prefix, launch.container, launcher, None)
    state.write()
    log_path = log_path or state.file("log")
    try:
        with log_path.open("ab") as log:
            begin = log.tell()
            # A session of its own: Ctrl-C in the terminal reaches the launcher, which then drains the server.
            process = subprocess.Popen(
                launch.command,
                env=launch.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        leftovers.clean(state)
        raise StartupError(f"{error.filename or launch.command[0]} cannot be used: {error.strerror}") from error
    server = Server(plan, process, state, log_path, begin)
    try:
        server._wait_until_right(timeout)
    except BaseException:
        server.stop(drain_seconds=0)
        raise
    return server


class Server:
    """A running Triton; a context manager that stops it.

    Attributes:
        http_url, grpc_url, metrics_url: host and port, without scheme, as the clients take them.
        pid: of the `tritonserver` process (of the Docker client with the container engine).
        log_path: the server's log.
        models: the names that were loaded.
    """

    def __init__(
        self,
        plan: Plan,
        process: subprocess.Popen[bytes],
        state: ServerState,
        log_path: Path,
        log_begin: int,
    ) -> None:
        reachable = "127.0.0.1" if plan.host in ("0.0.0.0", "::", "") else plan.host
        self.http_url = f"{reachable}:{plan.ports.http}"
        self.grpc_url = f"{reachable}:{plan.ports.grpc}"
        self.metrics_url = f"{reachable}:{plan.ports.metrics}"
        self.pid = process.pid
        self.log_path = log_path
        self.models = plan.models
        self._plan = plan
        self._process = process
        self._log_begin = log_begin
        self._stopped = False
        self._launcher = os.getpid()
        try:
            self._state = dataclasses.replace(state, server=ProcessIdentity.of(process.pid))
            self._state.write()
        except ProcessLookupError:  # ended at once: _wait_until_right says why
            self._state = state
        atexit.register(self._stop_at_exit)

    @property
    def token(self) -> str:
        """The marker of this server in its processes' environment and in the names of its shared memory."""
        return self._plan.token

    @property
    def ports(self) -> Ports:
        """The three ports."""
        return self._plan.ports

    @property
    def repository(self) -> Repository:
        """What it serves."""
        return self._plan.repository

    def is_running(self) -> bool:
        """Whether the server's own process lives; `check` says whether it answers."""
        return self._process.poll() is None

    def check(self, timeout: float = _PROBE_SECONDS) -> None:
        """Ask every loaded model once, by a real inference where its manifest has a probe.

        Raises:
            ServeError: if the process has ended, does not answer a question within `timeout` seconds, or answers
                wrongly.
        """
        if self._stopped:
            raise StartupError("the server was stopped")
        if not self.is_running():
            raise StartupError(f"the server ended with status {self._process.returncode}", self.log_tail())
        self._require_right_answers(timeout)

    def executions(self, timeout: float = _PROBE_SECONDS) -> tuple[int, ...]:
        """How many batches each step has executed with success: what moves while a server with full queues works.

        Raises:
            NotReadyError: if the server does not say within `timeout` seconds.
        """
        steps = (m.name for m in self.repository.loaded_with(self.models) if m.backend != "ensemble")
        return tuple(probe.executions(self.http_url, step, timeout) for step in steps)

    def stop(self, *, drain_seconds: float = DRAIN_SECONDS + _UNLOAD_SECONDS) -> None:
        """End the server: it may take `drain_seconds` to answer what it has accepted and to unload; 0 kills it at once.

        May be called again; its stub processes and shared memory are removed in any case.
        """
        if self._stopped:
            return
        self._stopped = True
        atexit.unregister(self._stop_at_exit)
        if self.is_running() and drain_seconds > 0:
            self._process.terminate()
            try:
                self._process.wait(drain_seconds)
            except subprocess.TimeoutExpired:
                LOG.warning("server %d did not end in time and is killed", self.pid)
        if self.is_running():
            self._process.kill()
        self._process.wait()
        leftovers.clean(self._state)

    def log_tail(self) -> str:
        """The lines of this server's log that matter when it failed: errors, else the last ones."""
        return tail(read_log(self.log_path, self._log_begin))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._launcher:  # not in a forked child, which inherits the registration
            self.stop()

    def _require_right_answers(self, timeout: float) -> None:
        probe.require_identity(self.http_url, self._plan.server_id, timeout)
        for model in self.models:
            probe.require_ready(self.http_url, model, timeout)
            self._require_right_answer(model, timeout)

    def _require_right_answer(self, model: str, timeout: float) -> None:
        pinned = probe.pinned_version(self.http_url, model, timeout)
        expected = self.repository.probe(model, pinned)
        if expected is None:
            return
        try:
            probe.require_right_answer(self.http_url, expected, timeout)
        except ProbeError:
            if probe.pinned_version(self.http_url, model, timeout) == pinned:
                raise
            self._require_right_answer(model, timeout)  # it was promoted in between

    def _wait_until_right(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            # A server that failed to load a model takes some seconds more to end by itself.
            if not self.is_running() or failed_loads(read_log(self.log_path, self._log_begin)):
                raise self._startup_failure()
            try:
                # Not `check`: of a server that ends between two looks only `_startup_failure` says why.
                self._require_right_answers(_PROBE_SECONDS)
                return
            except probe.NotReadyError as error:
                error.close()
                if time.monotonic() > deadline:
                    raise StartupError(f"not ready after {timeout:g} s: {error}", self.log_tail()) from error
            try:
                self._process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue

    def _startup_failure(self) -> ServeError:
        log = read_log(self.log_path, self._log_begin)
        if says_port_in_use(log):
            for port in (self.ports.http, self.ports.grpc, self.ports.metrics):
                try:
                    require_free(self._plan.host, port)
                except PortTakenError as taken:
                    return taken
        reasons = [f"model {model!r} could not be loaded: {reason}" for model, reason in failed_loads(log).items()]
        if reasons:
            return StartupError("; ".join(reasons), tail(log))
        if says_lock_broke(log):
            return BrokenLockError(
                "Triton aborted while starting, over a lock that it shares with its stubs (triton-inference-server/"
                "server#8882), as it may on a heavily loaded machine; start it again with less load beside it, or with "
                "fewer model instances",
                tail(log),
            )
        return StartupError(f"the server ended with status {self._process.returncode} while starting", tail(log))
