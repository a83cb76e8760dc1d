"""What cannot work is said before anything starts, with the value and the remedy."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_repository import CLASSIFIER, ENSEMBLE, write_model

import serve
from serve import cache, embedded
from serve.plan import Plan, Ports
from serve.ports import owner
from serve.repository import read_repository


def plan(repository: Path, **options: object) -> Plan:
    content = read_repository(repository)
    values = {"models": content.servable(), "device": "cpu", "host": "127.0.0.1", "ports": Ports(1, 2, 3)} | options
    return Plan("token", content, **values)  # type: ignore[arg-type]


def test_a_folder_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(serve.RepositoryError, match="not a folder"):
        serve.start(tmp_path / "nothing")
    with pytest.raises(serve.RepositoryError, match=r"holds no model.*export add"):
        serve.start(tmp_path)
    write_model(tmp_path, "broken", "name: unquoted {", {})
    with pytest.raises(serve.RepositoryError, match=r"broken/config.pbtxt is not a model configuration"):
        serve.start(tmp_path)


def test_a_repository_without_an_exported_version_says_how_to_export_one(tiny: Path) -> None:
    for step in ("tiny_words", "tiny_classifier"):
        shutil.rmtree(tiny / step / "1")
    with pytest.raises(serve.RepositoryError, match=r"no ensemble with an exported version.*export add"):
        serve.start(tiny)


def test_an_ensemble_that_was_never_exported_does_not_hinder_the_others(tiny: Path) -> None:
    write_model(
        tiny, "later", ENSEMBLE.format(name="later", classifier="later_classifier").replace("tiny_words", "w"), {}
    )
    write_model(tiny, "w", 'name: "w" backend: "python"', {})
    (tiny / "w" / "1").rmdir()
    assert read_repository(tiny).servable() == ("tiny",)


def test_a_pinned_version_that_is_missing_is_named(tiny: Path) -> None:
    (tiny / "tiny_classifier" / "1").rename(tiny / "tiny_classifier" / "2")
    with pytest.raises(serve.RepositoryError, match=r"needs version 1 of 'tiny_classifier'.* has 2"):
        serve.start(tiny)


def test_an_unknown_model_is_refused_with_the_known_ones(tiny: Path) -> None:
    with pytest.raises(
        serve.RepositoryError, match=r"model huge is not in .* it holds tiny, tiny_classifier, tiny_words"
    ):
        serve.start(tiny, models=["huge"])


def test_a_manifest_that_cannot_be_read_is_named(tiny: Path) -> None:
    manifest = tiny / "tiny_classifier" / "1" / "manifest.json"
    manifest.write_text('{"probe": {"text": "a"}}', encoding="utf-8")
    with pytest.raises(serve.RepositoryError, match=r"manifest.json has no readable probe .*label"):
        read_repository(tiny).probe("tiny")


def test_the_gpu_configuration_is_read_where_a_model_has_one(tiny: Path) -> None:
    folder = tiny / "tiny_words" / "configs"
    folder.mkdir()
    text = (tiny / "tiny_words" / "config.pbtxt").read_text(encoding="utf-8")
    (folder / "gpu.pbtxt").write_text(text.replace("count: 1", "count: 4"), encoding="utf-8")
    assert read_repository(tiny, "cpu").models["tiny_words"].instances == 1
    assert read_repository(tiny, "gpu").models["tiny_words"].instances == 4


def test_a_backend_without_a_stand_in_is_refused_by_name(tiny: Path) -> None:
    config = CLASSIFIER.format(name="tiny_classifier", backend="tensorrt", reshape="", delay=0)
    (tiny / "tiny_classifier" / "config.pbtxt").write_text(config, encoding="utf-8")
    with pytest.raises(serve.RepositoryError, match=r"needs the backend 'tensorrt'.*--engine container"):
        serve.start(tiny)


def test_a_missing_package_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(embedded.STAND_IN_PACKAGES, "onnxruntime", "onnxruntime_not_installed")
    with pytest.raises(serve.EngineError, match="pip install onnxruntime_not_installed"):
        serve.start(tiny)


def test_a_missing_wheel_and_an_unsuitable_python_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "WHEEL", "nvidia-pytriton-not-installed")
        with pytest.raises(serve.EngineError, match=r"not installed in .*pip install"):
            embedded.find_wheel()
    monkeypatch.setattr(sys, "version_info", SimpleNamespace(major=3, minor=99))
    with pytest.raises(serve.EngineError, match=r"no stub for Python 3.99 .*use Python 3.11 or 3.12"):
        embedded.find_wheel()


@pytest.fixture
def programs() -> tuple[Path, Path, dict[str, str]]:
    """Server, stub as it is laid out, and their environment."""
    wheel = embedded.find_wheel()
    stub = embedded.lay_out_backends(wheel) / "python" / wheel.stub.name
    return wheel.server, stub, embedded.environment(wheel, "token")


def test_a_library_that_is_missing_is_named(programs: tuple[Path, Path, dict[str, str]]) -> None:
    server, stub, environment = programs
    embedded.require_libraries(server, stub, environment)
    with pytest.raises(serve.EngineError, match=r"triton_python_backend_stub does not find libcudart.*\.so"):
        embedded.require_libraries(server, stub, environment | {"LD_LIBRARY_PATH": "/nowhere"})


def test_another_libpython_than_the_running_one_is_named(
    programs: tuple[Path, Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_own_libpython", lambda: Path("/elsewhere/libpython3.11.so.1.0"))
    with pytest.raises(serve.EngineError, match=r"would load .*libpython.* this Python runs on /elsewhere"):
        embedded.require_libraries(*programs)


def test_a_program_that_does_not_run_is_reported_in_its_own_words(
    programs: tuple[Path, Path, dict[str, str]], tmp_path: Path
) -> None:
    _, stub, environment = programs
    broken = tmp_path / "tritonserver"
    broken.write_text("#!/bin/sh\necho \"libc.so.6: version 'GLIBC_2.99' not found\" >&2; exit 127\n", encoding="utf-8")
    with pytest.raises(serve.EngineError, match="cannot be executed here"):
        embedded.require_libraries(broken, stub, environment)
    broken.chmod(0o755)
    with pytest.raises(serve.EngineError, match=r"tritonserver does not run here: .*GLIBC_2.99"):
        embedded.require_libraries(broken, stub, environment)


def test_numpy_2_is_refused_because_the_stub_crashes_on_it(
    programs: tuple[Path, Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.1.0" if name == "numpy" else real(name))
    with pytest.raises(serve.EngineError, match=r"numpy 2.1.0 is installed.*numpy<2"):
        embedded.require_libraries(*programs)


def test_too_little_shared_memory_is_refused_with_the_need(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = SimpleNamespace(f_bavail=10, f_frsize=2**20)
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    with pytest.raises(serve.SharedMemoryError, match=r"10 MiB free; 2 model instances need 16 MiB.*--shm-size"):
        embedded.require_shared_memory(plan(tiny))


def test_the_backend_directory_is_made_once_of_real_copies_and_mended_when_damaged() -> None:
    wheel = embedded.find_wheel()
    folder = embedded.lay_out_backends(wheel)
    assert embedded.lay_out_backends(wheel) == folder
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    made = folder.stat().st_ino
    (folder / "onnxruntime" / "model.py").write_text("", encoding="utf-8")
    assert embedded.lay_out_backends(wheel) == folder
    assert folder.stat().st_ino != made
    assert (folder / "onnxruntime" / "model.py").stat().st_size > 0


def test_the_cache_falls_back_where_home_cannot_be_written_and_says_so_where_nothing_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.delenv("BET_CACHE")
        patch.setenv("XDG_CACHE_HOME", str(blocked))
        patch.setattr("tempfile.tempdir", str(tmp_path))
        assert cache.cache_folder() == tmp_path / f"bet-{os.getuid()}"
    monkeypatch.setenv("BET_CACHE", str(blocked / "below"))
    with pytest.raises(serve.EngineError, match="set BET_CACHE"):
        cache.cache_folder()
    monkeypatch.setenv("BET_CACHE", str(tmp_path / "a folder with spaces"))
    with pytest.raises(serve.EngineError, match="characters that a shell would change"):
        cache.cache_folder()


def test_the_owner_of_a_port_is_known_on_ipv6_too_and_nobody_owns_a_free_one() -> None:
    assert owner(serve.free_port()) == ""
    with socket.socket(socket.AF_INET6) as listening:
        listening.bind(("::1", 0))
        listening.listen()
        assert owner(listening.getsockname()[1]).startswith(f"pid {os.getpid()} ")
