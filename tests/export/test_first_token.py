"""A head that reads one token out: the others are not computed behind the last attention, and the answer stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_hugging_face import FAMILIES, LIMIT, without_limit, write_folder

from export import padded_onnx
from export.checkpoints import load_checkpoint
from export.first_token import compute_first_token_alone
from export.hugging_face import HuggingFaceCheckpoint
from export.onnx_format import OPSET
from export.padded_onnx import export_padded
from train.decision import Decision

DECISION = Decision(0.05, 0.95, 0.5, None, None, 0.95, 0.7, 100, 0.5, 0.01, 0.04, "", 2.5)
REFUSED = ("fnet", "data2vec-text")
WIDTH = 4


def answers(model: onnx.ModelProto, **feed: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


@pytest.mark.parametrize(
    ("family", "config", "products"),
    [
        # the output projection and both products of the feed-forward, whose first modernbert splits by computed bounds
        *((family, {}, 1 if family == "modernbert" else 3) for family in FAMILIES if family not in REFUSED),
        ("modernbert", {"classifier_pooling": "mean"}, 0),
    ],
)
def test_every_family_answers_to_the_bit_as_without(
    family: str, config: dict[str, str], products: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "model", family, **config)
    checkpoint = load_checkpoint(folder, LIMIT if without_limit(family) else None)
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    found: list[int] = []
    monkeypatch.setattr(
        padded_onnx, "compute_first_token_alone", lambda model: found.append(compute_first_token_alone(model))
    )
    short = export_padded(checkpoint.classifier(DECISION), OPSET)
    assert found == [products]
    onnx.checker.check_model(short, full_check=True)
    monkeypatch.setattr(padded_onnx, "compute_first_token_alone", lambda model: None)
    whole = export_padded(checkpoint.classifier(DECISION), OPSET)
    random = np.random.default_rng(0)
    for lengths in ([9], [5, 1, LIMIT], [LIMIT + 3, 2]):
        ids = random.integers(6, 40, sum(lengths)).astype(np.int64)
        feed = {"input_ids": ids, "lengths": np.array(lengths, dtype=np.int32)[:, None]}
        for one, other in zip(answers(short, **feed), answers(whole, **feed), strict=True):
            np.testing.assert_array_equal(one, other)


def graph(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("answer",)) -> onnx.ModelProto:
    """Nodes over x [rows, tokens, WIDTH], with a few constants at hand."""
    random = np.random.default_rng(1)
    constants = {
        "weight": random.normal(size=(WIDTH, WIDTH)).astype(np.float32),
        "bias": random.normal(size=WIDTH).astype(np.float32),
        "per_token": random.normal(size=(1, 3, WIDTH)).astype(np.float32),
        "stack": random.normal(size=(1, WIDTH, WIDTH)).astype(np.float32),
        "zero": np.int64(0),
        "one": np.int64(1),
    }
    made = helper.make_graph(
        list(nodes),
        "head",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "tokens", WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        initializer=[numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def node(operator: str, inputs: str, output: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=output, **attributes)


PRODUCT = (node("MatMul", "x weight", "product"), node("Add", "bias product", "shifted"), node("Tanh", "shifted", "h"))
READ = node("Gather", "h zero", "answer", axis=1)


def keeps_its_answer(model: onnx.ModelProto, expected: int) -> None:
    x = np.random.default_rng(2).normal(size=(2, 3, WIDTH)).astype(np.float32)
    before = answers(model, x=x)
    assert compute_first_token_alone(model) == expected
    for one, other in zip(answers(model, x=x), before, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_product_whose_first_token_alone_is_read_is_narrowed() -> None:
    model = graph(*PRODUCT, READ)
    keeps_its_answer(model, 1)
    assert [n.op_type for n in model.graph.node][:2] == ["Slice", "MatMul"]


ELSEWHERE = {
    "another token": lambda: graph(*PRODUCT, node("Gather", "h one", "answer", axis=1)),
    "another axis": lambda: graph(*PRODUCT, node("Gather", "h zero", "answer", axis=0)),
    "given out": lambda: graph(*PRODUCT, READ, outputs=("answer", "h")),
    "read again": lambda: graph(*PRODUCT, READ, node("Neg", "h", "all"), outputs=("answer", "all")),
    "a product for each row": lambda: graph(node("MatMul", "x stack", "h"), READ),
    "by place": lambda: graph(PRODUCT[0], node("Add", "product per_token", "h"), READ),
    "over tokens": lambda: graph(PRODUCT[0], node("Softmax", "product", "h", axis=1), READ),
    "cumulated": lambda: graph(PRODUCT[0], node("CumSum", "product one", "h"), READ),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_what_any_other_token_is_needed_for_is_left_alone(case: str) -> None:
    keeps_its_answer(ELSEWHERE[case](), 0)
