"""The exported version that an ensemble serves, as one folder that a peer can load: graph, tokenizer and manifest."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.errors import ServerError, UsageError
from serve import ServeError
from serve.repository import read_repository

_FILES = ("model.onnx", "tokenizer.json", "manifest.json")


@contextlib.contextmanager
def exported_folder(repository: Path, model: str) -> Iterator[Path]:
    """A temporary folder of links to the files of the version that the ensemble `model` pins.

    Raises:
        UsageError: if that version has no ONNX graph or no tokenizer.
        ServerError: if there is no such ensemble or version.
    """
    try:
        content = read_repository(repository)
        content.servable([model])
    except ServeError as error:
        raise ServerError(str(error)) from error
    versions = []
    for step in content.models[model].steps:
        taken = content.models[step.model]
        versions.append(taken.folder / str(step.version if step.version > 0 else taken.versions[-1]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in _FILES:
            found = [version / file for version in versions if (version / file).is_file()]
            if not found:
                raise UsageError(
                    f"no step of {model!r} in {repository} has a {file}; compare an ensemble that `python -m export "
                    "add` wrote and that serves an ONNX graph"
                )
            (folder / file).symlink_to(found[0].resolve())
        yield folder
