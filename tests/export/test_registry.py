"""MLflow as the registry: what was pushed is served elsewhere with the same bits, and what differs does not get in."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient import http

import serve
from export import versions
from export.__main__ import main
from export.manifest import MANIFEST, read_manifest
from export.registry import CHALLENGER, CHAMPION, Pulled, pull, push
from export.repository import Names
from train.checkpoint import sha256_of

BET = Names("bet")
TEXTS = ("A wonderful film, and I would gladly watch it again.", "Terrible.", "Flarn quibbet zorvatek.")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing in it; they take seconds to make."""
    from mlflow import MlflowClient  # noqa: PLC0415

    file = tmp_path_factory.mktemp("mlflow") / "registry.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}", registry_uri=f"sqlite:///{file}").search_registered_models()
    return file


@pytest.fixture
def uri(empty: Path, tmp_path: Path) -> str:
    file = tmp_path / "registry" / "registry.db"
    file.parent.mkdir()
    shutil.copyfile(empty, file)
    return f"sqlite:///{file}"


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    shutil.copytree(repository, folder)
    return folder


@pytest.fixture(autouse=True)
def nothing_is_left_where_a_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert list(Path.cwd().iterdir()) == []


@pytest.fixture
def pushed(repository: Path, uri: str, tmp_path: Path) -> tuple[str, Path]:
    """A registry with version 1 in it, and a folder for a repository elsewhere."""
    push(repository, BET, 1, uri)
    return uri, tmp_path / "clean"


def second_version(models: Path) -> None:
    """Version 1 with a decision of its own, so with other files, as version 2."""
    staged = models.parent / "second"
    for model in BET.versioned:
        shutil.copytree(models / model / "1", staged / model / "1")
    report = staged / "bet_classifier" / "1" / "parity.json"
    report.write_text(report.read_text() + "\n")
    assert versions.install(models, BET, staged, 1, read_manifest(models / "bet_classifier" / "1")) == 2


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """The URL of MLflow's own server, which keeps the artefacts itself."""
    port, folder = serve.free_port(), tmp_path / "server"
    folder.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    with (folder / "log").open("wb") as log:
        # A group of its own: the server's workers are children that do not end with it at once.
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        pause = threading.Event()
        for _ in range(1200):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                if answer.status == 200:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            pause.wait(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def aliases(uri: str) -> dict[str, str]:
    from mlflow import MlflowClient  # noqa: PLC0415

    found = MlflowClient(tracking_uri=uri, registry_uri=uri).get_registered_model("bet").aliases
    return {alias: str(version) for alias, version in found.items()}


def artefact(uri: str, name: str) -> Path:
    """The file of the registry's storage with this path in a version."""
    (found,) = Path(uri.removeprefix("sqlite:///")).parent.glob(f"registry-artifacts/*/artifacts/version/{name}")
    return found


def answers(server: serve.Server) -> dict[str, bytes]:
    """Every output for every text, bit for bit, from both ensembles."""
    client = http.InferenceServerClient(server.http_url, network_timeout=60)
    text = http.InferInput("text", [1, 1], "BYTES")
    found = {}
    for ensemble in BET.ensembles:
        for content in TEXTS:
            text.set_data_from_numpy(np.array([[content.encode()]], dtype=np.object_))
            answer = client.infer(ensemble, [text])
            for output in answer.get_response()["outputs"]:
                values = answer.as_numpy(output["name"])
                bits = repr(values.tolist()).encode() if values.dtype == np.object_ else values.tobytes()
                found[f"{ensemble} {output['name']} {content}"] = bits
    client.close()
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.heavy
def test_a_version_pulled_on_a_clean_machine_answers_with_the_same_bits(
    repository: Path, server: serve.Server, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", "bet", "--repository", str(repository), "--registry", uri]) == 0
    assert "'bet' is version 1 of the registry" in capsys.readouterr().out
    clean = tmp_path / "another machine" / "models"
    where = ("--repository", str(clean), "--registry", uri)
    assert main(["pull", "bet", "--alias", CHALLENGER, *where]) == 0
    assert "version 1 of 'bet' answers from now on; in the registry it is 1" in capsys.readouterr().out
    for model, files in versions.files_of(BET).items():
        for file in files:
            assert (clean / model / "1" / file).read_bytes() == (repository / model / "1" / file).read_bytes()
        assert {path.name for path in (clean / model / "1").iterdir()} == {*files, MANIFEST}
    ours, theirs = (read_manifest(folder / "bet_classifier" / "1") for folder in (repository, clean))
    assert theirs.pop("registry") == {
        "version": "1",
        "manifest_sha256": sha256_of(repository / "bet_classifier" / "1" / MANIFEST),
    }
    assert theirs == ours
    with serve.start(clean, timeout=120) as there:
        expected = answers(server)
        assert len(expected) >= 2 * 13 * len(TEXTS)
        assert answers(there) == expected
    assert main(["pull", "bet", "--version", "1", *where]) == 0
    assert "there already: version 1 of 'bet'" in capsys.readouterr().out


@pytest.mark.heavy
def test_a_server_over_http_keeps_a_version_as_well(models: Path, mlflow_server: str, tmp_path: Path) -> None:
    first = push(models, BET, 1, mlflow_server)
    assert (first.new, push(models, BET, 1, mlflow_server).new) == (True, False)
    clean = tmp_path / "clean"
    assert pull(clean, BET, mlflow_server, version=first.version).number == 1
    for model, files in versions.files_of(BET).items():
        for file in files:
            assert (clean / model / "1" / file).read_bytes() == (models / model / "1" / file).read_bytes()
    assert main(["promote", "bet", "1", "--repository", str(clean), "--registry", mlflow_server]) == 0
    assert aliases(mlflow_server) == {CHAMPION: first.version}


def test_a_model_version_carries_figures_hashes_and_origin(models: Path, uri: str) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415

    push(models, BET, 1, uri)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    version = client.get_model_version("bet", "1")
    manifest = read_manifest(models / "bet_classifier" / "1")
    assert version.tags["manifest_sha256"] == sha256_of(models / "bet_classifier" / "1" / MANIFEST)
    assert version.tags["checkpoint_sha256"] == manifest["checkpoint"]["sha256"]
    assert (version.tags["kind"], version.tags["labels"]) == ("bet", '["negative", "positive"]')
    assert version.tags["git_commit"] == manifest["git_commit"]
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy"] == manifest["metrics"]["accuracy"]
    assert run.data.metrics["parity_served"] == manifest["parity"]["parity_served"]
    assert {"accepted_share", "calibration_accuracy", "nll"} <= run.data.metrics.keys()


def test_the_same_files_are_registered_once_wherever_they_come_from(models: Path, uri: str, tmp_path: Path) -> None:
    second_version(models)
    first, again, second = (push(models, BET, number, uri) for number in (1, 1, 2))
    assert [(p.version, p.new) for p in (first, again, second)] == [("1", True), ("1", False), ("2", True)]
    assert aliases(uri) == {CHALLENGER: "2"}
    clean = tmp_path / "clean"
    assert pull(clean, BET, uri, version="2") == Pulled(number=1, version="2", new=True)
    assert not push(clean, BET, None, uri).new
    # Both are there, under the other's number; what is pulled last answers.
    assert pull(clean, BET, uri, version="1") == Pulled(number=2, version="1", new=True)
    assert pull(clean, BET, uri, version="2") == Pulled(number=1, version="2", new=False)
    pins = versions.read_pins(clean, BET)
    assert pins is not None
    assert (pins.version, pins.previous) == (1, 2)


def test_promote_and_rollback_move_the_champion(models: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    second_version(models)
    where = ("--repository", str(models), "--registry", uri)
    push(models, BET, 1, uri)
    assert main(["promote", "bet", "1", *where]) == 0
    assert aliases(uri) == {CHAMPION: "1"}
    assert "version 2 of 'bet' is not in the registry" in refused(capsys, "promote", "bet", "2", *where)
    assert versions.read_pins(models, BET) == versions.Pins(1, 2), "nothing was switched"
    push(models, BET, 2, uri)
    assert aliases(uri) == {CHAMPION: "1", CHALLENGER: "2"}
    assert main(["promote", "bet", "2", *where]) == 0
    assert aliases(uri) == {CHAMPION: "2"}
    assert main(["rollback", "bet", *where]) == 0
    assert aliases(uri) == {CHAMPION: "1"}
    assert push(models, BET, 1, uri).new is False
    assert aliases(uri) == {CHAMPION: "1"}, "what answers is no challenger"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bet_classifier/1/model.onnx", b"", "is not the file of the manifest"),
        ("bet_tokenizer/1/model.py", b"import os", "is not the file of the manifest"),
        ("bet_tokenizer/1/tokenizer.json", None, "is missing"),
        ("bet_classifier/1/manifest.json", None, "is missing"),
    ],
)
def test_an_altered_artefact_gets_into_no_repository(
    pushed: tuple[str, Path], name: str, content: bytes | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, clean = pushed
    if content is None:
        artefact(uri, name).unlink()
    else:
        artefact(uri, name).write_bytes(content)
    line = refused(capsys, "pull", "bet", "--alias", CHALLENGER, "--repository", str(clean), "--registry", uri)
    assert f"{name} {said}" in line
    assert "nothing was installed" in line
    assert list(clean.iterdir()) == []


def test_a_manifest_that_was_altered_with_its_files_is_told_by_its_tag(
    pushed: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    uri, clean = pushed
    graph = artefact(uri, "bet_classifier/1/model.onnx")
    graph.write_bytes(graph.read_bytes() + b"\0")
    stored = graph.parent.parent.parent
    versions.seal(BET, stored, 1, read_manifest(graph.parent))  # the hashes agree again
    assert versions.faults_of(stored, BET, 1) == []
    line = refused(capsys, "pull", "bet", "--version", "1", "--repository", str(clean), "--registry", uri)
    assert "manifest.json is not the one that was pushed" in line


def test_what_else_lies_among_the_artefacts_stays_there(pushed: tuple[str, Path]) -> None:
    uri, clean = pushed
    artefact(uri, "bet_tokenizer/1/model.py").with_name("tokenizers.py").write_text("raise SystemExit")
    pull(clean, BET, uri, version="1")
    assert not (clean / "bet_tokenizer" / "1" / "tokenizers.py").exists()


def test_what_is_not_there_is_one_sentence(models: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--repository", str(models), "--registry", uri)
    assert "has no version 7 in" in refused(capsys, "push", "bet", "7", *where)
    assert "has no version that answers" in refused(capsys, "push", "other", *where)
    assert "the registry has no model 'bet'" in refused(capsys, "pull", "bet", *where)
    push(models, BET, 1, uri)
    assert "no alias 'champion' in the registry; it has challenger (version 1)" in refused(
        capsys, "pull", "bet", *where
    )
    assert "no version 9 in the registry; it has 1" in refused(capsys, "pull", "bet", "--version", "9", *where)
    from mlflow import MlflowClient  # noqa: PLC0415

    MlflowClient(tracking_uri=uri, registry_uri=uri).create_model_version("bet", "/somewhere")
    assert "was not registered by `python -m export push`" in refused(capsys, "pull", "bet", "--version", "2", *where)


def test_a_version_that_is_not_whole_is_not_pushed(models: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "bet_classifier" / "1" / "model.onnx").write_bytes(b"")
    line = refused(capsys, "push", "bet", "--repository", str(models), "--registry", uri)
    assert "bet_classifier/1/model.onnx is not the file of the manifest" in line
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        assert database.execute("select count(*) from runs").fetchone() == (0,)


def test_a_registry_that_cannot_be_reached_is_one_sentence_and_switches_nothing(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second_version(models)
    no_database = tmp_path / "no database"
    no_database.write_text("hello")
    for uri, said in (
        (f"http://user:secret@127.0.0.1:{serve.free_port()}", "Connection refused"),
        (f"sqlite:///{tmp_path}/nowhere/registry.db", "cannot be opened"),
        (f"sqlite:///{no_database}", "not a database"),
        ("carrier-pigeon://x", "carrier-pigeon"),
    ):
        line = refused(capsys, "promote", "bet", "1", "--repository", str(models), "--registry", uri)
        assert said in line
        assert "--registry" in line
        assert "secret" not in line
    pins = versions.read_pins(models, BET)
    assert pins is not None
    assert pins.version == 2


def test_without_mlflow_the_extra_is_named(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    line = refused(capsys, "push", "bet", "--repository", str(models), "--registry", "http://localhost:5000")
    assert "the extra `registry`, which is not installed" in line
    assert ".[registry]" in line


@pytest.mark.parametrize("command", ["push", "pull"])
def test_both_commands_explain_themselves_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"example: python -m export {command} bet" in capsys.readouterr().out
