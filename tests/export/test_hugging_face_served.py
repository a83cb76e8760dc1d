"""Hugging Face classifiers in the real Triton, through the commands that a user types."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bet_client import Client
from tiny_hugging_face import LABELS, TEXTS, write_folder, write_rows
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

import serve
from export import versions
from export.__main__ import main
from export.checkpoints import load_checkpoint
from export.manifest import read_manifest
from export.outputs import SOFTMAX, TOKENIZER_OUTPUTS
from export.repository import GPU, Names, classifier_config, read_config
from train.decision import Decision

THEIRS = Names("theirs")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT, its rows, and a repository that holds it as version 1."""
    folder = tmp_path_factory.mktemp("theirs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rows = write_rows(write_folder(folder / "model", "bert"), folder / "rows.csv")
        assert add(folder / "model", rows, folder / "models") == 0
    return folder


def add(model: Path, rows: Path, models: Path, name: str = "theirs") -> int:
    arguments = ["add", str(model), "--calibration", str(rows), "--name", name, "--repository", str(models)]
    return main([*arguments, "--max-error", "0.2", "--gate-texts", "28"])


def test_the_version_says_what_it_was_made_of(theirs: Path) -> None:
    (version,) = versions.list_versions(theirs / "models", THEIRS)
    assert (version.pinned, version.faults, version.labels) == (True, (), LABELS)
    manifest = read_manifest(theirs / "models" / "theirs_classifier" / "1")
    assert manifest["kind"] == "softmax"
    assert manifest["calibration"]["temperature"] > 0
    assert manifest["calibration"]["novelty_threshold"] is None
    assert manifest["data"]["calibration"] == str(theirs / "rows.csv")
    assert manifest["parity"]["parity_served"] <= 1e-4
    assert manifest["parity"]["mean_batch_size"] == 1  # requests are executed one by one, many callers or not


def test_the_ensemble_declares_what_a_softmax_can_honestly_say(theirs: Path) -> None:
    config = read_config(theirs / "models" / "theirs" / "config.pbtxt")
    assert [o.name for o in config.output] == [o.name for o in (*SOFTMAX.outputs, *TOKENIZER_OUTPUTS)]
    assert not {"aleatoric", "epistemic", "concentration"} & {o.name for o in config.output}


def test_on_a_gpu_requests_are_joined_and_on_a_cpu_they_are_not() -> None:
    cpu, gpu = (classifier_config(THEIRS, 3, device, kind=SOFTMAX) for device in ("cpu", GPU))
    assert list(cpu.dynamic_batching.preferred_batch_size) == [1]
    assert not gpu.dynamic_batching.preferred_batch_size
    assert cpu.dynamic_batching.default_queue_policy.max_queue_size > 0


def test_answers_are_the_models_and_what_it_cannot_say_is_none(theirs: Path) -> None:
    checkpoint = load_checkpoint(theirs / "model")
    decision = Decision(**read_manifest(theirs / "models" / "theirs_classifier" / "1")["calibration"])
    texts = [*TEXTS[:12], "good [SEP] bad [PAD]", " ".join(TEXTS[:4])]
    right = checkpoint.answers(decision, checkpoint.encoder.encode(texts))
    with serve.start(theirs / "models", timeout=120) as server, Client(server.grpc_url, model="theirs") as client:
        answers = [client.predict(text, diagnostics=True) for text in texts]
        together = client.predict_many(texts)
        budgets = client.budgets()
        refusal = asked_for(server, "epistemic")
    for i, answer in enumerate(answers):
        assert answer.label == right.label[i] == together[i].label
        assert list(answer.probabilities.values()) == pytest.approx(right.probabilities[i].tolist(), abs=1e-4)
        assert answer.review == right.review[i]
        assert answer.reason == ("uncertain" if answer.review else "")
        assert answer.prediction_set == tuple(
            n for n, inside in zip(LABELS, right.prediction_set[i], strict=True) if inside
        )
        assert answer.aleatoric is answer.epistemic is None
    assert {answer.review for answer in answers} == {True, False}
    assert [budget.max_error for budget in budgets] == [0.01, 0.02, 0.05, 0.1, 0.2]
    assert [budgets[-1].accepts(answer) for answer in answers] == [not answer.review for answer in answers]
    # onnx#3753, ORT#5549: what dropout would say of a softmax is an error, never zero
    assert "unexpected inference output 'epistemic'" in refusal
    assert [answer.truncated for answer in answers[-2:]] == [False, True]
    assert answers[0].tokens == len(checkpoint.encoder.encode(texts[:1])[0])


def asked_for(server: serve.Server, output: str) -> str:
    """What Triton says to a request for one output, by NVIDIA's own client."""
    text = grpc.InferInput("text", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[b"fine"]], dtype=np.object_))
    with (
        grpc.InferenceServerClient(server.grpc_url) as client,
        pytest.raises(InferenceServerException) as refused,
    ):
        client.infer("theirs", [text], outputs=[grpc.InferRequestedOutput(output)])
    return str(refused.value.message())


@pytest.mark.heavy
def test_a_roberta_goes_the_whole_way(tmp_path: Path) -> None:
    """Other positions, another padding id, and a text that was cut at the limit of 514 - 2."""
    rows = write_rows(write_folder(tmp_path / "model", "roberta"), tmp_path / "rows.csv")
    assert add(tmp_path / "model", rows, tmp_path / "models") == 0


@pytest.mark.heavy
def test_verify_list_promote_rollback_and_remove(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = theirs / "models"
    assert add(theirs / "model", theirs / "rows.csv", models) == 0
    where = ("--repository", str(models))
    with serve.start(models, timeout=120) as server:
        capsys.readouterr()
        assert main(["verify", "theirs", *where, "--url", server.grpc_url, "--gate-texts", "21", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["truth"] == f"PyTorch, from {theirs / 'model'}"
        assert report["version"] == 2
        assert report["parity"]["texts"] >= 21  # of the calibration file, which the manifest names
        quick = ("--watch", "0")
        assert main(["rollback", "theirs", *where, *quick, "--url", server.grpc_url]) == 0
        with Client(server.grpc_url, model="theirs") as client:
            assert client.predict(TEXTS[0]).label in LABELS
        capsys.readouterr()
        bounds = ("--max-latency-ratio", "20", "--protocol", "http", "--url", server.http_url, "--json")
        assert main(["promote", "theirs", "2", *where, *quick, *bounds]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["texts"] == str(theirs / "rows.csv")  # which the manifest names
        assert next(check["value"] for check in report["checks"] if check["name"] == "changed_labels") == 0
        assert main(["rollback", "theirs", *where]) == 0
    assert main(["remove", "theirs", "2", *where]) == 0
    capsys.readouterr()
    assert main(["list", "theirs", *where, "--json"]) == 0
    assert [v["number"] for v in json.loads(capsys.readouterr().out)["versions"]] == [1]


@pytest.mark.heavy
def test_verify_without_the_folder_compares_with_the_exported_graph(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = theirs / "models"
    (theirs / "model").rename(theirs / "moved")
    try:
        with serve.start(models, timeout=120) as server:
            assert main(["verify", "theirs", "--repository", str(models), "--url", server.grpc_url]) == 0
    finally:
        (theirs / "moved").rename(theirs / "model")
    assert "ONNX Runtime in this process" in capsys.readouterr().out
