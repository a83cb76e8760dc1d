"""A classifier → model.onnx, with the label and reason names inside, checked for the server that will load it.

torch.onnx's dynamo exporter carries the packed form with any number of tokens and rows; padded ones are exported by
`export.padded_onnx`. PyTorch has no strings, so the
names are gathered from string constants by two nodes that are appended afterwards. The file is refused where the
production server could not load it, or where it would answer at random.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from export.errors import GraphError
from export.graph import ServedClassifier, example_inputs
from export.outputs import BET, REASONS, STRINGS, Kind
from export.padded import PaddedClassifier
from export.padded_onnx import export_padded

# What the dynamo exporter emits itself; a higher one goes through a converter for no operator of ours. The tracing one
# is right on it for all ten encoder families.
OPSET = 18

SERVER = "ONNX Runtime 1.20 (the oldest we support; the production container carries 1.27)"
HIGHEST_IR, HIGHEST_OPSET = 10, 21  # of ONNX Runtime 1.20; 1.27 loads these as well
LOWEST_OPSET = 18  # below it torch 2.13 writes a file that is not valid

_LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


def write_onnx(
    classifier: ServedClassifier | PaddedClassifier,
    labels: Sequence[str],
    path: Path,
    notes: Mapping[str, str],
    lower: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None,
) -> None:
    """Export the classifier to `path` and check the result.

    Args:
        labels: class names in class order.
        notes: written into the file's metadata, for whoever finds it alone.
        lower: what makes the graph of a lower precision from the exported one.

    Raises:
        GraphError: if the exporter fails, or the graph is one that must not be served.
    """
    try:
        with quiet():
            if isinstance(classifier, PaddedClassifier):
                kind, model = classifier.kind, export_padded(classifier, OPSET)
            else:
                kind, model = BET, _export_packed(classifier)
    except Exception as error:
        raise GraphError(f"torch.onnx could not export the model: {error}") from error
    if lower is not None:
        with quiet():
            model = lower(model)
    tables = {"label": labels, "reason": REASONS}
    if isinstance(classifier, ServedClassifier):
        tables["evidence_ngrams"] = classifier.pieces
    _append_names(model, tables, kind)
    _describe(model, labels, notes)
    check_loadable(model)
    check_deterministic(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise GraphError(f"the exported graph is not valid ONNX: {error}") from error
    onnx.save(model, path)


def _export_packed(classifier: ServedClassifier) -> onnx.ModelProto:
    rows, total = torch.export.Dim("rows", min=1, max=1 << 12), torch.export.Dim("total", min=1, max=1 << 22)
    program = torch.onnx.export(
        classifier.eval(),
        example_inputs(),
        dynamo=True,
        opset_version=OPSET,
        input_names=["input_ids", "lengths"],
        output_names=list(BET.tensors),
        dynamic_shapes=({0: total}, {0: rows}),
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def check_loadable(model: onnx.ModelProto) -> None:
    """Refuse a file that is newer than the oldest server it has to run on.

    Raises:
        GraphError: naming both versions.
    """
    if model.ir_version > HIGHEST_IR:
        raise GraphError(
            f"the graph has IR version {model.ir_version} and {SERVER} loads up to {HIGHEST_IR}: "
            "export with the locked versions of torch and onnx"
        )
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
        raise GraphError(
            f"the graph has opset {opset}; torch writes valid files from {LOWEST_OPSET} on and {SERVER} loads up to "
            f"{HIGHEST_OPSET}: choose one between"
        )


def check_deterministic(model: onnx.ModelProto) -> None:
    """Refuse a graph that draws random numbers: equal texts must get equal answers.

    Raises:
        GraphError: naming the nodes.
    """
    functions = (node for function in model.functions for node in function.node)
    random = sorted({f"{node.op_type} ({node.name})" for node in (*_nodes(model.graph), *functions) if _draws(node)})
    if random:
        raise GraphError(
            f"the graph draws random numbers: {', '.join(random)}; export the model in evaluation mode (model.eval())"
        )


def open_session(
    path: Path, parameters: Mapping[str, str], level: str = "all", provider: str = "CPUExecutionProvider"
) -> onnxruntime.InferenceSession:
    """Load a graph with the session options that a model configuration means to Triton's backend.

    Args:
        parameters: of the configuration.
        level: of `export.repository.GRAPH_LEVELS`, as the configuration has it.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[level]
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", "0"))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", "0"))
    # One thread has no pool that could spin; with more, shared processors would be burnt between requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=[provider])


def _append_names(model: onnx.ModelProto, tables: Mapping[str, Sequence[str]], kind: Kind) -> None:
    """Replace each index output by a Gather from a constant of names, keeping the order of the outputs."""
    graph = model.graph
    given = {output.name: output for output in graph.output}
    strings = {}
    for name, values in tables.items():
        index = given.get(STRINGS[name])
        if index is None:
            continue
        table = numpy_helper.from_array(np.array(values, dtype=object), f"{name}_names")
        graph.initializer.append(table)
        graph.node.append(helper.make_node("Gather", [table.name, index.name], [name], name=f"{name}_of_index"))
        strings[name] = helper.make_tensor_value_info(name, TensorProto.STRING, _shape(index))
        graph.value_info.append(index)
    outputs = [strings.get(output.name) or given[output.name] for output in kind.outputs]
    del graph.output[:]
    graph.output.extend(outputs)


def _shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _describe(model: onnx.ModelProto, labels: Sequence[str], notes: Mapping[str, str]) -> None:
    model.producer_name = "bayesian-expectation-transformer"
    model.doc_string = (
        "Ragged text classifier: input_ids [tokens of all rows], lengths [rows, 1]; calibration, decision and label "
        "names are inside. See manifest.json beside this file."
    )
    helper.set_model_props(model, {"labels": json.dumps(list(labels)), **notes})


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner)


def _draws(node: onnx.NodeProto) -> bool:
    # Dropout draws only where a third input, training_mode, is wired.
    return node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2]))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's chatter about packages that are not installed, and the quantiser's, out of the output.

    Its errors are exceptions, so nothing that matters is lost.
    """
    chatty = [logging.getLogger(name) for name in ("root", "torch.onnx", "onnxscript", "onnx_ir", "onnxruntime")]
    levels = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)
