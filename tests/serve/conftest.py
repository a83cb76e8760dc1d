"""Fixtures of the serving tests: a cache of their own, and one running server that only reading tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_repository import JOINING_DELAY_MICROSECONDS, add_torchscript, write_repository

import serve


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the tests' servers apart from those of the person who runs them."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BET_CACHE", str(folder))
        yield folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A repository that a test may change."""
    return write_repository(tmp_path / "repository")


@pytest.fixture(scope="session")
def joining(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serve.Server]:
    """A server over both classifiers, whose batcher waits long enough to join what a test sends at once."""
    repository = write_repository(tmp_path_factory.mktemp("joining"), delay=JOINING_DELAY_MICROSECONDS)
    add_torchscript(repository, delay=JOINING_DELAY_MICROSECONDS)
    with serve.start(repository) as server:
        yield server
