"""A ragged graph that answers several rows → one that answers them one after the other, each as if it were alone.

Dynamic int8 takes the scale of an activation from the whole tensor, and half precision rounds a sum by the width that
it is padded to: in both a row's answer depends on its neighbours (0.043 in probability, MiniLM in int8). The batcher
can be told to execute requests one by one, but nobody can forbid a request to have several rows. So the graph itself
loops over its rows, without their fill: a row is computed with the very operators and shapes of a request of its own,
and its answer is the same to the last bit. On a CPU that costs nothing: a padded graph is slower with joined rows.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_RAGGED = {"input_ids": "row_kept", "lengths": "row_lengths"}


def answer_row_by_row(model: onnx.ModelProto) -> onnx.ModelProto:
    """Wrap a graph (input_ids [T], lengths [R, 1] -> numbers [R, …]) into a loop over rows; the same from outside."""
    graph = model.graph
    outputs = list(graph.output)
    names = {**_RAGGED, **{output.name: f"row_{output.name}" for output in outputs}}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    body = helper.make_graph(
        [
            *_nodes(
                ("Gather", "rows_starts row", "row_from"),
                ("Gather", "rows_ends row", "row_to"),
                ("Unsqueeze", "row_from rows_axis", "row_first"),
                ("Unsqueeze", "row_to rows_axis", "row_last"),
                ("Slice", "input_ids row_first row_last rows_axis", "row_ids"),
                ("GreaterOrEqual", "row_ids rows_zero", "row_no_fill"),
                ("Compress", "row_ids row_no_fill", "row_kept"),
                ("Shape", "row_kept", "row_size"),
                ("Cast", "row_size", "row_short", {"to": TensorProto.INT32}),
                ("Unsqueeze", "row_short rows_axis", "row_lengths"),
            ),
            *graph.node,
            *_nodes(("Identity", "row_go", "row_go_on")),
        ],
        "one_row",
        [
            helper.make_tensor_value_info("row", TensorProto.INT64, []),
            helper.make_tensor_value_info("row_go", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("row_go_on", TensorProto.BOOL, []),
            *(
                helper.make_tensor_value_info(names[o.name], o.type.tensor_type.elem_type, _of_one_row(o))
                for o in outputs
            ),
        ],
        initializer=list(graph.initializer),
    )
    loop = helper.make_node(
        "Loop", ["rows_count", ""], [f"each_{o.name}" for o in outputs], name="rows_Loop", body=body
    )
    around = helper.make_graph(
        [
            *_nodes(
                ("Cast", "lengths", "rows_long", {"to": TensorProto.INT64}),
                ("Reshape", "rows_long rows_flat", "rows_sizes"),
                ("CumSum", "rows_sizes rows_zero", "rows_ends"),
                ("Sub", "rows_ends rows_sizes", "rows_starts"),
                ("Size", "rows_sizes", "rows_count"),
            ),
            loop,
            *_nodes(*(("Squeeze", f"each_{o.name} rows_second", o.name) for o in outputs)),
        ],
        graph.name,
        list(graph.input),
        outputs,
        initializer=[
            numpy_helper.from_array(np.array(value, dtype=np.int64), f"rows_{name}")
            for name, value in {"axis": [0], "zero": 0, "flat": [-1], "second": [1]}.items()
        ],
    )
    wrapped = helper.make_model(around, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    wrapped.functions.extend(model.functions)
    return wrapped


def _nodes(*steps: tuple[str, str, str] | tuple[str, str, str, dict[str, int]]) -> list[onnx.NodeProto]:
    """Nodes from operator, inputs, output and attributes."""
    return [
        helper.make_node(operator, inputs.split(), [output], name=f"{output}_{operator}", **(more[0] if more else {}))  # type: ignore[arg-type]  # its own arguments before them are strings
        for operator, inputs, output, *more in steps
    ]


def _of_one_row(output: onnx.ValueInfoProto) -> list[str | int]:
    return [1, *(dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim[1:])]
