"""A classifier that reads one token out computes the others only as far as that token needs them.

Most heads read the first token of the last layer (`hidden[:, 0]`). What stands between its attention and the head works
on each token by itself (output projection, feed-forward, normalisation), so all other tokens are thrown away after
three quarters of the last layer's products were computed for them: one eighth of a model of six layers. Here the slice
is moved up to the attention; the arithmetic of the token that is read stays as it was, to the bit.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import helper, numpy_helper

_ELEMENTWISE = {
    "Abs", "Add", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub",
    "Tanh",
}  # fmt: skip
_TOKENS = 1  # the axis of the tokens in [rows, tokens, width]
_RANK = 3


def compute_first_token_alone(model: onnx.ModelProto) -> int:
    """Narrow, in place, what only the first token of each row is read from; returns the number of narrowed products.

    Untouched where the head reads anything else: all tokens (mean pooling), or one whose place depends on the row.
    """
    graph = model.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return 0  # what a branch or a loop reads from outside is not seen here
    rank = _ranks(model)
    constant = {t.name for t in graph.initializer}
    for node in graph.node:  # equal parameters are one initializer, with an Identity for each name
        if node.op_type == "Constant" or (node.op_type == "Identity" and node.input[0] in constant):
            constant.add(node.output[0])
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers[name].append(node)
    kept = {output.name for output in graph.output}
    values = {t.name: t for t in graph.initializer} | {
        n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant" and n.attribute[0].HasField("t")
    }
    narrow: dict[str, onnx.NodeProto] = {}  # by output: nodes of which only the first token is ever read

    def first_alone(name: str) -> bool:
        return name not in kept and all(  # without a reader, too: the second half of a split may have none
            _reads_first(node, name, values) or node.output[0] in narrow for node in readers[name]
        )

    for node in reversed(graph.node):
        if _by_token(node, rank, constant) and all(map(first_alone, node.output)):
            narrow |= dict.fromkeys(node.output, node)
    products = sum(node.op_type == "MatMul" for node in narrow.values())
    if products:
        _slice_at_the_border(graph, narrow, rank, constant)
    return products


def _by_token(node: onnx.NodeProto, rank: dict[str, int], constant: set[str]) -> bool:
    """Whether each token's output [rows, tokens, width] comes from that token's inputs alone."""
    inputs = [name for name in node.input if name]
    if not inputs or any(rank.get(name) != _RANK for name in node.output):
        return False
    if node.op_type == "MatMul":
        return rank.get(inputs[0]) == _RANK and inputs[1] in constant and rank.get(inputs[1]) == 2
    if node.op_type in ("LayerNormalization", "Split"):
        along_width = _attribute(node, "axis", -1 if node.op_type == "LayerNormalization" else 0) in (-1, _RANK - 1)
        return along_width and all(name in constant for name in inputs[1:])
    # A constant of rank 0 or 1 is the same for each token.
    return node.op_type in _ELEMENTWISE and all(
        rank.get(name, _RANK + 1) <= 1 if name in constant else rank.get(name) == _RANK for name in inputs
    )


def _reads_first(node: onnx.NodeProto, name: str, values: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Gather" or node.input[0] != name or node.input[1] not in values:
        return False
    index = numpy_helper.to_array(values[node.input[1]])
    return (
        _attribute(node, "axis", 0) in (_TOKENS, _TOKENS - _RANK) and index.size == 1 and int(index.reshape(-1)[0]) == 0
    )


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _slice_at_the_border(
    graph: onnx.GraphProto, narrow: dict[str, onnx.NodeProto], rank: dict[str, int], constant: set[str]
) -> None:
    """Give the narrowed nodes the first token of whatever is computed for all of them."""
    for name, value in {"start": 0, "end": 1, "axis": _TOKENS}.items():
        graph.initializer.append(numpy_helper.from_array(np.array([value], dtype=np.int64), f"first_token_{name}"))
    sliced: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.output[0] in narrow:
            for i, name in enumerate(node.input):
                if not name or name in narrow or name in constant or rank.get(name) != _RANK:
                    continue
                if name not in sliced:
                    sliced[name] = f"{name}_first_token"
                    bounds = [f"first_token_{part}" for part in ("start", "end", "axis")]
                    nodes.append(helper.make_node("Slice", [name, *bounds], [sliced[name]], name=sliced[name]))
                node.input[i] = sliced[name]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    known = [
        value for value in graph.value_info if value.name not in narrow
    ]  # the others say how many tokens there were
    del graph.value_info[:]
    graph.value_info.extend(known)


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Rank of each tensor of which it is known."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {t.name: len(t.dims) for t in model.graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        if value.type.tensor_type.HasField("shape"):
            ranks[value.name] = len(value.type.tensor_type.shape.dim)
    return ranks
