"""The exported module: decisions, neighbours, and what must never be served."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export.add import clear_of_rows
from export.errors import GraphError
from export.graph import ServedClassifier, example_inputs
from export.onnx_format import check_deterministic, check_loadable, open_session, write_onnx
from export.outputs import BET, CLASSIFIER_OUTPUTS, LEADING, REASONS
from export.outputs import PIECES as PIECES_OF_ONE
from export.torchscript import open_torchscript, write_torchscript
from train.decision import Decision
from train.model import BetConfig, BetForSequenceClassification
from train.model.segments import FILL

NAMES = [output.name for output in CLASSIFIER_OUTPUTS]
PIECES = [f"##{i}" if i % 3 else f"w{i}" for i in range(200)]
LABELS = ("schlecht", "mäßig", "極好")  # names travel inside the graph, in any script


def decision(risk: float = 0.8, novelty: float = 0.02, conformal: float = 0.7) -> Decision:
    return Decision(0.05, 0.95, risk, novelty, 0.99, 0.95, conformal, 100, 0.5, 0.01, 0.04, "")


def three_class_model() -> BetForSequenceClassification:
    """Random weights large enough that answers differ, and tables in which about half of the n-grams are known."""
    torch.manual_seed(0)
    config = BetConfig(
        vocab_size=200, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=16, max_tokens=64,
        head_tokens=16, hash_slots=512, num_labels=3, noise_nodes=4,
    )  # fmt: skip
    model = BetForSequenceClassification(config).eval()
    words, evidence = model.trunk.words, model.trunk.evidence
    for layer in (words.from_readout, words.summary.from_statistics, evidence.from_readout, evidence.gate):
        torch.nn.init.normal_(layer.weight, 0, 0.5)
    model.evidence.unigram.normal_(0, 0.4)
    return model


@pytest.fixture(scope="module")
def classifier() -> ServedClassifier:
    return ServedClassifier(three_class_model(), decision(), PIECES).eval()


@pytest.fixture(scope="module")
def onnx_file(classifier: ServedClassifier, untraced_exporter: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(classifier, LABELS, path, {"note": "kept"})
    return path


@pytest.fixture(scope="module")
def torchscript_file(classifier: ServedClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torchscript") / "model.pt"
    write_torchscript(classifier, LABELS, path)
    return path


def rows(*lengths: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 200, (sum(lengths),), generator=generator)
    return ids, torch.tensor(lengths, dtype=torch.int32)[:, None]


def ask(classifier: ServedClassifier, ids: torch.Tensor, lengths: torch.Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return dict(zip(BET.tensors, (t.numpy() for t in classifier(ids, lengths)), strict=True))


# PT#159973
@pytest.mark.parametrize("lengths", [(5, 0, 9), (5, 300, 9), (0, 0, 7), (64, 65, 1)])
def test_an_empty_or_over_long_row_leaves_its_neighbours_alone(
    classifier: ServedClassifier, lengths: tuple[int, ...]
) -> None:
    ids, sizes = rows(*lengths)
    together = ask(classifier, ids, sizes)
    start = 0
    for row, length in enumerate(lengths):
        if 0 < length <= 64:
            alone = ask(classifier, ids[start : start + length], torch.tensor([[length]], dtype=torch.int32))
            np.testing.assert_allclose(together["probabilities"][row], alone["probabilities"][0], atol=1e-6)
        start += length
    assert np.isfinite(together["total"]).all()


def test_a_batch_without_any_token_is_answered(classifier: ServedClassifier) -> None:
    answer = ask(classifier, torch.empty(0, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int32))
    assert np.isfinite(answer["probabilities"]).all()
    assert answer["probabilities"].shape == (2, 3)


def test_fill_at_the_end_of_a_row_counts_as_nothing(classifier: ServedClassifier) -> None:
    ids, lengths = rows(10)
    filled = torch.cat([ids, torch.full((30,), FILL)])
    plain, answer = ask(classifier, ids, lengths), ask(classifier, filled, torch.tensor([[40]], dtype=torch.int32))
    np.testing.assert_allclose(answer["probabilities"], plain["probabilities"], atol=1e-6)


def test_what_is_not_a_number_goes_to_review() -> None:
    model = three_class_model()
    with torch.no_grad():
        model.trunk.words.from_readout.weight[0, 0] = math.nan
    answer = ask(ServedClassifier(model, decision(risk=10.0, novelty=10.0), PIECES), *rows(20, 30))
    assert np.isnan(answer["total"]).all()
    assert answer["review"].all()
    assert not answer["prediction_set"].any()


def test_the_reason_says_uncertain_before_unfamiliar() -> None:
    model = three_class_model()
    batch = rows(4, 30, 60, 12, 50)
    total = ask(ServedClassifier(model, decision(), PIECES), *batch)["total"][:, 0]
    middle = float(np.sort(total)[2])
    answer = ask(ServedClassifier(model, decision(risk=middle, novelty=-1.0), PIECES), *batch)
    expected = ["uncertain" if t > middle else "unfamiliar" for t in total]
    assert [REASONS[i] for i in answer["reason_index"][:, 0]] == expected
    accepted = ask(ServedClassifier(model, decision(risk=middle, novelty=10.0), PIECES), *batch)
    assert accepted["review"][:, 0].tolist() == [bool(t > middle) for t in total]


# PT#170264, #150842, tf#18199
@pytest.mark.parametrize(
    "lengths",
    [
        (1,),
        (2, 17),
        (3, 64, 1, 30, 17, 2, 64),
        (0,),
        (100, 5),
        *((n,) * rows for n in (2, 3, 17, 64) for rows in (1, 7)),
    ],
)
def test_both_files_answer_as_pytorch_at_other_shapes_than_the_example(
    classifier: ServedClassifier, onnx_file: Path, torchscript_file: Path, lengths: tuple[int, ...]
) -> None:
    ids, sizes = rows(*lengths, seed=len(lengths))
    expected = ask(classifier, ids, sizes)
    session = open_session(onnx_file, {"intra_op_thread_count": "1"})
    by_onnx = dict(zip(NAMES, session.run(NAMES, {"input_ids": ids.numpy(), "lengths": sizes.numpy()}), strict=True))
    with torch.inference_mode():
        scripted = dict(zip(NAMES, open_torchscript(torchscript_file)(ids, sizes), strict=True))
    for answer in (by_onnx, scripted):
        for name in ("probabilities", "total", "aleatoric", "epistemic", "order_dispersion"):
            np.testing.assert_allclose(np.asarray(answer[name]), expected[name], atol=2e-6)
        np.testing.assert_allclose(np.asarray(answer["evidence_nats"]), expected["evidence_nats"], atol=1e-5)
        for name in ("review", "prediction_set", "evidence_budget"):
            np.testing.assert_array_equal(np.asarray(answer[name]), expected[name])
        assert np.ravel(answer["label"]).tolist() == [LABELS[i] for i in expected["label_index"][:, 0]]
        assert np.ravel(answer["reason"]).tolist() == [REASONS[i] for i in expected["reason_index"][:, 0]]
    written = np.array(classifier.pieces)[expected["piece_index"]].reshape(len(lengths), LEADING, PIECES_OF_ONE)
    ngrams = [["".join(pieces) for pieces in row] for row in written.tolist()]
    assert ["".join(row) for row in by_onnx["evidence_ngrams"].tolist()] == ["".join(row) for row in ngrams]
    assert scripted["evidence_ngrams"] == ["\n".join(row) for row in ngrams]


def test_the_onnx_file_says_what_it_is(onnx_file: Path) -> None:
    model = onnx.load(onnx_file)
    assert [output.name for output in model.graph.output] == NAMES
    assert {entry.key: entry.value for entry in model.metadata_props}["note"] == "kept"
    assert "ragged" in model.doc_string.lower()
    shapes = {o.name: [d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in model.graph.output}
    assert shapes["probabilities"][1] == len(LABELS)
    assert shapes["label"][1] == 1
    assert isinstance(shapes["label"][0], str)


# server#8001, ORT#14932
@pytest.mark.parametrize(
    ("ir_version", "opset", "named"), [(99, 18, "IR version 99"), (10, 26, "opset 26"), (10, 17, "opset 17")]
)
def test_a_file_that_the_oldest_server_cannot_load_is_refused_naming_both(
    ir_version: int, opset: int, named: str
) -> None:
    model = _graph(helper.make_node("Identity", ["x"], ["y"]), opset)
    model.ir_version = ir_version
    with pytest.raises(GraphError, match=rf"{named}.*ONNX Runtime 1\.20"):
        check_loadable(model)


# onnx#3753, ORT#5549: dropout that is asked for while answering is refused, never a variation of zero
@pytest.mark.parametrize("operator", ["RandomNormalLike", "Bernoulli", "Dropout"])
def test_a_graph_that_draws_random_numbers_is_refused(operator: str) -> None:
    inputs = ["x", "ratio", "training"] if operator == "Dropout" else ["x"]
    with pytest.raises(GraphError, match=f"{operator} .*evaluation mode"):
        check_deterministic(_graph(helper.make_node(operator, inputs, ["y"]), 18))


def test_a_random_operator_is_found_inside_a_branch() -> None:
    inner = _graph(helper.make_node("RandomUniformLike", ["x"], ["y"]), 18).graph
    branch = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    with pytest.raises(GraphError, match="RandomUniformLike"):
        check_deterministic(_graph(branch, 18))


def test_no_device_of_the_exporting_machine_remains_in_the_trace(torchscript_file: Path) -> None:
    graph = open_torchscript(torchscript_file).inlined_graph
    used = {
        str(node.output().toIValue())
        for node in graph.nodes()
        if node.kind() == "prim::Constant" and node.output().type().kind() == "DeviceObjType" and node.output().uses()
    }
    assert not used
    assert "prim::device" in {node.kind() for node in graph.nodes()}


def test_a_model_that_drops_out_while_answering_is_refused(tmp_path: Path) -> None:
    class Restless(ServedClassifier):
        def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
            answer = super().forward(input_ids, lengths)
            return (answer[0], torch.nn.functional.dropout(answer[1], 0.1, training=True), *answer[2:])

    with pytest.raises(GraphError, match="random numbers"):
        write_torchscript(Restless(three_class_model(), decision(), PIECES), LABELS, tmp_path / "model.pt")


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60),
    st.integers(0, 59),
)
def test_the_conformal_threshold_leaves_its_row_and_decides_every_row_as_before(
    scores: list[float], place: int
) -> None:
    chosen = 1 - scores[place % len(scores)]
    moved = clear_of_rows(decision(conformal=chosen), scores).conformal_threshold
    assert [1 - p <= moved for p in scores] == [1 - p <= chosen for p in scores]
    above = [1 - p for p in scores if 1 - p > chosen]
    if chosen < 1 and above and min(above) - chosen > 1e-9:
        assert moved not in [1 - p for p in scores]


def test_the_example_has_rows_of_different_lengths_and_fill() -> None:
    ids, lengths = example_inputs()
    assert int(lengths.sum()) == len(ids)
    assert len(set(lengths[:, 0].tolist())) == len(lengths)
    assert (ids == FILL).any()


def _graph(node: onnx.NodeProto, opset: int) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([node], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
