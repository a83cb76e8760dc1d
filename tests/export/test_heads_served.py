"""Multi-label and regression heads in the real Triton: three names beside each other, asked by every client."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from bet_client import AsyncClient, Client, Prediction
from bet_client.__main__ import main as ask_command
from tiny_hugging_face import LABELS, LIMIT, TEXTS, fix_logits, write_folder, write_rows

import serve
from export.__main__ import main
from export.answers import Answers
from export.checkpoints import Exportable, load_checkpoint
from export.decisions import AnyDecision, LabelDecision, MultiLabelDecision, decision_of
from export.manifest import read_manifest
from export.repository import Names
from export.rows import RowFiles
from export.staged import StagedVersion
from serve.probe import ProbeError, require_right_answer
from serve.repository import read_repository
from verdict import Report

pytestmark = pytest.mark.heavy  # a server with five ensembles; the same forms are compared in process in test_heads

Protocol = Literal["grpc", "http"]
SOME = [*TEXTS[:10], "good [SEP] bad", " ".join(TEXTS[:4])]


def install(folder: Path, name: str, checkpoint: Exportable, decision: AnyDecision, files: RowFiles) -> None:
    """Put a version into the repository; the gate's own live part has its tests elsewhere."""
    version = StagedVersion(folder / f"staged-{name}", Names(name), checkpoint, decision, files)
    version.write()
    version.install(folder / "models", Report("add"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, serve.Server]]:
    """`tags` and `stars` as calibrated, `fixed` with the logits 2, 2, -3 for every text; the folder and its server."""
    folder = tmp_path_factory.mktemp("heads")
    (folder / "models").mkdir()
    for name, labels, problem in (
        ("tags", LABELS, "multi_label_classification"),
        ("stars", ("score",), "regression"),
    ):
        write_folder(folder / name, labels=labels, problem_type=problem)
        files = RowFiles(calibration=write_rows(folder / name, folder / f"{name}.csv"))
        checkpoint = load_checkpoint(folder / name)
        decision = checkpoint.calibrate(files, 14).decide(0.2, 0.95)
        if isinstance(decision, MultiLabelDecision):  # stricter, so that some of a few texts are undecided
            strict = tuple(dataclasses.replace(label, risk_threshold=0.2) for label in decision.labels)
            decision = dataclasses.replace(decision, labels=strict)
        install(folder, name, checkpoint, decision, files)
    fixed = fix_logits(write_folder(folder / "fixed", problem_type="multi_label_classification"), (2.0, 2.0, -3.0))
    labels = tuple(LabelDecision(name, 1.0, 0.5, 10, 0.9, 0.0, 0.04, "") for name in LABELS)
    certain = MultiLabelDecision(0.05, 0.95, 100, 0.9, labels, "")
    install(folder, "fixed", load_checkpoint(fixed), certain, RowFiles())
    for config in (folder / "models").glob("*/config.pbtxt"):  # one process for each model is enough
        config.write_text(config.read_text(encoding="utf-8").replace("count: 2", "count: 1"), encoding="utf-8")
    names = ("tags", "tags_torchscript", "stars", "stars_torchscript", "fixed")
    with serve.start(folder / "models", models=names, timeout=180) as server:
        yield folder, server


def right_answers(folder: Path, name: str) -> Answers:
    checkpoint = load_checkpoint(folder / name)
    manifest = read_manifest(folder / "models" / f"{name}_classifier" / "1")
    return checkpoint.answers(decision_of(checkpoint.kind, manifest["calibration"]), checkpoint.encoder.encode(SOME))


def ask_all(server: serve.Server, name: str, protocol: Protocol) -> list[Prediction]:
    """Each text alone by the blocking client, then all in one request by the other."""
    url = server.grpc_url if protocol == "grpc" else server.http_url

    async def together() -> list[Prediction]:
        async with AsyncClient(url, protocol=protocol, model=name, timeout=60) as client:
            return [answer for answer in await client.predict_many(SOME) if isinstance(answer, Prediction)]

    with Client(url, protocol=protocol, model=name, timeout=60) as client:
        return [*(client.predict(text) for text in SOME), *asyncio.run(together())]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", ["tags", "tags_torchscript"])
def test_several_labels_arrive_as_pytorch_has_them(
    name: str, protocol: Protocol, served: tuple[Path, serve.Server]
) -> None:
    folder, server = served
    right = right_answers(folder, "tags")
    assert right.probabilities is not None
    assert right.assigned is not None
    assert right.undecided is not None
    assert right.total is not None
    answers = ask_all(server, name, protocol)
    assert len(answers) == 2 * len(SOME)
    for i, answer in enumerate(answers):
        row = i % len(SOME)
        assert answer.probabilities is not None
        assert list(answer.probabilities) == list(LABELS)
        assert list(answer.probabilities.values()) == pytest.approx(right.probabilities[row].tolist(), abs=1e-4)
        assert answer.labels == tuple(name for name, yes in zip(LABELS, right.assigned[row], strict=True) if yes)
        assert answer.undecided == tuple(name for name, no in zip(LABELS, right.undecided[row], strict=True) if no)
        assert (answer.review, answer.reason) == ((True, "uncertain") if answer.undecided else (False, ""))
        assert answer.total == pytest.approx(float(right.total[row]), abs=1e-3)
        assert answer.label is answer.value is answer.prediction_set is answer.aleatoric is None
        assert answer.tokens is not None
        assert answer.truncated is (answer.tokens > LIMIT)
    assert {len(answer.labels or ()) for answer in answers} > {1}
    assert {answer.review for answer in answers} == {True, False}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", ["stars", "stars_torchscript"])
def test_a_number_arrives_with_its_interval(name: str, protocol: Protocol, served: tuple[Path, serve.Server]) -> None:
    folder, server = served
    right = right_answers(folder, "stars")
    assert right.value is not None
    assert right.prediction_interval is not None
    answers = ask_all(server, name, protocol)
    assert len(answers) == 2 * len(SOME)
    for i, answer in enumerate(answers):
        row = i % len(SOME)
        assert answer.value == pytest.approx(float(right.value[row]), abs=1e-3)
        assert answer.prediction_interval == pytest.approx(right.prediction_interval[row].tolist(), abs=1e-3)
        assert answer.label is answer.probabilities is answer.labels is answer.review is None
        assert answer.tokens is not None
    assert len({answer.value for answer in answers}) > 5


def test_logits_2_2_minus_3_are_881_881_047_from_the_live_server(served: tuple[Path, serve.Server]) -> None:
    _, server = served
    with Client(server.grpc_url, model="fixed") as client:
        answer = client.predict("whatever the text")
    assert answer.probabilities is not None
    assert list(answer.probabilities.values()) == pytest.approx([0.8808, 0.8808, 0.0474], abs=1e-4)
    assert answer.labels == ("anger", "joy")
    assert (answer.undecided, answer.review) == ((), False)


def test_the_command_line_prints_each_shape(
    served: tuple[Path, serve.Server], capsys: pytest.CaptureFixture[str]
) -> None:
    _, server = served
    assert ask_command(["predict", "a text", "--url", server.grpc_url, "--model", "fixed"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["labels", "total", "undecided", "text"]
    assert line.split() == ["anger,", "joy", "0.922", "–", "a", "text"]
    assert ask_command(["predict", TEXTS[0], "--url", server.grpc_url, "--model", "stars", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["prediction_interval"][0] < answer["value"] < answer["prediction_interval"][1]
    assert answer["label"] is None


@pytest.mark.parametrize("name", ["tags", "stars"])
def test_verify_compares_the_running_server_with_pytorch(
    name: str,
    served: tuple[Path, serve.Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, server = served
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    where = ("--repository", str(folder / "models"), "--url", server.grpc_url)
    assert main(["verify", name, *where, "--gate-texts", "7", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["truth"] == f"PyTorch, from {folder / name}"
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["parity_served"]["holds"] is True
    assert ("label_flips" in checks) is (name == "tags")


@pytest.mark.parametrize("name", ["tags", "stars"])
def test_the_probe_of_the_manifest_tells_a_wrong_answer(name: str, served: tuple[Path, serve.Server]) -> None:
    folder, server = served
    probe = read_repository(folder / "models").probe(name)
    assert probe is not None
    assert set(probe.answer) == ({"probabilities", "total"} if name == "tags" else {"value"})
    require_right_answer(server.http_url, probe, 30)
    for output, right in probe.answer.items():
        wrong = {**probe.answer, output: tuple(float(number) + 0.05 for number in right)}
        with pytest.raises(ProbeError, match=f"with {output} ="):
            require_right_answer(server.http_url, dataclasses.replace(probe, answer=wrong), 30)


def test_list_says_what_kind_a_version_is(
    served: tuple[Path, serve.Server], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = served
    for name, kind in (("tags", "multi_label"), ("stars", "regression")):
        capsys.readouterr()
        assert main(["list", name, "--repository", str(folder / "models"), "--json"]) == 0
        (version,) = json.loads(capsys.readouterr().out)["versions"]
        assert (version["kind"], version["pinned"]) == (kind, True)
