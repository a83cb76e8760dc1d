"""Killed, full or damaged at any moment: the old version answers on, and nothing half-written can be loaded."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bet_client import Client
from second_versions import BET, add_version
from tiny_hugging_face import TEXTS as THEIR_TEXTS
from tiny_hugging_face import write_folder, write_rows

import serve
from export import versions
from export.__main__ import main
from export.control import Control
from export.manifest import MANIFEST
from export.repository import Names, Pins

KILLED = Path(__file__).with_name("killed.py")
REVIEWS = Path(__file__).parent / "reviews.jsonl"
THEIRS = Names("theirs")
TEXT = "A wonderful film, and I would gladly watch it again with my whole family on a rainy Sunday."


def run(command: list[str | Path], folder: Path, lines: str = "") -> list[dict[str, object]]:
    """The JSON that a driver prints."""
    done = subprocess.run(
        [*map(str, command)], cwd=folder, input=lines, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def require_sound(models: Path, names: Names = BET) -> None:
    """The pinned version is whole, and so is every folder that Triton would take for a version."""
    pins = versions.read_pins(models, names)
    assert pins is not None
    assert versions.faults_of(models, names, pins.version) == []
    for model, files in versions.files_of(names).items():
        for folder in (models / model).iterdir():
            if folder.is_dir() and folder.name.isdecimal():
                recorded = json.loads((folder / MANIFEST).read_text())["files"]
                for file in files:
                    assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == recorded[file]


pytestmark = pytest.mark.heavy  # a minute of processes that are killed; what they rest on is in test_versions


@pytest.fixture(scope="module")
def states(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The repository as each of the kills during `add` left it, and the last one without a kill."""
    folder = tmp_path_factory.mktemp("killed")
    lines = run([sys.executable, KILLED, "install", repository, folder], folder)
    assert [line["killed"] for line in lines] == [True] * (len(lines) - 1) + [False], lines[-1]
    assert len(lines) > 30  # files staged, configurations, renames, two pins
    return [Path(str(line["models"])) for line in lines]


def test_sigkill_at_any_change_while_a_version_moves_in_leaves_the_repository_sound(states: list[Path]) -> None:
    pinned = []
    for models in states:
        require_sound(models)
        pins = versions.read_pins(models, BET)
        assert pins is not None
        pinned.append(pins.version)
    assert pinned == sorted(pinned)  # 1 until the last moment, then 2
    assert set(pinned) == {1, 2}
    assert any(versions.stray_pins(models, BET) for models in states)  # one died between the two files


def test_the_next_add_takes_what_a_killed_one_left_out_of_the_way(states: list[Path]) -> None:
    left = [models for models in states if list(models.parent.glob(".models-staging-*"))]
    assert len(left) > 20
    for models in left[:: len(left) // 4]:
        there = versions.numbers(models, BET)
        assert add_version(models) == there[-1] + 1
        assert not list(models.parent.glob(".models-staging-*"))
        assert versions.stray_pins(models, BET) == {}
        require_sound(models)


def test_a_disk_that_is_full_while_a_version_moves_in_leaves_the_old_one(repository: Path, tmp_path: Path) -> None:
    """A real one: a file system of its own, filled up but for some hundred kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "full.py"
    script.write_text(FULL_DISK)
    size = sum(path.stat().st_size for path in repository.rglob("*")) // 1024
    mount = f"mount -t tmpfs -o size={size * 4}k tmpfs {disk} && exec {sys.executable} {script} {repository} {disk}"
    command = ["unshare", "-rm", "bash", "-c", mount]
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        command = ["bash", "-c", f"exec {sys.executable} {script} {repository} {disk} limited"]
    outcomes = run(command, tmp_path)
    assert [line["errno"] for line in outcomes[:-1]] == ["ENOSPC" if "unshare" in command else "EFBIG"] * (
        len(outcomes) - 1
    )
    assert len(outcomes) >= 4
    for line in outcomes[:-1]:
        assert line["pins"] == [1, None]
        assert line["faults"] == []
        assert line["staging"] == []
    assert outcomes[-1]["pins"] == [2, 1]  # with room it goes in


FULL_DISK = '''
"""Install a version on a disk with ever more room, until it fits."""
import errno, json, resource, shutil, signal, sys
from pathlib import Path
from export import versions
from export.repository import Names

BET, repository, disk = Names("bet"), Path(sys.argv[1]), Path(sys.argv[2])
models = disk / "models"
shutil.copytree(repository, models)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
largest = max(path.stat().st_size for path in models.rglob("*"))
for room in (0.05, 0.4, 0.9, 0.999, 0):
    filler = disk / "filler"
    if room:
        if "limited" in sys.argv:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest * room), resource.RLIM_INFINITY))
        else:
            free = shutil.disk_usage(disk).free
            version = sum(p.stat().st_size for m in BET.versioned for p in (models / m / "1").iterdir())
            with filler.open("wb") as file:
                file.write(b"x" * max(0, free - int(version * room)))
    elif "limited" in sys.argv:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    outcome = None
    try:
        with versions.staging_folder(models) as staging:
            shutil.copytree(models / "bet_tokenizer" / "1", staging / "bet_tokenizer" / "1")
            for model in BET.versioned[1:]:
                shutil.copytree(models / model / "1", staging / model / "1")
            from export.manifest import read_manifest
            versions.install(models, BET, staging, 1, read_manifest(models / "bet_classifier" / "1"))
    except shutil.Error as error:
        said = str(error)  # of all files that could not be copied
        outcome = "ENOSPC" if "No space left" in said else "EFBIG" if "File too large" in said else said
    except OSError as error:
        outcome = errno.errorcode[error.errno]
    filler.unlink(missing_ok=True)
    pins = versions.read_pins(models, BET)
    left = [p.name for p in [*disk.iterdir(), *models.iterdir()] if "staging" in p.name]
    print(json.dumps({"errno": outcome, "pins": [pins.version, pins.previous], "staging": left,
                      "faults": versions.faults_of(models, BET, pins.version)}), flush=True)
'''


@pytest.fixture(scope="module")
def beside(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 pinned, version 2 beside it."""
    models = tmp_path_factory.mktemp("beside") / "models"
    shutil.copytree(repository, models)
    add_version(models)
    versions.restore(models, BET, Pins(1))
    return models


@pytest.fixture
def server(beside: Path) -> Iterator[serve.Server]:
    with serve.start(beside, timeout=180) as running:
        yield running


class Promotions:
    """A context manager: promotions to version 2, each killed at one of its changes of the file system."""

    def __init__(self, models: Path, name: str, texts: Path, folder: Path) -> None:
        self._command = [sys.executable, str(KILLED), "promote", str(models), name, str(texts)]
        self._folder = folder

    def __enter__(self) -> Promotions:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._driver = subprocess.Popen(self._command, cwd=self._folder, text=True, **pipes)
        return self

    def __exit__(self, *error: object) -> None:
        self._driver.communicate()

    def killed(self, url: str, moment: int | str) -> bool:
        """Whether the promotion died at that change; else it went through."""
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.write(f"{url} {moment}\n")
        self._driver.stdin.flush()
        line = next(line for line in self._driver.stdout if line.startswith('{"killed"'))
        return bool(json.loads(line)["killed"])


def require_answers(url: str, name: str, text: str) -> int:
    """The version that answers: a whole one."""
    with Control(url) as control:
        pinned = control.pinned(name)
    with Client(url, model=name, timeout=60) as client:
        assert client.predict(text).label
    assert pinned is not None
    return pinned


def test_sigkill_during_a_promotion_leaves_one_version_answering(
    beside: Path, server: serve.Server, tmp_path: Path
) -> None:
    """Each promotion meets what the one before it left."""
    moments = {
        "os.rename {}/bet_torchscript_challenger/.config": (1, 1, True, False),
        "os.rename {}/bet_torchscript/.config": (1, 1, False, True),
        "os.rename {}/bet/.config": (1, 2, False, False),
    }
    with Promotions(beside, "bet", REVIEWS, tmp_path) as promotions:
        for moment, state in moments.items():
            assert promotions.killed(server.grpc_url, moment.format(beside))
            require_sound(beside)
            pins = versions.read_pins(beside, BET)
            assert pins is not None
            left = bool(versions.challengers(beside, BET)), bool(versions.stray_pins(beside, BET))
            assert (require_answers(server.grpc_url, "bet", TEXT), pins.version, *left) == state
        assert not promotions.killed(server.grpc_url, 0)
    assert require_answers(server.grpc_url, "bet", TEXT) == 2
    assert versions.challengers(beside, BET) == versions.stray_pins(beside, BET) == {}
    assert versions.read_pins(beside, BET) == Pins(2, 1)


@pytest.mark.parametrize("kind", ["bet", "softmax"])
def test_after_a_kill_at_any_moment_of_a_promotion_a_restart_answers_and_the_next_one_goes_through(
    kind: str, repository: Path, tmp_path: Path
) -> None:
    models, names, texts, text = tmp_path / "models", BET, REVIEWS, TEXT
    if kind == "bet":
        shutil.copytree(repository, models)
        add_version(models)
    else:
        names, text = THEIRS, THEIR_TEXTS[0]
        texts = write_rows(write_folder(tmp_path / "model", "bert"), tmp_path / "rows.csv")
        add = ["add", str(tmp_path / "model"), "--calibration", str(texts), "--name", "theirs", "--max-error", "0.2"]
        assert main([*add, "--repository", str(models), "--gate-texts", "7"]) == 0
        add_version(models, THEIRS, max_length=8)
    where = ["--repository", str(models), "--watch", "0", "--texts", str(texts), "--max-flips", "1"]
    restarts, number, died = 0, 0, True
    with Promotions(models, names.ensemble, texts, tmp_path) as promotions:
        while died:
            versions.restore(models, names, Pins(1))
            with serve.start(models, timeout=180) as server:
                unlike_at_start = False
                while died and not unlike_at_start:  # a restart is dear: taken where the files are others than before
                    number += 1
                    died = promotions.killed(server.grpc_url, number)
                    assert require_answers(server.grpc_url, names.ensemble, text) in (1, 2)
                    require_sound(models, names)
                    pins = versions.read_pins(models, names)
                    assert pins is not None
                    left = versions.stray_pins(models, names) or versions.challengers(models, names)
                    unlike_at_start = pins.version != 1 or bool(left)
            with serve.start(models, timeout=180) as server:
                restarts += 1
                assert require_answers(server.grpc_url, names.ensemble, text) == pins.version
                url = ["--url", server.grpc_url, "--max-latency-ratio", "50"]
                assert main(["promote", names.ensemble, "2", *where, *url]) == 0
                assert require_answers(server.grpc_url, names.ensemble, text) == 2
                assert versions.challengers(models, names) == {}
                assert versions.stray_pins(models, names) == {}
    assert restarts > 3
    assert number > 10


def test_a_damaged_version_that_does_not_answer_keeps_nothing_from_starting(beside: Path, tmp_path: Path) -> None:
    for damage in ("truncated", "altered", "half there", "without a manifest"):
        models = tmp_path / damage.replace(" ", "-") / "models"
        shutil.copytree(beside, models)
        graph = models / "bet_classifier" / "2" / "model.onnx"
        if damage == "truncated":
            graph.write_bytes(graph.read_bytes()[:1000])
        elif damage == "altered":
            graph.write_bytes(graph.read_bytes()[:-1] + b"x")
        elif damage == "half there":
            shutil.rmtree(graph.parent)
        else:
            (graph.parent / MANIFEST).unlink()
        with serve.start(models, timeout=180) as server:
            assert require_answers(server.grpc_url, "bet", TEXT) == 1
            assert main(["promote", "bet", "2", "--repository", str(models), "--url", server.grpc_url]) == 2
            assert require_answers(server.grpc_url, "bet", TEXT) == 1


def test_export_add_on_a_full_disk_says_so_and_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    add = (
        f"{sys.executable} -m export add {tiny_checkpoint} --repository {disk}/models --texts {REVIEWS} --gate-texts 7"
    )
    full = f"mount -t tmpfs -o size=200k tmpfs {disk} && {add}; echo status $?; ls -A {disk} {disk}/models 2>/dev/null"
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", full], cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
    )
    if "unshare" in done.stderr:
        pytest.skip("no file system may be mounted here; the installation alone is tested with a limit on file sizes")
    assert "status 2" in done.stdout
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "staging" not in done.stdout
