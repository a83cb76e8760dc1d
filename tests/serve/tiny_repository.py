"""A repository with the shape of the real one and graphs that a person can check: a row's sum decides its label.

`tiny` is an ensemble over `tiny_words` (Python: one id per word, its length; an error for an empty text) and
`tiny_classifier` (ONNX, ragged). `tiny_torchscript` is the same over TorchScript. Row sums come from a cumulative sum,
so that joined rows which were mixed up would change the answer.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

LABELS = ("short", "long")
PROBE_TEXT = "a probe of words with different lengths"

ENSEMBLE = """
name: "{name}"
platform: "ensemble"
max_batch_size: 64
input [ {{ name: "text" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [
  {{ name: "label" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ 2 ] }},
  {{ name: "total" data_type: TYPE_FP32 dims: [ 1 ] }},
  {{ name: "even" data_type: TYPE_BOOL dims: [ 1 ] }}
]
ensemble_scheduling {{
  step [
    {{
      model_name: "tiny_words" model_version: 1
      input_map {{ key: "text" value: "text" }}
      output_map {{ key: "input_ids" value: "ids" }}
    }},
    {{
      model_name: "{classifier}" model_version: 1
      input_map {{ key: "input_ids" value: "ids" }}
      output_map [
        {{ key: "label" value: "label" }}, {{ key: "probabilities" value: "probabilities" }},
        {{ key: "total" value: "total" }}, {{ key: "even" value: "even" }}
      ]
    }}
  ]
}}
"""

WORDS = """
name: "tiny_words"
backend: "python"
max_batch_size: 64
input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""

WORDS_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        rows = [[len(word) for word in text.decode().split()] for text in texts[:, 0]]
        if not all(rows):
            error = pb_utils.TritonError("text is empty; send at least one word", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        filled = np.full((len(rows), max(map(len, rows))), -1, np.int64)
        for index, row in enumerate(rows):
            filled[index, : len(row)] = row
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("input_ids", filled)])
"""

CLASSIFIER = """
name: "{name}"
backend: "{backend}"
max_batch_size: 64
input [ {{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] allow_ragged_batch: true }} ]
batch_input [
  {{ kind: BATCH_ITEM_SHAPE target_name: "lengths" data_type: TYPE_INT32 source_input: "input_ids" }}
]
output [
  {{ name: "label" data_type: TYPE_STRING dims: [ 1 ] {reshape} }},
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ 2 ] }},
  {{ name: "total" data_type: TYPE_FP32 dims: [ 1 ] }},
  {{ name: "even" data_type: TYPE_BOOL dims: [ 1 ] }}
]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}
parameters {{ key: "session.intra_op.allow_spinning" value {{ string_value: "0" }} }}
"""

# Long enough for a test to bring all its requests in while the first one waits.
JOINING_DELAY_MICROSECONDS = 300_000


def right_answer(ids: list[int]) -> dict[str, object]:
    """What both graphs compute for one row of ids (−1 is fill)."""
    total = sum(i for i in ids if i >= 0)
    p = 1 / (1 + math.exp(10 - total / 2))
    return {
        "label": LABELS[int(p > 0.5)],
        "probabilities": [1 - p, p],
        "total": float(total),
        "even": total % 2 == 0,
    }


def onnx_model() -> onnx.ModelProto:
    """The packed classifier as ONNX: `input_ids` [tokens], `lengths` [rows, 1]."""

    def constant(name: str, value: object, dtype: object) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(value, dtype), name)

    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Relu", ["input_ids_float"], ["counted"]),
            node("Cast", ["input_ids"], ["input_ids_float"], to=TensorProto.FLOAT),
            node("CumSum", ["counted", "zero"], ["sums"]),
            node("Concat", ["zero_float", "sums"], ["sums0"], axis=0),
            node("Cast", ["lengths"], ["lengths64"], to=TensorProto.INT64),
            node("CumSum", ["lengths64", "zero"], ["ends"]),
            node("Sub", ["ends", "lengths64"], ["starts"]),
            node("Gather", ["sums0", "ends"], ["at_end"]),
            node("Gather", ["sums0", "starts"], ["at_start"]),
            node("Sub", ["at_end", "at_start"], ["total"]),
            node("Mul", ["total", "half"], ["halved"]),
            node("Sub", ["halved", "ten"], ["logit"]),
            node("Sigmoid", ["logit"], ["p"]),
            node("Sub", ["one", "p"], ["q"]),
            node("Concat", ["q", "p"], ["probabilities"], axis=1),
            node("ArgMax", ["probabilities"], ["best"], axis=1, keepdims=1),
            node("Gather", ["labels", "best"], ["label"]),
            node("Mod", ["total", "two"], ["odd"], fmod=1),
            node("Equal", ["odd", "nought"], ["even"]),
        ],
        "tiny",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["tokens"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["rows", 1]),
        ],
        [
            helper.make_tensor_value_info("label", TensorProto.STRING, ["rows", 1]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 2]),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, ["rows", 1]),
            helper.make_tensor_value_info("even", TensorProto.BOOL, ["rows", 1]),
        ],
        [
            constant("zero", 0, np.int64),
            constant("zero_float", [0], np.float32),
            constant("half", 0.5, np.float32),
            constant("ten", 10, np.float32),
            constant("one", 1, np.float32),
            constant("two", 2, np.float32),
            constant("nought", 0, np.float32),
            helper.make_tensor("labels", TensorProto.STRING, [2], [label.encode() for label in LABELS]),
        ],
    )
    graph.node.insert(0, graph.node.pop(1))  # nodes stand in the order of execution
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


class TinyClassifier(torch.nn.Module):
    """The packed classifier for TorchScript, which gives strings only as a list."""

    def forward(
        self, input_ids: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[list[str], torch.Tensor, torch.Tensor, torch.Tensor]:
        sums = torch.cat([torch.zeros(1), torch.cumsum(torch.relu(input_ids.float()), 0)])
        ends = torch.cumsum(lengths.long(), 0)
        total = sums[ends] - sums[ends - lengths.long()]
        p = torch.sigmoid(total / 2 - 10)
        labels: list[str] = []
        for row in range(p.size(0)):
            labels.append("long" if bool(p[row, 0] > 0.5) else "short")
        return labels, torch.cat([1 - p, p], 1), total, torch.fmod(total, 2) == 0


def write_model(repository: Path, name: str, config: str, files: dict[str, bytes]) -> Path:
    """Write one model of one version."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")
    for file, content in files.items():
        (version / file).write_bytes(content)
    return version


def write_repository(repository: Path, *, delay: int = 0) -> Path:
    """Write the whole repository; `delay` is the classifiers' queue delay in microseconds."""
    probe = {"text": PROBE_TEXT, **right_answer([len(word) for word in PROBE_TEXT.split()])}
    manifest = json.dumps({"name": "tiny", "version": 1, "labels": LABELS, "probe": probe}).encode()
    write_model(repository, "tiny", ENSEMBLE.format(name="tiny", classifier="tiny_classifier"), {".gitkeep": b""})
    write_model(repository, "tiny_words", WORDS, {"model.py": WORDS_MODEL.encode()})
    write_model(
        repository,
        "tiny_classifier",
        CLASSIFIER.format(name="tiny_classifier", backend="onnxruntime", reshape="", delay=delay),
        {"model.onnx": onnx_model().SerializeToString(), "manifest.json": manifest},
    )
    return repository


def add_torchscript(repository: Path, *, delay: int = 0) -> None:
    """Add the TorchScript classifier and its ensemble."""
    config = ENSEMBLE.format(name="tiny_torchscript", classifier="tiny_classifier_torchscript")
    write_model(repository, "tiny_torchscript", config, {".gitkeep": b""})
    config = CLASSIFIER.format(
        name="tiny_classifier_torchscript", backend="pytorch", reshape="reshape { shape: [ ] }", delay=delay
    )
    version = write_model(repository, "tiny_classifier_torchscript", config, {})
    torch.jit.script(TinyClassifier()).save(str(version / "model.pt"))
