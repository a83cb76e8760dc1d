"""MLflow as the registry of versions: pushed from the machine that exported, pulled bit for bit on another.

A version becomes a model version of the registered model of its name (mlflow.org, "ML Model Registry"): its files are
artefacts of one run, laid out as in the repository, the gate's figures are metrics, hashes and origin are tags. The
alias `challenger` names what was pushed last, `champion` what answers. Nothing is wrapped into an MLflow model: what is
served is the very files that the gate has seen, and their hashes go along in the manifest.

MLflow is an extra, and slow to import: only the functions that talk to a registry need it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import versions
from export.errors import RegistryError, RepositoryError
from export.manifest import MANIFEST, PARITY, read_manifest
from export.repository import Names
from train.checkpoint import sha256_of

CHAMPION, CHALLENGER = "champion", "challenger"
_FOLDER = "version"  # of the run's artefacts
_NUMBER = 1  # within it, as in a staging folder; each repository gives its own
_EXTRA = "pip install -e '.[registry]'"


@dataclass(frozen=True)
class Pushed:
    """A model version of the registry; `new` is False where the same files were there already."""

    version: str
    new: bool


@dataclass(frozen=True)
class Pulled:
    """A version of the registry in a repository; `new` is False where the same files were there already."""

    number: int
    version: str
    new: bool


def push(repository: Path, names: Names, number: int | None, uri: str) -> Pushed:
    """Register a version with its files, figures and origin, and make it the challenger.

    The same files are registered once, whichever machine pushes them under whichever number.

    Args:
        number: None takes the version that is pinned.
        uri: of an MLflow server (`http://host:5000`) or a database (`sqlite:///registry.db`).

    Raises:
        RepositoryError: if there is no such version, or it is not whole.
        RegistryError: if the registry cannot be used.
    """
    manifest = _whole_manifest(repository, names, number)
    number = manifest["version"]
    with _registry(uri) as client:
        known = _find(client, names, manifest)
        if known is None:
            if not _models(client, names):
                client.create_registered_model(names.ensemble)
            run = client.create_run(_experiment(client, names, uri), run_name=f"{names.ensemble} {number}").info.run_id
            try:
                for model, files in versions.files_of(names).items():
                    for file in (*files, MANIFEST):
                        path = repository / model / str(number) / file
                        client.log_artifact(run, str(path), f"{_FOLDER}/{model}/{_NUMBER}")
                parity = json.loads((repository / names.classifier / str(number) / PARITY).read_text(encoding="utf-8"))
                client.log_batch(run, metrics=_metrics(manifest, parity))
            except BaseException:
                client.set_terminated(run, "FAILED")
                raise
            client.set_terminated(run)
            # Last: what was interrupted before is a run that nothing refers to.
            tags = _tags(manifest, sha256_of(repository / names.classifier / str(number) / MANIFEST))
            made = client.create_model_version(names.ensemble, f"runs:/{run}/{_FOLDER}", run_id=run, tags=tags)
            known = str(made.version)
            new = True
        else:
            new = False
        if _aliases(client, names).get(CHAMPION) != known:
            client.set_registered_model_alias(names.ensemble, CHALLENGER, known)
    return Pushed(known, new)


def pull(repository: Path, names: Names, uri: str, *, version: str | None = None, alias: str = CHAMPION) -> Pulled:
    """Install a version of the registry as `export add` installs one of its own: moved in whole, then pinned.

    Its number is the repository's next one; its files are the registry's, bit for bit, and its manifest says from which
    version they are. Files that the repository has already are pinned, not installed twice.

    Args:
        version: of the registry; None takes the one that `alias` names.

    Raises:
        RegistryError: if it is not there, was not pushed by `push`, or a file is not the one that was pushed.
        RepositoryError: if the repository answers with other labels under this name.
    """
    with _registry(uri, writing=False) as client, versions.staging_folder(repository) as staging:
        found = _chosen(client, names, version, alias)
        download, staged = staging / "download", staging / "staged"
        download.mkdir()
        client.download_artifacts(found.run_id, _FOLDER, str(download))
        for model, files in versions.files_of(names).items():
            folder = staged / model / str(_NUMBER)
            folder.mkdir(parents=True)
            for file in (*files, MANIFEST):  # what else lies there is not the version's
                with contextlib.suppress(FileNotFoundError):  # named below
                    (download / _FOLDER / model / str(_NUMBER) / file).rename(folder / file)
        faults = versions.faults_of(staged, names, _NUMBER)
        manifest_file = staged / names.classifier / str(_NUMBER) / MANIFEST
        if not faults and sha256_of(manifest_file) != found.tags["manifest_sha256"]:
            faults = [f"{MANIFEST} is not the one that was pushed"]
        if faults:
            raise RegistryError(
                f"version {found.version} of {names.ensemble!r} in the registry is not what was pushed: "
                f"{'; '.join(faults)}; nothing was installed: pull another version, or push it again"
            )
        manifest = read_manifest(manifest_file.parent)
        origin = {"version": str(found.version), "manifest_sha256": found.tags["manifest_sha256"]}
        for there in versions.list_versions(repository, names):
            folder = repository / names.classifier / str(there.number)
            if not there.faults and _identity(read_manifest(folder)) == _identity(manifest):
                versions.pin(repository, names, there.number)
                return Pulled(there.number, str(found.version), new=False)
        number = versions.install(repository, names, staged, _NUMBER, {**manifest, "registry": origin})
    return Pulled(number, str(found.version), new=True)


def registered_version(repository: Path, names: Names, number: int, uri: str) -> str:
    """The registry's version that has the files of a version of the repository.

    Raises:
        RepositoryError: if there is no such version, or it is not whole.
        RegistryError: if the registry cannot be used, or does not have it.
    """
    manifest = _whole_manifest(repository, names, number)
    with _registry(uri, writing=False) as client:
        found = _find(client, names, manifest)
    if found is None:
        raise RegistryError(
            f"version {number} of {names.ensemble!r} is not in the registry: "
            f"`python -m export push {names.ensemble} {number} --registry …` registers it"
        )
    return found


def set_champion(names: Names, version: str, uri: str) -> None:
    """Let the alias `champion` name a version of the registry; it is no challenger any more.

    Raises:
        RegistryError: if the registry cannot be used.
    """
    with _registry(uri, writing=False) as client:
        client.set_registered_model_alias(names.ensemble, CHAMPION, version)
        if _aliases(client, names).get(CHALLENGER) == version:
            client.delete_registered_model_alias(names.ensemble, CHALLENGER)


def _whole_manifest(repository: Path, names: Names, number: int | None) -> dict[str, Any]:
    if number is None:
        pins = versions.read_pins(repository, names)
        number = None if pins is None else pins.version
    if number not in (there := versions.numbers(repository, names)):
        wanted = "version that answers" if number is None else f"version {number}"
        raise RepositoryError(
            f"{names.ensemble!r} has no {wanted} in {repository}; it has {', '.join(map(str, there)) or 'none'}"
        )
    if faults := versions.faults_of(repository, names, number):
        raise RepositoryError(f"version {number} is not whole: {'; '.join(faults)}; export it again")
    return {**read_manifest(repository / names.classifier / str(number)), "version": number}


def _identity(manifest: dict[str, Any]) -> str:
    """A hash of the files' hashes: the same wherever the version is, whatever number it has there."""
    return hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest()


def _tags(manifest: dict[str, Any], manifest_sha256: str) -> dict[str, str]:
    return {
        "files_sha256": _identity(manifest),
        "manifest_sha256": manifest_sha256,
        "checkpoint_sha256": str(manifest["checkpoint"].get("sha256")),
        "git_commit": str(manifest.get("git_commit")),
        "kind": str(manifest["kind"]),
        "labels": json.dumps(manifest["labels"], ensure_ascii=False),
        "created": str(manifest["created"]),
    }


def _metrics(manifest: dict[str, Any], parity: dict[str, Any]) -> list[Any]:
    """The training's figures and the gate's, as far as they are finite numbers."""
    from mlflow.entities import Metric  # noqa: PLC0415  # see the top

    figures = {**manifest.get("metrics", {}), **{check["name"]: check["value"] for check in parity["checks"]}}
    now = int(time.time() * 1000)
    return [
        Metric(name, float(value), now, 0)
        for name, value in figures.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def _chosen(client: Any, names: Names, version: str | None, alias: str) -> Any:
    if not _models(client, names):
        raise RegistryError(f"the registry has no model {names.ensemble!r}; `python -m export push` registers one")
    if version is None:
        aliases = _aliases(client, names)
        if alias not in aliases:
            there = ", ".join(f"{name} (version {number})" for name, number in sorted(aliases.items())) or "none"
            raise RegistryError(
                f"{names.ensemble!r} has no alias {alias!r} in the registry; it has {there}: give another --alias, or "
                "--version"
            )
        version = aliases[alias]
    found = {str(each.version): each for each in client.search_model_versions(f"name='{names.ensemble}'")}
    if version not in found:
        there = ", ".join(sorted(found, key=int)) or "none"
        raise RegistryError(f"{names.ensemble!r} has no version {version} in the registry; it has {there}")
    if "manifest_sha256" not in found[version].tags or not found[version].run_id:
        raise RegistryError(
            f"version {version} of {names.ensemble!r} was not registered by `python -m export push`, so nothing says "
            "which files it must have; choose another"
        )
    return found[version]


def _find(client: Any, names: Names, manifest: dict[str, Any]) -> str | None:
    same = [
        int(version.version)
        for version in client.search_model_versions(f"name='{names.ensemble}'")
        if version.tags.get("files_sha256") == _identity(manifest)
    ]
    return str(max(same)) if same else None


def _models(client: Any, names: Names) -> list[Any]:
    return list(client.search_registered_models(f"name='{names.ensemble}'"))


def _aliases(client: Any, names: Names) -> dict[str, str]:
    return {alias: str(number) for alias, number in client.get_registered_model(names.ensemble).aliases.items()}


def _experiment(client: Any, names: Names, uri: str) -> str:
    experiment = client.get_experiment_by_name(names.ensemble)
    if experiment is not None:
        return str(experiment.experiment_id)
    # Of a database without a server MLflow would put artefacts below whatever the working directory is.
    database = _sqlite_file(uri)
    location = None if database is None else (database.parent / f"{database.stem}-artifacts").as_uri()
    return str(client.create_experiment(names.ensemble, artifact_location=location))


def _sqlite_file(uri: str) -> Path | None:
    path = uri.removeprefix("sqlite:///")
    return Path(path).absolute() if path != uri else None


@contextlib.contextmanager
def _registry(uri: str, *, writing: bool = True) -> Iterator[Any]:
    """A client of the registry; whatever it raises becomes one sentence.

    Raises:
        RegistryError: see above.
    """
    shown = _without_password(uri)
    database = _sqlite_file(uri)
    if database is not None and not (database.parent if writing else database).exists():
        what = f"{database.parent} is no folder" if writing else f"there is no file {database}"
        raise RegistryError(f"the registry {shown} cannot be opened: {what}; check --registry")
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its own 7 take four minutes to say that nobody listens
    }.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient  # noqa: PLC0415  # see the top
        from mlflow.exceptions import MlflowException  # noqa: PLC0415
        from requests import RequestException  # noqa: PLC0415
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415
    except ImportError as error:
        raise RegistryError(
            f"a registry needs the extra `registry`, which is not installed ({error}): {_EXTRA}"
        ) from error
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each retry
    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        said = _without_password(reason[0])
        raise RegistryError(f"the registry {shown} cannot be used: {said}; check --registry") from error


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)
