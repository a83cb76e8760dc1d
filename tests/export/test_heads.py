"""Multi-label and regression heads: activation, decisions, and a gate that can fail."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from tiny_hugging_face import LABELS, TEXTS, fix_logits, write_folder, write_rows
from transformers import AutoModelForSequenceClassification

from export.__main__ import main
from export.answers import Answers, compare
from export.calibrations import MultiLabelCalibration, RegressionCalibration
from export.checkpoints import gate_texts, load_checkpoint
from export.decisions import LabelDecision, MultiLabelDecision, RegressionDecision, decision_of
from export.heads import MultiLabelHead, RegressionHead
from export.hugging_face import HuggingFaceCheckpoint
from export.onnx_format import open_session
from export.outputs import KINDS, MULTI_LABEL, REGRESSION, SOFTMAX
from export.parity import (
    Parity,
    onnx_executor,
    run,
    scores_apart,
    tolerances_of,
    torch_executor,
    torchscript_executor,
)
from export.reference import answers_of_logits
from export.repository import Names, Pins, classifier_config, ensemble_config
from export.rows import RowFiles
from export.staged import StagedVersion
from export.texts import GateText
from export.torchscript import open_torchscript
from train.decision import NOTHING, conformal_threshold
from train.errors import CalibrationError
from verdict import Report

KINDS_MADE = {"multi_label": ("multi_label_classification", LABELS), "regression": ("regression", ("score",))}


def one_label(name: str, temperature: float = 1.0, threshold: float = 0.5) -> LabelDecision:
    return LabelDecision(name, temperature, threshold, 10, 0.9, 0.0, 0.04, "")


def multi_label_decision(*labels: LabelDecision) -> MultiLabelDecision:
    return MultiLabelDecision(0.05, 0.95, 100, 0.9, labels, "")


@dataclasses.dataclass(frozen=True)
class Made:
    version: StagedVersion
    texts: list[GateText]
    reference: Answers

    def verdict(self, side: str, answers: Callable[..., Answers]) -> set[str]:
        """Names of the checks that one side misses."""
        checkpoint = self.version.checkpoint
        parity = Parity(self.reference, self.texts, tolerances_of(checkpoint.kind, len(checkpoint.label_names)))
        parity.check(side, answers)
        report = Report("add")
        parity.add_to(report)
        return {check.name for check in report.checks if check.holds is False}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A staged version of a kind, its gate's texts and PyTorch's answers; made once."""
    versions: dict[str, Made] = {}

    def make(kind: str) -> Made:
        if kind not in versions:
            problem, labels = KINDS_MADE[kind]
            folder = tmp_path_factory.mktemp(kind)
            write_folder(folder / "model", labels=labels, problem_type=problem)
            files = RowFiles(calibration=write_rows(folder / "model", folder / "rows.csv"))
            checkpoint = load_checkpoint(folder / "model")
            decision = checkpoint.calibrate(files, 14).decide(0.2, 0.95)
            version = StagedVersion(folder / "staged", Names("theirs"), checkpoint, decision, files)
            version.write()
            texts = gate_texts(checkpoint, files, 21)
            versions[kind] = Made(version, texts, checkpoint.answers(decision, [text.ids for text in texts]))
        return versions[kind]

    return make


@pytest.mark.parametrize("kind", KINDS_MADE)
def test_every_form_answers_as_pytorch_alone_joined_and_filled(kind: str, made: Callable[[str], Made]) -> None:
    given = made(kind)
    checkpoint = given.version.checkpoint
    assert checkpoint.kind.name == kind
    for executor in (
        torch_executor(given.version.classifier, checkpoint.kind, checkpoint.label_names),
        torchscript_executor(open_torchscript(given.version.torchscript), checkpoint.kind),
        onnx_executor(open_session(given.version.onnx, {})),
    ):
        assert given.verdict("side", executor) == set()
    assert set(given.reference.given()) == {output.name for output in KINDS[kind].outputs}
    some = given.reference.probabilities if kind == "multi_label" else given.reference.value
    assert some is not None
    assert some.std() > 0.1  # a model that always says the same would prove little


def test_multi_label_is_a_sigmoid_of_each_label_and_never_a_softmax(made: Callable[[str], Made]) -> None:
    checkpoint = made("multi_label").version.checkpoint
    (ids,) = checkpoint.encoder.encode(TEXTS[:1])
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint.path).eval()
    logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0].detach()
    decision = multi_label_decision(one_label("anger", 1.0), one_label("joy", 2.0), one_label("neither", 0.5))
    answer = checkpoint.answers(decision, [ids])
    right = (logits / torch.tensor([1.0, 2.0, 0.5])).sigmoid()
    assert answer.probabilities is not None
    assert answer.total is not None
    np.testing.assert_allclose(answer.probabilities[0], right, atol=1e-5)
    entropy = torch.distributions.Bernoulli(right).entropy().sum()
    assert answer.total[0] == pytest.approx(float(entropy), abs=1e-5)


def test_regression_is_the_value_as_it_is(made: Callable[[str], Made]) -> None:
    version = made("regression").version
    model = AutoModelForSequenceClassification.from_pretrained(version.checkpoint.path).eval()
    (ids,) = version.checkpoint.encoder.encode(TEXTS[:1])
    right = float(model(input_ids=torch.from_numpy(ids)[None]).logits[0, 0].detach())
    answer = version.checkpoint.answers(version.decision, [ids])
    assert answer.value is not None
    assert answer.prediction_interval is not None
    assert answer.value[0] == pytest.approx(right, abs=1e-4)
    assert isinstance(version.decision, RegressionDecision)
    half = version.decision.half_width
    np.testing.assert_allclose(answer.prediction_interval[0], [right - half, right + half], atol=1e-4)


def test_logits_2_2_minus_3_are_881_881_047_in_every_form(tmp_path: Path) -> None:
    """A softmax would say .499, .499, .003."""
    folder = write_folder(tmp_path / "model", problem_type="multi_label_classification")
    checkpoint = load_checkpoint(fix_logits(folder, (2.0, 2.0, -3.0)))
    decision = multi_label_decision(*(one_label(name) for name in LABELS))
    version = StagedVersion(tmp_path / "staged", Names("theirs"), checkpoint, decision)
    version.write()
    documents = checkpoint.encoder.encode(TEXTS[:3])
    groups = [([0, 1, 2], False)]
    forms = {
        "pytorch": checkpoint.answers(decision, documents),
        "eager": run(torch_executor(version.classifier, MULTI_LABEL, LABELS), documents, groups),
        "torchscript": run(torchscript_executor(open_torchscript(version.torchscript), MULTI_LABEL), documents, groups),
        "onnx": run(onnx_executor(open_session(version.onnx, {})), documents, groups),
    }
    for name, answers in forms.items():
        assert answers.probabilities is not None
        assert answers.assigned is not None
        np.testing.assert_allclose(answers.probabilities, [[0.8808, 0.8808, 0.0474]] * 3, atol=1e-4, err_msg=name)
        assert answers.assigned.tolist() == [[True, True, False]] * 3


# The gate fails on each of these, and holds without them (above).


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    (found,) = (tensor for tensor in model.graph.initializer if tensor.name.endswith(name))
    return found


def change(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def softmax_for_sigmoid(model: onnx.ModelProto) -> None:
    (node,) = (node for node in model.graph.node if "probabilities" in node.output)
    assert node.op_type == "Sigmoid"
    node.op_type = "Softmax"
    node.attribute.append(helper.make_attribute("axis", -1))


def one_temperature_wrong(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "temperatures")
    change(tensor, numpy_helper.to_array(tensor) * np.array([1, 1.05, 1]))


def labels_swapped(model: onnx.ModelProto) -> None:
    for name in ("classifier.weight", "classifier.bias"):
        tensor = initializer(model, name)
        change(tensor, numpy_helper.to_array(tensor)[[1, 0, 2]])


def one_threshold_wrong(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "risk_thresholds")
    change(tensor, np.array([*numpy_helper.to_array(tensor)[:2], -1]))


def one_weight_changed(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "classifier.bias")
    change(tensor, numpy_helper.to_array(tensor) + np.float32(0.01))


def sigmoid_of_the_value(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.output[:] = ["raw" if name == "value" else name for name in node.output]
        node.input[:] = ["raw" if name == "value" else name for name in node.input]
    model.graph.node.append(helper.make_node("Sigmoid", ["raw"], ["value"]))


def interval_too_narrow(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "half_width")
    change(tensor, numpy_helper.to_array(tensor) * np.float32(0.95))


def not_a_number(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "classifier.bias")
    change(tensor, numpy_helper.to_array(tensor) * np.nan)


@pytest.mark.parametrize(
    ("kind", "break_it", "missed"),
    [
        ("multi_label", softmax_for_sigmoid, "parity_onnx"),
        ("multi_label", one_temperature_wrong, "parity_onnx"),
        ("multi_label", labels_swapped, "label_flips"),
        ("multi_label", one_threshold_wrong, "undecided_flips"),
        ("multi_label", one_weight_changed, "parity_onnx"),
        ("multi_label", not_a_number, "non_finite"),
        ("regression", one_weight_changed, "parity_onnx"),
        ("regression", sigmoid_of_the_value, "parity_onnx"),
        ("regression", interval_too_narrow, "parity_onnx"),
        ("regression", not_a_number, "non_finite"),
    ],
)
def test_a_broken_graph_does_not_pass_the_gate(
    kind: str,
    break_it: Callable[[onnx.ModelProto], None],
    missed: str,
    made: Callable[[str], Made],
    tmp_path: Path,
) -> None:
    given = made(kind)
    model = onnx.load(given.version.onnx)
    break_it(model)
    onnx.save(model, tmp_path / "model.onnx")
    assert missed in given.verdict("onnx", onnx_executor(open_session(tmp_path / "model.onnx", {})))


@pytest.mark.parametrize("kind", KINDS_MADE)
def test_the_command_refuses_a_broken_graph_and_nothing_enters_the_repository(
    kind: str,
    made: Callable[[str], Made],
    tmp_path: Path,
    break_onnx: Callable[[Callable[[onnx.ModelProto], None]], None],
) -> None:
    version = made(kind).version
    break_onnx(one_weight_changed)
    arguments = ["add", str(version.checkpoint.path), "--calibration", str(version.files.calibration)]
    where = ["--name", "theirs", "--repository", str(tmp_path / "models")]
    assert main([*arguments, *where, "--max-error", "0.2", "--gate-texts", "7"]) == 1
    report = json.loads((tmp_path / "build" / "add" / "report.json").read_text())
    assert "parity_onnx" in {check["name"] for check in report["checks"] if check["holds"] is False}
    said = {"calibration_accuracy", "accepted_share"} if kind == "multi_label" else {"calibration_mae"}
    assert said <= {check["name"] for check in report["checks"]}
    assert not (tmp_path / "models" / "theirs").exists()


def test_an_output_that_one_side_lacks_is_a_difference_everywhere(made: Callable[[str], Made]) -> None:
    reference = made("multi_label").reference
    lacking = compare(reference, dataclasses.replace(reference, undecided=None, assigned=None, probabilities=None))
    assert lacking.undecided_flips == lacking.label_flips == len(reference)
    assert lacking.probabilities == math.inf
    assert compare(reference, reference).answer == 0


def test_a_values_difference_is_told_in_units_of_the_values_spread() -> None:
    values = np.linspace(1900, 2000, 101, dtype=np.float32)
    years = Answers(value=values, prediction_interval=np.stack([values - 5, values + 5], axis=1))
    spread = values.std()
    shifted = dataclasses.replace(years, value=values + np.float32(0.5))
    assert compare(years, shifted).value == pytest.approx(0.5 / spread, rel=0.01)
    nudged = dataclasses.replace(years, value=np.nextafter(values, np.float32(3000)))
    assert compare(years, nudged).value == 0  # float32 resolves no better
    nowhere = dataclasses.replace(years, value=np.full(101, np.inf, dtype=np.float32))
    assert compare(nowhere, nowhere).value == math.inf  # two sides that overflow alike do not agree


def test_nll_and_calibration_error_of_labels_are_means_over_their_yes_or_no() -> None:
    truth = np.array([[True, False], [False, False], [True, True], [False, True]])
    good = np.where(truth, 0.9, 0.1).astype(np.float32)
    worse = good.copy()
    worse[:, 1] = 1 - worse[:, 1]
    nll, ece = scores_apart(good, worse, truth)
    assert nll == pytest.approx((math.log(0.9) - math.log(0.1)) / 2, rel=1e-5)
    assert ece == pytest.approx((0.9 - 0.1) / 2, rel=1e-5)
    assert scores_apart(good, good, truth) == (0, 0)


# Decisions


def drawn(rows: int, times: tuple[float, ...], seed: int = 0) -> MultiLabelCalibration:
    """Labels drawn from the probabilities, and logits that are so many times too sure."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 4, (rows, len(times)))
    truth = random.random(logits.shape) < 1 / (1 + np.exp(-logits))
    names = tuple(f"label {i}" for i in range(len(times)))
    return MultiLabelCalibration(names, (logits * times).astype(np.float32), truth)


def test_each_label_has_the_temperature_that_undoes_how_much_too_sure_it_is() -> None:
    decision = drawn(8000, (0.5, 1.0, 3.0)).decide(0.1, 0.95)
    assert [label.temperature for label in decision.labels] == pytest.approx([0.5, 1.0, 3.0], rel=0.1)


def test_the_budget_holds_for_each_label_by_itself_on_rows_that_nobody_saw() -> None:
    decision = drawn(4000, (1.0, 2.0)).decide(0.05, 0.95)
    fresh = drawn(200_000, (1.0, 2.0), seed=1)
    answers = answers_of_logits(fresh.logits, decision, fresh.label_names)
    assert answers.assigned is not None
    assert answers.undecided is not None
    for index, label in enumerate(decision.labels):
        decided = ~answers.undecided[:, index]
        assert 0.3 < decided.mean() < 1
        assert (answers.assigned != fresh.truth)[decided, index].mean() <= 0.05
        assert label.decided_error_bound <= 0.05
        assert label.decided_share == pytest.approx(decided.mean(), abs=0.05)


def test_a_label_whose_budget_cannot_be_proven_is_always_undecided_and_named() -> None:
    good = drawn(1000, (1.0, 1.0))
    noise = np.random.default_rng(2).random(len(good.truth)) < 0.5
    guessing = dataclasses.replace(good, truth=np.stack([good.truth[:, 0], noise], axis=1))
    decision = guessing.decide(0.05, 0.95)
    assert decision.labels[0].risk_threshold > 0
    assert decision.labels[1].risk_threshold == NOTHING
    assert decision.message.startswith("label 'label 1' is always undecided: ")
    assert decision.accepted_share == 0
    answers = answers_of_logits(guessing.logits, decision, guessing.label_names)
    assert answers.undecided is not None
    assert answers.review is not None
    assert answers.undecided[:, 1].all()
    assert not answers.undecided[:, 0].all()
    assert answers.review.all()


@pytest.mark.parametrize("rows", [19, 20, 40, 100, 999])
def test_the_interval_has_the_rank_of_split_conformal_prediction(rows: int) -> None:
    residuals = np.random.default_rng(rows).permutation(np.arange(1.0, rows + 1))
    decision = RegressionCalibration(Path("rows.csv"), np.zeros(rows), residuals).decide(0.05, 0.95)
    assert decision.half_width == math.ceil(round((rows + 1) * 0.95, 9)) == conformal_threshold(residuals, 0.95)


def test_rows_too_few_for_the_level_are_refused_with_the_number_it_takes() -> None:
    calibration = RegressionCalibration(Path("rows.csv"), np.zeros(18), np.ones(18))
    with pytest.raises(CalibrationError, match=r"rows.csv holds 18 rows.* at least 19"):
        calibration.decide(0.05, 0.95)


@pytest.mark.parametrize("kind", KINDS_MADE)
def test_a_decision_comes_back_from_its_manifest(kind: str, made: Callable[[str], Made]) -> None:
    version = made(kind).version
    record = json.loads(json.dumps(version.manifest["calibration"]))
    assert decision_of(KINDS[version.manifest["kind"]], record) == version.decision


def test_what_is_no_number_is_undecided_and_extreme_logits_are_certain() -> None:
    head = MultiLabelHead(multi_label_decision(one_label("a"), one_label("b")))
    with torch.no_grad():
        outputs = head(torch.tensor([[math.nan, 3.0], [200.0, -200.0]]))
    probabilities, assigned, total, undecided, review, reason = (tensor.tolist() for tensor in outputs)
    assert undecided == [[True, False], [False, False]]
    assert (review, reason) == ([[True], [False]], [[1], [0]])
    assert (probabilities[1], assigned[1], total[1]) == ([1, 0], [True, False], [0])


def test_configurations_declare_what_each_kind_answers() -> None:
    names = Names("theirs")
    for kind, labels in ((MULTI_LABEL, LABELS), (REGRESSION, ("score",)), (SOFTMAX, LABELS)):
        step = {o.name: list(o.dims) for o in classifier_config(names, len(labels), kind=kind).output}
        ensemble = {o.name: list(o.dims) for o in ensemble_config(names, labels, Pins(1), kind=kind).output}
        assert step == {name: dims for name, dims in ensemble.items() if name not in ("tokens", "truncated")}
        assert list(step) == [output.name for output in kind.outputs]
    regression = {o.name: list(o.dims) for o in classifier_config(names, 1, kind=REGRESSION).output}
    assert regression == {"value": [1], "prediction_interval": [2]}


def test_a_head_of_one_output_may_be_a_single_label_by_its_sigmoid(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", labels=("toxic",), problem_type="multi_label_classification")
    checkpoint = load_checkpoint(fix_logits(folder, (2.0,)))
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    assert checkpoint.kind is MULTI_LABEL
    answers = checkpoint.answers(multi_label_decision(one_label("toxic")), checkpoint.encoder.encode(TEXTS[:1]))
    assert answers.probabilities is not None
    assert answers.probabilities.tolist() == [[pytest.approx(0.8808, abs=1e-4)]]


def test_a_regression_head_gives_the_value_and_both_ends() -> None:
    head = RegressionHead(RegressionDecision(0.95, 0.5, 100, 0.2, 1.0))
    value, interval = head(torch.tensor([[2.0], [-1.0]]))
    assert value.tolist() == [[2], [-1]]
    assert interval.tolist() == [[1.5, 2.5], [-1.5, -0.5]]
