"""A running server's model control: which models it has, which versions its ensembles pin, load and unload.

Versions given in the load call itself would be lost with the next load, so the files on disk decide, and the server is
told to read them. Whether it runs is asked of each model: after a failed load the server as a whole may call itself not
ready though every model answers.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http
from tritonclient.utils import InferenceServerException

from export.errors import RepositoryError
from export.served import Protocol

_LOAD_SECONDS = 120.0


class LoadError(RepositoryError):
    """The server did not load or unload a model; what it had loaded before goes on answering."""


class Control:
    """Model control of one server, over gRPC or HTTP; a context manager that closes its connection."""

    def __init__(self, url: str, protocol: Protocol = "grpc") -> None:
        self.url = url
        self.protocol = protocol
        self._client: Any
        if protocol == "grpc":
            self._client, self._limit = triton_grpc.InferenceServerClient(url), {"client_timeout": _LOAD_SECONDS}
        else:
            self._client, self._limit = triton_http.InferenceServerClient(url, network_timeout=_LOAD_SECONDS), {}

    def has(self, model: str, version: int | None = None) -> bool:
        """Whether a model, or that version of it, is loaded.

        Raises:
            RepositoryError: if the server cannot be reached.
        """
        try:
            return bool(self._client.is_model_ready(model, "" if version is None else str(version), **self._limit))
        except (InferenceServerException, OSError) as error:
            raise RepositoryError(
                f"{self.url} does not answer by {self.protocol} ({error}); check --url and --protocol"
            ) from error

    def pinned(self, ensemble: str) -> int | None:
        """The version that a loaded ensemble answers with; None where it is not loaded.

        Raises:
            RepositoryError: if the server cannot be reached, or its steps pin different versions.
        """
        if not self.has(ensemble):
            return None
        try:
            if self.protocol == "grpc":
                config = self._client.get_model_config(ensemble, as_json=True, **self._limit)["config"]
            else:
                config = self._client.get_model_config(ensemble)
            versions = {int(step["model_version"]) for step in config["ensemble_scheduling"]["step"]}
        except (InferenceServerException, OSError, KeyError) as error:
            raise RepositoryError(f"{self.url} does not say what {ensemble!r} pins: {error}") from error
        if len(versions) != 1:
            raise RepositoryError(f"{self.url} serves {ensemble!r} with steps of different versions: {versions}")
        return versions.pop()

    def load(self, model: str) -> None:
        """Have a model's files read and loaded; requests under way finish on what was loaded before.

        Raises:
            LoadError: in the server's words.
        """
        try:
            self._client.load_model(model, **self._limit)
        except (InferenceServerException, OSError) as error:
            raise LoadError(
                f"{self.url} did not load {model!r}: {error}; it must run on this repository with "
                "--model-control-mode=explicit"
            ) from error

    def unload(self, model: str) -> None:
        """Have a model unloaded; the steps of an ensemble stay.

        Raises:
            LoadError: in the server's words.
        """
        try:
            self._client.unload_model(model, **self._limit)
        except (InferenceServerException, OSError) as error:
            raise LoadError(f"{self.url} did not unload {model!r}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
