"""PaddedClassifier → an ONNX graph with ragged inputs: the padded half by the exporter, the padding as nodes in front.

The tracing exporter is right for every encoder family and at every shape where no length becomes a Python number, and
takes under a second where dynamo's takes up to half a minute. What would become one, the longest row, is computed by
the nodes below, which are the same for every architecture and mirror `export.padded.pad_rows` line by line.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.first_token import compute_first_token_alone
from export.padded import PaddedClassifier

_IDS, _MASK = "padded_ids", "attention_mask"


def export_padded(classifier: PaddedClassifier, opset: int, *, dynamo: bool = False) -> onnx.ModelProto:
    """The classifier as an ONNX graph: input_ids [T], lengths [R, 1] -> the tensors of its kind.

    Args:
        dynamo: take dynamo's exporter. The tracing one is deprecated; on the day that it is gone, this default changes.
    """
    return ragged(classifier, classifier.answer, classifier.kind.tensors, opset, dynamo=dynamo)


def ragged(
    classifier: PaddedClassifier, module: nn.Module, outputs: Sequence[str], opset: int, *, dynamo: bool = False
) -> onnx.ModelProto:
    """A module that takes the classifier's padded rows, as a graph of ragged ones: input_ids, lengths -> `outputs`."""
    model = (_by_dynamo if dynamo else _by_tracing)(classifier, module, outputs, opset)
    compute_first_token_alone(model)
    _pad_in_front(model.graph, classifier.limit, classifier.pad_id)
    return model


def _by_dynamo(classifier: PaddedClassifier, module: nn.Module, outputs: Sequence[str], opset: int) -> onnx.ModelProto:
    rows, tokens = torch.export.Dim("rows", min=1, max=1 << 12), torch.export.Dim("tokens", min=1, max=classifier.limit)
    program = torch.onnx.export(
        module.eval(),
        classifier.example(),
        dynamo=True,
        opset_version=opset,
        input_names=[_IDS, _MASK],
        output_names=list(outputs),
        dynamic_shapes=({0: rows, 1: tokens}, {0: rows, 1: tokens}),
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _by_tracing(classifier: PaddedClassifier, module: nn.Module, outputs: Sequence[str], opset: int) -> onnx.ModelProto:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Deprecated, and warns of every Python number that it keeps; the gate compares at many shapes.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),  # the exporter sets a module back to the mode it was in, with all its parts
            classifier.example(),
            file,  # type: ignore[arg-type]  # the tracing exporter takes one, its annotation is dynamo's
            dynamo=False,
            opset_version=opset,
            input_names=[_IDS, _MASK],
            output_names=list(outputs),
            dynamic_axes={
                **{name: {0: "rows", 1: "tokens"} for name in (_IDS, _MASK)},
                **{name: {0: "rows"} for name in outputs},
            },
        )
    return onnx.load_model_from_string(file.getvalue())


def _pad_in_front(graph: onnx.GraphProto, limit: int, pad_id: int) -> None:
    """Replace the padded inputs by nodes that make them from ragged ones."""
    numbers = {
        "zero": 0, "one": 1, "limit": limit, "pad": pad_id, "column": [1], "flat": [-1], "fill": [-1], "first": [0],
    }  # fmt: skip
    for name, value in numbers.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.int64), f"ragged_{name}"))
    steps: list[tuple[str, str, str, dict[str, int]]] = [
        ("Cast", "lengths", "long", {"to": TensorProto.INT64}),
        ("Reshape", "long flat", "sizes", {}),
        ("CumSum", "sizes zero", "ends", {}),
        ("Sub", "ends sizes", "starts", {}),
        ("Min", "sizes limit", "kept", {}),
        ("ReduceMax", "kept", "longest_row", {"keepdims": 0}),
        ("Max", "longest_row one", "longest", {}),
        ("Range", "zero longest one", "positions", {}),
        ("Concat", "input_ids fill", "ids", {"axis": 0}),
        ("Shape", "input_ids", "shape", {}),
        ("Unsqueeze", "starts column", "from", {}),
        ("Add", "from positions", "beyond", {}),
        ("Min", "beyond shape", "index", {}),
        ("Gather", "ids index", "taken", {"axis": 0}),
        ("Unsqueeze", "kept column", "until", {}),
        ("Less", "positions until", "in_row", {}),
        ("GreaterOrEqual", "taken zero", "no_fill", {}),
        ("And", "in_row no_fill", "there", {}),
        ("Where", "there taken pad", _IDS, {}),
        ("Equal", "positions first", "at_start", {}),
        ("Or", "there at_start", "read", {}),
        ("Cast", "read", _MASK, {"to": TensorProto.INT64}),
    ]
    outside = {"input_ids", "lengths", _IDS, _MASK}
    nodes = [
        helper.make_node(
            operator,
            [name if name in outside else f"ragged_{name}" for name in inputs.split()],
            [output if output in outside else f"ragged_{output}"],
            name=f"ragged_{output}_{operator}",
            **attributes,  # type: ignore[arg-type]  # its own arguments before them are strings
        )
        for operator, inputs, output, attributes in steps
    ]
    padded = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *padded])
    del graph.input[:]
    graph.input.extend(
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["total"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["rows", 1]),
        ]
    )
