"""A version whose files are not its manifest's never answers: refused if it is pinned, else set aside or not loaded."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tritonclient import http
from tritonclient.utils import InferenceServerException

import serve
from export.repository import Names, Pins, ensemble_files, replace_text
from export.versions import files_of
from serve.__main__ import main
from serve.integrity import FILES, faults_of, require_intact
from serve.repository import read_repository

BET = Names("bet")
TEXT = b"A wonderful film, and I would gladly watch it again."
Damage = Callable[[Path], None]


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def date_otherwise(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "created": "another day"}))


class Case(NamedTuple):
    """One way in which a version does not match, and what is said of it."""

    model: str
    file: str
    damage: Damage
    said: str


CASES = [
    Case("bet_classifier", "model.onnx", change_a_byte, "is not the file of its manifest"),
    Case("bet_classifier", "model.onnx", truncate, "is not the file of its manifest"),
    Case("bet_classifier", "parity.json", Path.unlink, "cannot be read (No such file or directory)"),
    Case("bet_classifier", "manifest.json", date_otherwise, "is not that of the version's other folders"),
    Case("bet_classifier_torchscript", "model.pt", change_a_byte, "is not the file of its manifest"),
    Case("bet_classifier_torchscript", "model.pt", Path.unlink, "cannot be read (No such file or directory)"),
    Case("bet_tokenizer", "tokenizer.json", truncate, "is not the file of its manifest"),
    Case("bet_tokenizer", "model.py", change_a_byte, "is not the file of its manifest"),
    Case("bet_tokenizer", "manifest.json", truncate, "is not that of the version's other folders"),
    Case("bet_tokenizer", "manifest.json", Path.unlink, "is missing or cannot be read"),
]


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    shutil.copytree(repository, folder)
    return folder


def add_version(models: Path, number: int) -> None:
    """Version 1 once more, beside it; nothing pins it."""
    for model in BET.versioned:
        shutil.copytree(
            models / model / "1", models / model / str(number), ignore=shutil.ignore_patterns("__pycache__")
        )


def folders(models: Path, model: str) -> set[str]:
    return {path.name for path in (models / model).iterdir() if path.is_dir() and path.name != "configs"}


def test_the_files_of_a_version_are_those_that_export_writes() -> None:
    assert {f"bet{ending}": files for ending, files in FILES.items()} == files_of(BET)


def test_a_whole_version_has_no_faults_and_other_peoples_models_are_not_looked_at(repository: Path, tiny: Path) -> None:
    assert [faults_of(repository, model, 1) for model in BET.versioned] == [[], [], []]
    (tiny / "tiny_classifier" / "1" / "model.onnx").write_bytes(b"")
    assert faults_of(tiny, "tiny_classifier", 1) == faults_of(tiny, "tiny_words", 1) == []


@pytest.mark.parametrize("case", CASES)
def test_a_pinned_version_that_does_not_match_is_refused_before_anything_starts(models: Path, case: Case) -> None:
    case.damage(models / case.model / "1" / case.file)
    with pytest.raises(serve.RepositoryError) as refused:
        serve.start(models)
    assert f"{case.model}/1/{case.file} {case.said}" in str(refused.value)
    assert "`python -m export rollback bet`" in str(refused.value)
    assert "1" in folders(models, case.model), "the pinned version is nobody's to move"


@pytest.mark.parametrize("case", CASES)
def test_another_version_that_does_not_match_is_set_aside_and_the_rest_stays(
    models: Path, case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="serve")
    (models / case.model / "damaged-2").mkdir()  # of an earlier time
    add_version(models, 2)
    case.damage(models / case.model / "2" / case.file)
    require_intact(read_repository(models), ("bet", "bet_torchscript"))
    assert folders(models, case.model) == {"1", "damaged-2", "damaged-2-2"}
    assert all(folders(models, other) == {"1", "2"} for other in BET.versioned if other != case.model)
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"version 2 of '{case.model}'" in line
    assert f"{case.file} {case.said}" in line
    assert "rename it to 2" in line


def test_models_that_are_not_loaded_are_not_looked_at(models: Path) -> None:
    truncate(models / "bet_classifier_torchscript" / "1" / "model.pt")
    require_intact(read_repository(models), ("bet",))
    with pytest.raises(serve.RepositoryError, match=r"bet_classifier_torchscript/1/model\.pt"):
        require_intact(read_repository(models), ("bet_torchscript",))


def test_a_repository_that_cannot_be_written_is_not_served_with_a_damaged_version_in_it(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(30, "Read-only file system")

    add_version(models, 2)
    truncate(models / "bet_classifier" / "2" / "model.onnx")
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(serve.RepositoryError, match=r"\(Read-only file system\): run `python -m export remove bet 2`"):
        serve.start(models)


def test_the_command_ends_with_2_and_one_sentence(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncate(models / "bet_classifier" / "1" / "model.onnx")
    assert main(["--repository", str(models)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("serve: a version that would answer is not the one that was exported: bet_classifier/1/")


@pytest.fixture(scope="module")
def running(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, serve.Server]]:
    """A server on version 1, started beside versions 2 and 3 of which every folder was damaged."""
    models = tmp_path_factory.mktemp("running") / "models"
    shutil.copytree(repository, models)
    for number, damage in ((2, change_a_byte), (3, truncate)):
        add_version(models, number)
        for model, file in (("bet_tokenizer", "model.py"), ("bet_classifier", "model.onnx")):
            damage(models / model / str(number) / file)
        damage(models / "bet_classifier_torchscript" / str(number) / "model.pt")
    server = serve.start(models)
    yield models, server
    server.stop(drain_seconds=2)  # Triton waits half a minute for models that it refused to load


def answer(server: serve.Server) -> bytes:
    """The probabilities of one text, bit for bit."""
    client = http.InferenceServerClient(server.http_url, network_timeout=60)
    text = http.InferInput("text", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[TEXT]], dtype=np.object_))
    probabilities: np.ndarray = client.infer("bet", [text]).as_numpy("probabilities")
    client.close()
    return probabilities.tobytes()


def load(server: serve.Server, model: str) -> None:
    client = http.InferenceServerClient(server.http_url, network_timeout=60)
    try:
        client.load_model(model)
    finally:
        client.close()


def test_the_pinned_version_is_served_beside_damaged_ones_that_triton_never_sees(
    running: tuple[Path, serve.Server], server: serve.Server
) -> None:
    models, beside = running
    assert folders(models, "bet_classifier") == {"1", "damaged-2", "damaged-3"}
    client = http.InferenceServerClient(beside.http_url)
    versions = {(model["name"], model["version"]) for model in client.get_model_repository_index()}
    client.close()
    assert versions == {(model, "1") for model in (*BET.versioned, *BET.ensembles)}
    assert answer(beside) == answer(server)


@pytest.mark.parametrize(
    ("model", "file", "damage"),
    [
        ("bet_classifier", "model.onnx", change_a_byte),
        ("bet_classifier", "manifest.json", date_otherwise),
        ("bet_classifier_torchscript", "model.pt", truncate),
        ("bet_tokenizer", "tokenizer.json", change_a_byte),
    ],
)
def test_a_running_server_refuses_a_version_by_the_tokenizer_step_and_answers_with_the_old_one(
    running: tuple[Path, serve.Server], model: str, file: str, damage: Damage
) -> None:
    models, server = running
    before = answer(server)
    add_version(models, 4)
    damage(models / model / "4" / file)
    try:
        with pytest.raises(InferenceServerException) as refused:
            load(server, "bet_tokenizer")
        assert f"{model}/4/{file} is not" in str(refused.value)
        assert answer(server) == before
    finally:
        for folder in BET.versioned:
            shutil.rmtree(models / folder / "4")


def test_an_ensemble_that_pins_an_altered_version_answers_nothing_until_its_pins_are_put_back(
    running: tuple[Path, serve.Server],
) -> None:
    models, server = running

    def pin(number: int) -> None:
        for relative, content in ensemble_files(BET, ("negative", "positive"), Pins(number)).items():
            replace_text(models / relative, content)

    before = answer(server)
    add_version(models, 5)
    change_a_byte(models / "bet_classifier" / "5" / "model.onnx")
    try:
        pin(5)
        with pytest.raises(InferenceServerException):
            load(server, "bet")
        with pytest.raises(InferenceServerException, match="no available versions"):
            answer(server)
        pin(1)
        load(server, "bet")
        assert answer(server) == before
    finally:
        pin(1)
        for folder in BET.versioned:
            shutil.rmtree(models / folder / "5")


def test_a_classifier_that_is_not_on_this_disk_is_not_the_steps_business(repository: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(repository / "bet_tokenizer", models / "bet_tokenizer")
    with serve.start(models, models=["bet_tokenizer"]) as server:
        assert server.models == ("bet_tokenizer",)
