"""Versions in the model repository: written beside it and moved in whole; pinned by the ensembles' files.

A version `n` is three folders of the same number (tokenizer step, TorchScript, ONNX), each immutable. Which one answers
is said by the ensembles' `config.pbtxt` alone, and that is written last, by rename: whatever is interrupted before
leaves the old version pinned and whole. The files are the truth; a running server is told to load them afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from export.errors import RepositoryError
from export.manifest import MANIFEST, PARITY, kind_of, read_manifest, served_budgets, write_manifest
from export.outputs import Kind
from export.repository import (
    CHALLENGER_OF,
    Names,
    Pins,
    challenger_file,
    ensemble_files,
    level_of,
    read_config,
    replace_text,
    step_files,
)
from train.checkpoint import sha256_of


@dataclass(frozen=True)
class Version:
    """One exported version, as `list` shows it."""

    number: int
    pinned: bool
    previous: bool  # what `rollback` returns to
    faults: tuple[str, ...]  # what is missing or altered; empty for a version that can be served
    created: str | None
    labels: tuple[str, ...]
    kind: str | None  # of `export.outputs`

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def files_of(names: Names) -> dict[str, tuple[str, ...]]:
    """The files of a version beside its manifest, by model."""
    return {
        names.tokenizer: ("model.py", "tokenizer.json"),
        names.torchscript_classifier: ("model.pt",),
        names.classifier: ("model.onnx", PARITY),
    }


def level_of_others(repository: Path, names: Names) -> str | None:
    """The optimisation level at which other versions of the name were compared, or None where there are none.

    A configuration is the model's, not a version's: another level would change the answers of all.

    Raises:
        RepositoryError: if the configuration cannot be read, or has no level that an export chooses.
    """
    path = repository / names.classifier / "config.pbtxt"
    if not numbers(repository, names) or not path.exists():
        return None
    try:
        return level_of(read_config(path))
    except text_format.ParseError as error:
        raise RepositoryError(f"{path} is not a configuration: {error}") from error


def read_pins(repository: Path, names: Names) -> Pins | None:
    """What the main ensemble pins, or None where there is no such ensemble; this is the version that answers.

    Raises:
        RepositoryError: if its configuration cannot be read.
    """
    return _pins_of(repository, names.ensemble)


def stray_pins(repository: Path, names: Names) -> dict[str, int]:
    """Ensembles that pin another version than the main one, and which: a switch was killed between the two files.

    Harmless to answers, since each ensemble is whole in itself; the next `add`, `promote` or `rollback` writes both.
    """
    main = read_pins(repository, names)
    pins = {ensemble: _pins_of(repository, ensemble) for ensemble in names.ensembles}
    return {ensemble: own.version for ensemble, own in pins.items() if own and main and own.version != main.version}


def challengers(repository: Path, names: Names) -> dict[str, int]:
    """Challenger ensembles that lie in the repository, and the version that each pins.

    Raises:
        RepositoryError: if a model of such a name is none.
    """
    found = {}
    for challenger in map(names.challenger, names.ensembles):
        pins = _pins_of(repository, challenger)
        if pins is None:
            continue
        if CHALLENGER_OF not in read_config(repository / challenger / "config.pbtxt").parameters:
            raise RepositoryError(
                f"{repository / challenger} is a model of its own and no challenger: serve it under another name, "
                f"since versions of {names.ensemble!r} are compared under this one"
            )
        found[challenger] = pins.version
    return found


def write_challenger(repository: Path, names: Names, ensemble: str, number: int) -> str:
    """Put an ensemble beside `ensemble` that answers with another version; returns its name."""
    challenger = names.challenger(ensemble)
    with _locked(repository):
        manifest = read_manifest(repository / names.classifier / str(number))
        (repository / challenger / "1").mkdir(parents=True, exist_ok=True)
        text = challenger_file(names, ensemble, manifest["labels"], number, kind_of(manifest))
        replace_text(repository / challenger / "config.pbtxt", text)
    return challenger


def remove_challengers(repository: Path, names: Names) -> list[str]:
    """Remove the challenger ensembles, also those that a killed promotion left; returns their names."""
    for challenger in map(names.challenger, names.ensembles):
        folder = repository / challenger
        if folder.is_dir() and not (folder / "config.pbtxt").exists():  # killed before its configuration was written
            shutil.rmtree(folder)
    found = challengers(repository, names)
    for challenger in found:
        shutil.rmtree(repository / challenger)
    return list(found)


@contextlib.contextmanager
def switching(repository: Path, names: Names) -> Iterator[None]:
    """Hold the right to switch the versions of one name.

    Raises:
        RepositoryError: if there is no such name, or another process is switching it.
    """
    folder = repository / names.ensemble
    if read_pins(repository, names) is None:
        raise RepositoryError(f"{repository} holds no version of {names.ensemble!r}; `python -m export add` makes one")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(_locked(folder, wait=False))
        except BlockingIOError as error:
            raise RepositoryError(
                f"another promotion or rollback of {names.ensemble!r} is under way; wait for its end"
            ) from error
        yield


def _pins_of(repository: Path, ensemble: str) -> Pins | None:
    path = repository / ensemble / "config.pbtxt"
    if not path.exists():
        return None
    try:
        config = read_config(path)
        version = config.ensemble_scheduling.step[0].model_version
        previous = config.parameters["previous_version"].string_value if "previous_version" in config.parameters else ""
        return Pins(int(version), int(previous) if previous else None)
    except (OSError, text_format.ParseError, IndexError, ValueError) as error:
        raise RepositoryError(f"{path} is not the configuration of an ensemble that we wrote: {error}") from error


def numbers(repository: Path, names: Names) -> list[int]:
    """Numbers of which any model of this name has a folder."""
    return sorted(
        {
            int(folder.name)
            for model in names.versioned
            if (repository / model).is_dir()
            for folder in (repository / model).iterdir()
            if folder.is_dir() and folder.name.isdecimal()
        }
    )


def faults_of(repository: Path, names: Names, number: int) -> list[str]:
    """What keeps a version from being served: missing folders and files, differing manifests, altered files."""
    folders = {model: repository / model / str(number) for model in names.versioned}
    missing = [
        f"{model}/{number}/{MANIFEST} is missing" for model, f in folders.items() if not (f / MANIFEST).is_file()
    ]
    if missing:
        return missing
    contents = {model: (folder / MANIFEST).read_bytes() for model, folder in folders.items()}
    if len(set(contents.values())) > 1:
        return [f"the manifests of version {number} differ between its folders"]
    recorded = read_manifest(folders[names.classifier])["files"]
    faults = []
    for model, files in files_of(names).items():
        for file in files:
            path = folders[model] / file
            if not path.is_file():
                faults.append(f"{model}/{number}/{file} is missing")
            elif sha256_of(path) != recorded.get(file):
                faults.append(f"{model}/{number}/{file} is not the file of the manifest")
    return faults


def list_versions(repository: Path, names: Names) -> list[Version]:
    """Every version of a name, ascending, with what is wrong with it."""
    pins = read_pins(repository, names)
    found = []
    for number in numbers(repository, names):
        faults = tuple(faults_of(repository, names, number))
        manifest = {} if faults else read_manifest(repository / names.classifier / str(number))
        found.append(
            Version(
                number=number,
                pinned=pins is not None and pins.version == number,
                previous=pins is not None and pins.previous == number,
                faults=faults,
                created=manifest.get("created"),
                labels=tuple(manifest.get("labels", ())),
                kind=kind_of(manifest).name if manifest else None,
            )
        )
    return found


def pinned_manifest(repository: Path, names: Names) -> dict[str, Any] | None:
    """The manifest of the version that is pinned, or None where nothing is exported."""
    pins = read_pins(repository, names)
    if pins is None or pins.version not in numbers(repository, names):
        return None
    return read_manifest(repository / names.classifier / str(pins.version))


def require_same_answers(
    repository: Path, names: Names, labels: tuple[str, ...], kind: Kind, *, answering: int | None = None
) -> None:
    """Refuse other classes or outputs under a name that clients already know.

    Args:
        answering: the version that they know, where it is not the pinned one.

    Raises:
        RepositoryError: naming both.
    """
    if answering is None:
        manifest = pinned_manifest(repository, names)
    else:
        manifest = read_manifest(repository / names.classifier / str(answering))
    if manifest is not None and tuple(manifest["labels"]) != labels:
        raise RepositoryError(
            f"{names.ensemble!r} answers with the labels {', '.join(manifest['labels'])} and this checkpoint has "
            f"{', '.join(labels)}; its callers would not know them: choose another --name"
        )
    if manifest is not None and kind_of(manifest).name == kind.name and kind_of(manifest) != kind:
        # One configuration serves all versions of a name, and a graph that lacks one of its outputs would not load.
        missing = sorted({o.name for o in kind.outputs} ^ {o.name for o in kind_of(manifest).outputs})
        raise RepositoryError(
            f"{names.ensemble!r} and this version differ in the outputs {', '.join(missing)}, since an older release "
            "exported one of them: choose another --name or --repository"
        )
    if manifest is not None and kind_of(manifest) != kind:
        raise RepositoryError(
            f"{names.ensemble!r} is a {kind_of(manifest).name} classifier and this checkpoint a {kind.name} one, with "
            "other outputs; its callers would miss them: choose another --name"
        )


@contextlib.contextmanager
def staging_folder(repository: Path) -> Iterator[Path]:
    """A folder beside the repository, on the same file system, so that moving in is a rename; removed at the end.

    What writers that were killed left behind is removed as well: a living one holds a lock on its folder.
    """
    repository.mkdir(parents=True, exist_ok=True)
    sweep_staging(repository)
    parent, prefix = _staging_place(repository)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    staging.chmod(0o755)  # mkdtemp's 0700 would travel with what is moved
    try:
        with _locked(staging):
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sweep_staging(repository: Path) -> None:
    """Remove what writers that were killed left beside the repository."""
    parent, prefix = _staging_place(repository)
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(left, wait=False):
            shutil.rmtree(left)


def _staging_place(repository: Path) -> tuple[Path, str]:
    """The folder that holds staging folders, and how their names begin."""
    parent = repository.resolve().parent
    if parent.stat().st_dev != repository.stat().st_dev or not os.access(parent, os.W_OK):
        parent = repository.resolve()  # a mounted repository; Triton loads by name and does not look at this folder
    return parent, f".{repository.resolve().name}-staging-"


def install(repository: Path, names: Names, staged: Path, staged_number: int, manifest: dict[str, Any]) -> int:
    """Move a staged version in and pin it; returns its number.

    Args:
        staged: a folder laid out as the repository, holding `staged_number` of every versioned model.
        manifest: complete but for its version and the hashes of its files.

    Raises:
        RepositoryError: if the labels, or the level of optimisation, differ from those that are there.
    """
    labels, kind, level = tuple(manifest["labels"]), kind_of(manifest), manifest.get("graph_level", "all")
    with _locked(repository):
        require_same_answers(repository, names, labels, kind)
        others = level_of_others(repository, names)
        if others not in (None, level):
            raise RepositoryError(
                f"this version was compared at ONNX Runtime's level {level!r} and those of {names.ensemble!r} in "
                f"{repository} run at {others!r}, which one configuration sets for all: choose another --name, or a "
                "repository without them"
            )
        with contextlib.suppress(RepositoryError), switching(repository, names):  # else a promotion that lives
            remove_challengers(repository, names)
        exported = numbers(repository, names)
        number = max(exported, default=0) + 1
        seal(names, staged, staged_number, {**manifest, "version": number})
        for relative, text in step_files(names, len(labels), kind, level).items():
            if not _fits(repository / relative, text):
                replace_text(repository / relative, text)
        for model in names.versioned:
            (staged / model / str(staged_number)).rename(repository / model / str(number))
            _flush(repository / model)
        pins = read_pins(repository, names)
        previous = pins.version if pins is not None and pins.version in exported else None
        _write_pins(repository, names, manifest, Pins(number, previous))
    return number


def seal(names: Names, folder: Path, number: int, manifest: dict[str, Any]) -> None:
    """Write the manifest with the hashes of its files into each folder of a version, and flush all to disk."""
    files = {
        file: sha256_of(folder / model / str(number) / file) for model, own in files_of(names).items() for file in own
    }
    for model in names.versioned:
        version = folder / model / str(number)
        shutil.rmtree(version / "__pycache__", ignore_errors=True)  # of the live gate's Python backend
        write_manifest(version / MANIFEST, {**manifest, "files": files})
        for path in version.iterdir():
            _flush(path)
        _flush(version)


def require_whole(repository: Path, names: Names, number: int) -> dict[str, Any]:
    """The manifest of a version of which every file is there and is the manifest's.

    Raises:
        RepositoryError: if there is no such version, or it is not whole.
    """
    there = numbers(repository, names)
    if not there:
        raise RepositoryError(f"{repository} holds no version of {names.ensemble!r}; `python -m export add` makes one")
    if number not in there:
        raise RepositoryError(f"{names.ensemble!r} has no version {number}; it has {', '.join(map(str, there))}")
    faults = faults_of(repository, names, number)
    if faults:
        raise RepositoryError(f"version {number} cannot be served: {'; '.join(faults)}; export it again")
    return read_manifest(repository / names.classifier / str(number))


def pin(repository: Path, names: Names, number: int, *, answering: int | None = None) -> Pins:
    """Pin a version that is whole; returns the pins that were there before.

    Args:
        answering: the version that a server answers with until now, where that is another than the pinned one:
            `add` pins on disk, and a running server follows with `promote`.

    Raises:
        RepositoryError: if there is no such version, or it is not whole.
    """
    with _locked(repository):
        before = read_pins(repository, names)
        manifest = require_whole(repository, names, number)
        if before is None:
            raise RepositoryError(f"{repository} holds no ensemble {names.ensemble!r}; `python -m export add` makes it")
        until_now = before.version if answering is None else answering
        _write_pins(repository, names, manifest, Pins(number, before.previous if number == until_now else until_now))
    return before


def restore(repository: Path, names: Names, pins: Pins) -> None:
    """Write pins back as they were, after a server refused the new ones."""
    with _locked(repository):
        manifest = read_manifest(repository / names.classifier / str(pins.version))
        _write_pins(repository, names, manifest, pins)


def remove(repository: Path, names: Names, number: int) -> None:
    """Remove a version that is not pinned, whole or not.

    Raises:
        RepositoryError: if there is no such version, or it is the one that answers.
    """
    with _locked(repository), staging_folder(repository) as waste:
        if number not in numbers(repository, names):
            there = ", ".join(map(str, numbers(repository, names))) or "none"
            raise RepositoryError(f"{names.ensemble!r} has no version {number}; it has {there}")
        pins = read_pins(repository, names)
        if pins is not None and pins.version == number:
            raise RepositoryError(
                f"version {number} of {names.ensemble!r} is the one that answers: promote another first"
            )
        for ensemble, pinned in {**challengers(repository, names), **stray_pins(repository, names)}.items():
            if pinned == number:
                raise RepositoryError(
                    f"version {number} is pinned by {ensemble!r}: a promotion is under way, or was interrupted; then "
                    f"`python -m export promote {names.ensemble} {pins.version if pins else number}` cleans up after it"
                )
        for model in reversed(names.versioned):
            folder = repository / model / str(number)
            if folder.exists():
                folder.rename(waste / f"{model}-{number}")
        if pins is not None and pins.previous == number:
            manifest = pinned_manifest(repository, names)
            if manifest is not None:
                _write_pins(repository, names, manifest, Pins(pins.version))


def _write_pins(repository: Path, names: Names, manifest: dict[str, Any], pins: Pins) -> None:
    for ensemble in names.ensembles:
        (repository / ensemble / "1").mkdir(parents=True, exist_ok=True)  # Triton wants a version folder here too
    files = ensemble_files(
        names,
        manifest["labels"],
        pins,
        kind_of(manifest),
        budgets=served_budgets(manifest, torchscript=False),
        torchscript_budgets=served_budgets(manifest, torchscript=True),
    )
    for relative, text in files.items():
        replace_text(repository / relative, text)


def _fits(path: Path, text: str) -> bool:
    """Whether a configuration has the tensors and the level that are wanted; then an operator's numbers in it stay."""
    try:
        there = read_config(path)
    except (OSError, text_format.ParseError):
        return False
    wanted = text_format.Parse(text, type(there)())
    same_level = there.optimization.graph.level == wanted.optimization.graph.level
    return (
        same_level
        and all(
            list(getattr(there, field)) == list(getattr(wanted, field)) for field in ("input", "output", "batch_input")
        )
        and (there.backend, there.name) == (wanted.backend, wanted.name)
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a folder; it ends with the process, however that ends.

    Raises:
        BlockingIOError: if another process holds it and `wait` is False.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
