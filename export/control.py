"""Switching the version that answers: pins on disk, and a running server told of them.

DESIGN's order: the new version's steps are loaded beside the old ones first, then the pins are written, then the
ensembles are loaded, which takes a millisecond; old requests finish on the old version. Versions given in the load call
itself would be lost with the next load, so the files on disk decide.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http
from tritonclient.utils import InferenceServerException

from export import versions
from export.errors import RepositoryError
from export.repository import Names, Pins
from export.served import Protocol

_LOAD_SECONDS = 120.0


def promote(repository: Path, names: Names, number: int, url: str | None = None, protocol: Protocol = "grpc") -> Pins:
    """Make a version the one that answers; returns the pins before.

    Args:
        url: host:port of a running server that is to load it; None changes the files only.

    Raises:
        RepositoryError: if the version cannot be served, or the server refuses it; the pins are then as before.
    """
    if url is None:
        return versions.pin(repository, names, number)
    with _connect(url, protocol) as server:
        ensembles = [name for name in names.ensembles if name == names.ensemble or _is_loaded(server, name)]
        classifiers = {names.ensemble: names.classifier, names.torchscript_ensemble: names.torchscript_classifier}
        steps = [names.tokenizer, *(classifiers[name] for name in ensembles)]
        _require_whole(repository, names, number)
        for model in steps:
            _load(server, model, url)
        before = versions.pin(repository, names, number)
        try:
            for model in ensembles:
                _load(server, model, url)
        except RepositoryError:
            versions.restore(repository, names, before)
            for model in ensembles:
                _load(server, model, url)
            raise
    return before


def rollback(repository: Path, names: Names, url: str | None = None, protocol: Protocol = "grpc") -> tuple[int, Pins]:
    """Make the version before the last `add` or `promote` answer again; returns its number, and the pins before.

    Raises:
        RepositoryError: if there is none, or it cannot be served.
    """
    pins = versions.read_pins(repository, names)
    if pins is None or pins.previous is None:
        raise RepositoryError(
            f"{names.ensemble!r} has no version to go back to; `python -m export list {names.ensemble}` shows which"
        )
    return pins.previous, promote(repository, names, pins.previous, url, protocol)


def _require_whole(repository: Path, names: Names, number: int) -> None:
    # Before the server reads it: a file that is not the manifest's must not even be loaded.
    if number in versions.numbers(repository, names):
        faults = versions.faults_of(repository, names, number)
        if faults:
            raise RepositoryError(f"version {number} cannot be served: {'; '.join(faults)}; export it again")
    else:
        there = ", ".join(map(str, versions.numbers(repository, names))) or "none"
        raise RepositoryError(f"{names.ensemble!r} has no version {number}; it has {there}")


def _connect(url: str, protocol: Protocol) -> Any:
    if protocol == "grpc":
        return triton_grpc.InferenceServerClient(url)
    return triton_http.InferenceServerClient(url, network_timeout=_LOAD_SECONDS)


def _is_loaded(server: Any, model: str) -> bool:
    try:
        return bool(server.is_model_ready(model))
    except (InferenceServerException, OSError) as error:
        raise RepositoryError(f"the server does not answer ({error}); check --url and --protocol") from error


def _load(server: Any, model: str, url: str) -> None:
    try:
        server.load_model(model)
    except (InferenceServerException, OSError) as error:
        raise RepositoryError(
            f"{url} did not load {model!r}: {error}; it must run on this repository with --model-control-mode=explicit"
        ) from error
