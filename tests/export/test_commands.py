"""The commands: exit status, one sentence for wrong use, and versions switched in a running server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from bet_client import Client

import serve
from export import staged, versions
from export.__main__ import main
from export.add import AddOptions, add
from export.checkpoints import gate_texts, load_checkpoint
from export.errors import GateError
from export.graph import ServedClassifier
from export.manifest import read_manifest
from export.repository import Names, Pins, write_configurations
from export.rows import RowFiles
from train.checkpoint import seal

BET = Names("bet")
REVIEWS = Path(__file__).parent / "reviews.jsonl"
TEXT = "A wonderful film, and I would gladly watch it again."


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused as wrong use; its one line on standard error."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    line = captured.err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in captured.err
    return line


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, "there is no checkpoint folder"),
        ({"notes.txt": "hello"}, "has no files.json"),
        ({"config.json": '{"model_type": "bet"}'}, "has no files.json"),
        ({"config.json": "not json"}, "has no files.json"),
    ],
)
def test_what_train_did_not_write_is_refused_in_one_sentence(
    files: dict[str, str] | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
    assert said in refused(capsys, "add", str(folder), "--repository", str(tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_an_altered_checkpoint_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, copy)
    (copy / "calibration.json").write_text("{}")
    assert "altered: calibration.json" in refused(capsys, "add", str(copy), "--repository", str(tmp_path / "models"))


@pytest.mark.parametrize("budget", ["0", "1", "-0.1", "7"])
def test_a_budget_that_is_no_share_is_refused(
    budget: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "add", str(tiny_checkpoint), "--repository", str(tmp_path / "m"), f"--max-error={budget}")
    assert "between 0 and 1" in line


@pytest.mark.parametrize("name", ["", "../bet", "a b", "ä"])
def test_a_name_that_cannot_be_a_model_is_refused(
    name: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "add", str(tiny_checkpoint), "--repository", str(tmp_path / "m"), f"--name={name}")
    assert "--name" in line


def test_calibration_rows_with_a_label_that_the_model_does_not_know_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\nfine,positive\nwhat,neutral\n")
    line = refused(capsys, "add", str(tiny_checkpoint), "--repository", str(tmp_path / "m"), "--calibration", str(rows))
    assert "one of the classes 'negative', 'positive'; row 2 holds 'neutral'" in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,label\nfine,positive\nwell,positive\n", "'negative' (0 of 2 rows)"),  # sklearn#29551, #17827
        ("text,label\nfine,positive\n,negative\n", "column 'text' is empty in row 2"),
        ("text,label\nfine,positive\nbad,\n", "column 'label' is empty in row 2"),
        ("text,label\nfine,0.2\nbad,0.7\n", "rows 1 and 2 hold '0.2'"),  # tf#27707
    ],
)
def test_calibration_rows_that_can_say_nothing_are_refused_by_row_or_class(
    content: str, said: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(content)
    line = refused(capsys, "add", str(tiny_checkpoint), "--repository", str(tmp_path / "m"), "--calibration", str(rows))
    assert said in line
    assert not (tmp_path / "m").exists()


def test_too_few_calibration_rows_send_every_answer_to_review_and_say_how_many_it_takes(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    decision = checkpoint.calibrate(RowFiles(calibration=REVIEWS), 59).decide(0.05, 0.95)
    assert decision.risk_threshold == -1
    assert "59" in decision.message


def test_a_corpus_that_is_gone_is_said_with_what_to_give_instead(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, copy)
    provenance = json.loads((copy / "provenance.json").read_text())
    provenance["data"]["source"] = str(tmp_path / "gone.csv")
    (copy / "provenance.json").write_text(json.dumps(provenance))
    seal(copy)
    with pytest.raises(GateError, match=r"gone\.csv.*--texts FILE or .*--calibration FILE"):
        gate_texts(load_checkpoint(copy), RowFiles(), 21)
    texts = gate_texts(load_checkpoint(copy), RowFiles(texts=REVIEWS), 21)
    assert len(texts) >= 21
    assert all(text.label is None for text in texts)


def test_list_shows_what_answers(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "bet", "--repository", str(repository), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [(v["number"], v["pinned"]) for v in content["versions"]] == [(1, True)]
    assert main(["list", "nothing", "--repository", str(repository)]) == 0
    assert "export add" in capsys.readouterr().out


def test_remove_and_rollback_say_why_they_cannot(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--repository", str(repository))
    assert "promote another first" in refused(capsys, "remove", "bet", "1", *where)
    assert "no version to go back to" in refused(capsys, "rollback", "bet", *where)
    assert "no version 7" in refused(capsys, "promote", "bet", "7", *where)
    assert "no version of 'other'" in refused(capsys, "promote", "other", "1", *where)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_verify_holds_against_the_server_that_serves_the_pinned_version(
    protocol: str, repository: Path, server: serve.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.grpc_url if protocol == "grpc" else server.http_url
    arguments = ["verify", "bet", "--repository", str(repository), "--url", url, "--protocol", protocol]
    assert main([*arguments, "--texts", str(REVIEWS), "--gate-texts", "28", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["truth"].startswith("PyTorch")
    value = {check["name"]: check["value"] for check in report["checks"]}
    assert value["parity_served"] <= 1e-5
    assert value["label_flips"] == value["review_flips"] == 0
    assert json.loads(Path("build/verify/report.json").read_text())["holds"] is True


def test_verify_without_the_checkpoint_compares_with_the_exported_graph(
    repository: Path, server: serve.Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    shutil.copytree(repository, models)
    manifest = read_manifest(models / "bet_classifier" / "1")
    manifest["checkpoint"]["path"] = str(tmp_path / "gone")
    versions.seal(BET, models, 1, manifest)
    assert main(["verify", "bet", "--repository", str(models), "--url", server.grpc_url]) == 0
    printed = capsys.readouterr().out
    assert "ONNX Runtime in this process" in printed
    assert "MISSED" not in printed


def test_verify_sees_that_another_version_answers(
    repository: Path, server: serve.Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    shutil.copytree(repository, models)
    _second_version(models)
    arguments = ["verify", "bet", "--repository", str(models), "--url", server.grpc_url, "--texts", str(REVIEWS)]
    assert main([*arguments, "--gate-texts", "7"]) == 1
    assert "version_mismatch" in capsys.readouterr().out
    assert main([*arguments, "--gate-texts", "7", "--report-only"]) == 0


def test_verify_needs_a_server(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "verify", "bet", "--repository", str(repository), "--url", f"127.0.0.1:{serve.free_port()}")
    assert "python -m serve" in line


def _second_version(models: Path) -> None:
    """Version 1 once more as version 2, by its tokenizer cutting at 8 tokens: an answer tells which one gave it."""
    staged = models.parent / "staged"
    manifest = read_manifest(models / "bet_classifier" / "1")
    write_configurations(staged, BET, manifest["labels"], Pins(1))
    for model in BET.versioned:
        shutil.copytree(models / model / "1", staged / model / "1")
    manifest["tokenizer"] = {**manifest["tokenizer"], "max_length": 8, "head_length": 4, "golden": []}
    versions.install(models, BET, staged, 1, manifest)


@pytest.mark.parametrize("command", ["add", "verify", "list", "remove", "promote", "rollback"])
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"example: python -m export {command} " in capsys.readouterr().out


@pytest.mark.heavy
def test_labelled_rows_of_a_user_make_a_version_under_another_name(
    tiny_checkpoint: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def same_model_other_thresholds(classifier: ServedClassifier, labels: object, path: Path, notes: object) -> None:
        model = onnx.load(repository / "bet_classifier" / "1" / "model.onnx")  # exporting again takes ten seconds
        for tensor in model.graph.initializer:
            if tensor.name.endswith("_threshold"):
                value = getattr(classifier, tensor.name.rpartition(".")[2]).numpy()
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        onnx.save(model, path)

    monkeypatch.setattr(staged, "write_onnx", same_model_other_thresholds)
    models = tmp_path / "models"
    shutil.copytree(repository, models)
    added = add(
        AddOptions(tiny_checkpoint, name="films", repository=models, files=RowFiles(calibration=REVIEWS), gate_texts=21)
    )
    assert added.version == 1, added.report.table()
    assert versions.pinned_manifest(models, Names("films"))["name"] == "films"
    with serve.start(models, models=["films"], timeout=120) as server, Client(server.grpc_url, model="films") as client:
        assert client.predict(TEXT).review is True  # six rows prove no budget
