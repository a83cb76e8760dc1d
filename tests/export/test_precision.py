"""Lower precisions and faster forms of a graph: measured, compared, and never served in silence."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from bet_client import Client
from onnx import numpy_helper
from tiny_hugging_face import TEXTS, write_folder, write_rows
from transformers import AutoModelForSequenceClassification

import serve
from export import add as command
from export import versions
from export.__main__ import main
from export.add import AddOptions, add, clear_of_rows
from export.answers import Answers
from export.candidates import Candidate, Choice, candidates, choose
from export.checkpoints import Exportable, gate_texts, load_checkpoint
from export.encoder import Ids
from export.hugging_face import HuggingFaceCheckpoint
from export.manifest import read_manifest
from export.onnx_format import open_session
from export.parity import PADDED_TOLERANCES, onnx_executor, run
from export.precision import FP16, FP32, INT8, Lowered, Precision, lowered
from export.repository import Names, level_of, read_config
from export.rows import RowFiles
from export.staged import StagedVersion
from export.texts import GateText
from serve.cpu import cpu_flags, other_processor
from serve.repository import read_repository
from train.calibration import Calibration
from train.decision import Decision

NAMES = Names("theirs")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT whose weights are as narrow as trained ones, `wild` beside it with weights that 8 bits cannot hold."""
    folder = tmp_path_factory.mktemp("precision")
    for name, times in (("wild", 1.0), ("model", 0.1)):
        write_folder(folder / name, "bert")
        model = AutoModelForSequenceClassification.from_pretrained(folder / name)
        with torch.no_grad():
            model.classifier.weight.mul_(times)
            model.classifier.bias.mul_(times)
        model.save_pretrained(folder / name)
        write_rows(folder / name, folder / f"{name}.csv")
    _without_the_undecided(folder / "model", folder / "model.csv")
    return folder


def _without_the_undecided(model: Path, path: Path) -> None:
    """Leave out the half of the rows that a random model is nearly undecided about: any rounding flips some of them."""
    checkpoint = load_checkpoint(model)
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    logits = [np.sort(checkpoint.logits([ids])[0]) for ids in checkpoint.encoder.encode([row["text"] for row in rows])]
    decided = np.argsort([row[-2] - row[-1] for row in logits])[: len(rows) // 2]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("text", "label"))
        writer.writeheader()
        writer.writerows(rows[i] for i in sorted(decided))


def options(theirs: Path, repository: Path, precision: Precision, **more: object) -> AddOptions:
    return replace(
        AddOptions(
            theirs / "model",
            name=NAMES.ensemble,
            repository=repository,
            files=RowFiles(calibration=theirs / "model.csv"),
            max_error=0.6,
            gate_texts=8,
            precision=precision,
        ),
        **more,  # type: ignore[arg-type]
    )


def _decide(checkpoint: Exportable, files: RowFiles) -> Decision:
    """As `add` does: with a conformal threshold that is no row's own score, which rounding would move."""
    calibration = checkpoint.calibrate(files, 5)
    assert isinstance(calibration, Calibration)
    return clear_of_rows(calibration.decide(max_error=0.6), calibration.true_probability)


def stage(theirs: Path, precision: Precision, to: Path) -> StagedVersion:
    checkpoint, files = load_checkpoint(theirs / "model"), RowFiles(calibration=theirs / "model.csv")
    full = _decide(checkpoint, files)
    low, decision = None, full
    if precision is not FP32:
        low = Lowered(precision, lowered(checkpoint, precision, "cpu"), full)
        decision = _decide(low.checkpoint, files)
    version = StagedVersion(to, NAMES, checkpoint, decision, files, low)
    version.write()
    return version


@pytest.fixture(scope="module")
def lower(theirs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StagedVersion]:
    """A staged version of each lower precision."""
    folder = tmp_path_factory.mktemp("lower")
    return {precision.name: stage(theirs, precision, folder / precision.name) for precision in (FP16, INT8)}


@pytest.mark.parametrize("precision", [FP16, INT8], ids=lambda p: p.name)
def test_a_row_of_a_lower_precision_is_answered_as_if_it_were_alone(
    precision: Precision, lower: dict[str, StagedVersion]
) -> None:
    version = lower[precision.name]
    execute = onnx_executor(open_session(version.onnx, {}))
    documents = [*version.checkpoint.encoder.encode(TEXTS[:12]), np.array([3], np.int64)]
    assert len({len(ids) for ids in documents}) > 3
    alone = run(execute, documents, [([i], False) for i in range(len(documents))])
    for filled in (False, True):
        together = run(execute, documents, [(list(range(len(documents)))[::-1], filled)])
        np.testing.assert_array_equal(together.probabilities, alone.probabilities)
        np.testing.assert_array_equal(together.total, alone.total)
        assert together.label.tolist() == alone.label.tolist()
    truth = version.truth(documents)
    np.testing.assert_allclose(alone.probabilities, truth.probabilities, atol=1e-5)
    full = version.checkpoint.answers(version.full_decision, documents)
    assert 0 < np.abs(alone.probabilities - full.probabilities).max() < precision.tolerance


def test_an_empty_row_has_an_answer_and_leaves_its_neighbours_alone(lower: dict[str, StagedVersion]) -> None:
    execute = onnx_executor(open_session(lower["int8"].onnx, {}))
    one, other = lower["int8"].checkpoint.encoder.encode(TEXTS[3:5])
    rows: list[Ids] = [one, np.empty(0, np.int64), np.tile(one, 30), other]
    together = execute(np.concatenate(rows), np.array([[len(row)] for row in rows], np.int32))
    alone = run(execute, [one, other], [([0], False), ([1], False)])
    np.testing.assert_array_equal(together.probabilities[[0, 3]], alone.probabilities)
    assert np.isfinite(together.probabilities).all()


def test_half_precision_is_in_the_weights_and_not_in_the_tail(lower: dict[str, StagedVersion]) -> None:
    (loop,) = (node for node in onnx.load(lower["fp16"].onnx).graph.node if node.op_type == "Loop")
    body = loop.attribute[0].g
    for name in ("temperature", "risk_threshold", "conformal_threshold"):
        (tensor,) = (t for t in body.initializer if t.name.endswith(name))
        assert tensor.data_type == onnx.TensorProto.FLOAT
    large = [t for t in body.initializer if np.prod(t.dims) > 500]
    assert large
    assert {t.data_type for t in large} == {onnx.TensorProto.FLOAT16}


def test_weights_that_8_bits_cannot_hold_are_refused_with_the_difference(theirs: Path, tmp_path: Path) -> None:
    wild = options(
        theirs, tmp_path / "models", INT8, checkpoint=theirs / "wild", files=RowFiles(calibration=theirs / "wild.csv")
    )
    added = add(wild)
    assert added.version is None
    checks = {check.name: check for check in added.report.checks}
    assert checks["precision_difference"].holds is False
    assert checks["precision_difference"].value is not None
    assert checks["precision_difference"].value > INT8.tolerance
    assert not (tmp_path / "models" / "theirs").exists()


def changed_weight(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name.endswith("classifier.bias"))
    values = numpy_helper.to_array(tensor).copy()
    values[0] += np.float32(0.01)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def wrong_epsilon(model: onnx.ModelProto) -> None:
    norms = [n for n in model.graph.node if n.op_type in ("SkipLayerNormalization", "EmbedLayerNormalization")]
    assert norms  # fused: the fusion keeps an epsilon of its own
    for node in norms:
        (epsilon,) = (a for a in node.attribute if a.name == "epsilon")
        epsilon.f = 0.1


def not_loadable(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"


@pytest.fixture(scope="module")
def plain(
    theirs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StagedVersion, list[GateText], Answers, list[Candidate]]:
    folder = tmp_path_factory.mktemp("plain")
    version = stage(theirs, FP32, folder / "staged")
    texts = gate_texts(version.checkpoint, version.files, 16)
    config = version.checkpoint.record(version.files)["config"]
    forms = candidates(version.onnx, folder, config, device="cpu", level=None, fuse=True)
    return version, texts, version.truth([text.ids for text in texts]), forms


def chosen(
    plain: tuple[StagedVersion, list[GateText], Answers, list[Candidate]], forms: Sequence[Candidate]
) -> tuple[Choice, dict[str, str]]:
    _, texts, truth, _ = plain
    choice = choose(forms, {"intra_op_thread_count": "1"}, texts, truth, PADDED_TOLERANCES)
    return choice, {measured.name: measured.refused for measured in choice.measured}


def test_levels_and_fused_operators_are_candidates_and_all_hold(
    plain: tuple[StagedVersion, list[GateText], Answers, list[Candidate]],
) -> None:
    *_, forms = plain
    assert [form.name for form in forms] == ["all", "basic", "extended", "fused"]
    assert {node.domain for node in onnx.load(forms[3].graph).graph.node} == {"", "com.microsoft"}
    choice, refused = chosen(plain, forms)
    assert not any(refused.values())
    assert [m.name for m in choice.measured] == ["all", "basic", "extended", "fused", "all again"]
    assert all(m.low <= m.ratio <= m.high for m in choice.measured)
    assert choice.measured[0].ratio == 1


@pytest.mark.parametrize(
    ("break_it", "says"),
    [(changed_weight, "probabilities differs by"), (wrong_epsilon, "probabilities differs by"), (not_loadable, "load")],
)
def test_a_broken_candidate_is_refused_with_its_difference_however_fast(
    break_it: object,
    says: str,
    plain: tuple[StagedVersion, list[GateText], Answers, list[Candidate]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    *_, forms = plain
    model = onnx.load(forms[3].graph)
    break_it(model)  # type: ignore[operator]
    onnx.save(model, tmp_path / "broken.onnx")

    def broken_is_fast(sessions: Sequence[str], against: str, documents: object) -> dict[str, np.ndarray]:
        return {name: np.full(10, 0.1 if name == "broken" else 1.0) for name in sessions}

    monkeypatch.setattr("export.candidates._ratios", broken_is_fast)
    choice, refused = chosen(plain, [forms[0], Candidate("broken", tmp_path / "broken.onnx", "all")])
    assert says in refused["broken"]
    assert choice.served.name == "all"


@pytest.mark.parametrize(("seconds", "served"), [(0.8, "extended"), (0.96, "all"), (1.1, "all")])
def test_only_what_is_faster_by_more_than_the_noise_is_served(
    seconds: float,
    served: str,
    plain: tuple[StagedVersion, list[GateText], Answers, list[Candidate]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    *_, forms = plain
    noise = np.linspace(0.95, 1.05, 11)
    rounds = {"all": np.ones(11), "all again": noise, "extended": noise * seconds}
    monkeypatch.setattr("export.candidates._ratios", lambda *_: rounds)
    choice, _ = chosen(plain, [forms[0], forms[2]])
    assert choice.served.name == served


@pytest.mark.heavy
def test_the_served_level_is_in_the_configuration_and_other_versions_of_the_name_keep_to_it(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = command.choose

    def prefer_basic(forms: Sequence[Candidate], *rest: object) -> Choice:
        choice = measure(forms, *rest)  # type: ignore[arg-type]
        return replace(choice, served=next(form for form in forms if form.level == "basic"))

    monkeypatch.setattr(command, "choose", prefer_basic)
    models = tmp_path / "models"
    assert add(options(theirs, models, FP32)).version == 1
    config = models / NAMES.classifier / "config.pbtxt"
    assert level_of(read_config(config)) == "basic"
    assert read_config(config).optimization.graph.level == -1
    manifest = read_manifest(models / NAMES.classifier / "1")
    assert (manifest["graph_level"], manifest["precision"], manifest["cpu_flags"]) == ("basic", "fp32", cpu_flags())
    assert manifest["speed"]["served"] == "basic"
    assert {"ratio", "ratio_10", "ratio_90", "difference", "refused"} <= manifest["speed"]["candidates"][0].keys()
    parity = json.loads((models / NAMES.classifier / "1" / "parity.json").read_text())
    assert parity["speed"] == manifest["speed"]
    assert versions.level_of_others(models, NAMES) == "basic"
    checkpoint = load_checkpoint(theirs / "model")
    forms = candidates(
        models / NAMES.classifier / "1" / "model.onnx",
        tmp_path,
        checkpoint.record(RowFiles())["config"],
        device="cpu",
        level=versions.level_of_others(models, NAMES),
        fuse=False,
    )
    assert [form.level for form in forms] == ["basic"]


@pytest.mark.heavy
@pytest.mark.parametrize("precision", [FP16, INT8], ids=lambda p: p.name)
def test_the_live_triton_serves_a_lower_precision(
    precision: Precision, theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    added = add(options(theirs, models, precision))
    assert added.version == 1, added.report.table()
    manifest = read_manifest(models / NAMES.classifier / "1")
    assert manifest["precision"] == manifest["training"]["served"] == precision.name
    assert manifest["torchscript"]["precision"] == "fp32"
    assert manifest["speed"]["against"] == "fp32"
    assert manifest["parity"]["precision_difference"] < precision.tolerance
    with serve.start(models, timeout=120) as server:
        with (
            Client(server.grpc_url, model="theirs") as client,
            Client(server.grpc_url, model="theirs_torchscript") as full,
        ):
            alone = [client.predict(text) for text in TEXTS[:8]]
            assert client.predict_many(TEXTS[:8]) == alone  # to the last bit, whatever the neighbours
            # Each ensemble's budgets are proven on its own answers.
            for asked, decided in ((client, manifest["calibration"]), (full, manifest["torchscript"]["calibration"])):
                assert asked.budgets()[-1].risk_threshold == decided["risk_threshold"]
                assert asked.budgets()[-1].accepted_share == decided["accepted_share"]
            assert [answer.probabilities for answer in alone] != [
                full.predict(text).probabilities for text in TEXTS[:8]
            ]
        capsys.readouterr()
        where = ["--repository", str(models), "--url", server.grpc_url, "--gate-texts", "8", "--json"]
        assert main(["verify", "theirs", *where]) == 0
        assert f"it is in {precision.name}" in json.loads(capsys.readouterr().out)["truth"]


def test_a_gpu_that_is_not_there_is_wrong_use(theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["add", str(theirs / "model"), "--calibration", str(theirs / "model.csv")]
    assert main([*arguments, "--repository", str(tmp_path / "models"), "--device", "gpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --device gpu needs an NVIDIA GPU")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_our_own_checkpoint_is_never_served_in_another_precision(
    precision: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["add", str(tiny_checkpoint), "--repository", str(tmp_path), "--precision", precision]) == 2
    assert f"what {precision} rounds away" in capsys.readouterr().err
    assert not (tmp_path / "bet").exists()


# ORT#14642, #5849
def test_another_processor_is_said_before_it_answers(lower: dict[str, StagedVersion], tmp_path: Path) -> None:
    folder = shutil.copytree(lower["int8"].folder, tmp_path / "models")
    content = read_repository(folder)
    assert not content.processor_warning("theirs")
    manifest = folder / NAMES.tokenizer / "1" / "manifest.json"
    altered = {**json.loads(manifest.read_text()), "cpu_flags": ["another_instruction_set"]}
    manifest.write_text(json.dumps(altered))
    assert "another_instruction_set" in content.processor_warning("theirs")
    assert not content.processor_warning("theirs_torchscript")  # in fp32
    assert not other_processor({**altered, "precision": "fp32"})
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: some\nflags\t\t: fpu avx2 avx512_vnni amx_int8 rdtscp\n")
    assert cpu_flags(info) == ["amx_int8", "avx2", "avx512_vnni"]
    assert cpu_flags(tmp_path / "none") == []
