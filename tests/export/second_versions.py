"""Further versions of an exported one that answer visibly otherwise, made in a blink instead of trained.

Tokenizer and classifiers both differ, so that an answer tells which version of each gave it: a text cut by one version
and classified by the other equals neither version's answer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from export import versions
from export.manifest import PROBE_TEXT, encoder_of, kind_of, read_manifest, tokenizer_record
from export.repository import Names, Pins, write_configurations
from export.verify import graph_answers, texts_as_they_stand
from train.tokenizer import load_tokenizer

BET = Names("bet")
EVIDENCE_BIAS, HEAD_BIAS = "model.evidence.bias", "classifier.bias"


def add_version(models: Path, names: Names = BET, *, shift: float = 0.8, max_length: int = 12) -> int:
    """Version 1 once more, with a bias moved and texts cut earlier; pinned, as `add` leaves it. Returns its number."""
    manifest = read_manifest(models / names.classifier / "1")
    with versions.staging_folder(models) as staging:
        write_configurations(staging, names, manifest["labels"], Pins(1), kind_of(manifest))
        for model in names.versioned:
            shutil.copytree(models / model / "1", staging / model / "1")
        shift_graph(staging / names.classifier / "1" / "model.onnx", shift)
        _shift_script(staging / names.torchscript_classifier / "1" / "model.pt", shift)
        folder = staging / names.tokenizer / "1"
        record = {**manifest["tokenizer"], "max_length": max_length, "head_length": max_length // 2}
        if record.get("special_tokens"):
            record["head_length"] = max_length - 1
        manifest["tokenizer"] = tokenizer_record(encoder_of(load_tokenizer(folder), record), folder / "tokenizer.json")
        [text] = texts_as_they_stand(encoder_of(load_tokenizer(folder), record), [PROBE_TEXT])
        answer = graph_answers(staging, names, 1, manifest, [text])
        manifest["probe"] = {
            "text": PROBE_TEXT,
            "label": str(answer.label[0]),
            "probabilities": answer.probabilities[0].tolist(),
            "total": float(answer.total[0]),
        }
        return versions.install(models, names, staging, 1, manifest)


def shift_graph(path: Path, by: float) -> None:
    """Move the classifier's bias in an ONNX graph."""
    model = onnx.load(path)
    [bias] = [t for t in model.graph.initializer if t.name.endswith((EVIDENCE_BIAS, HEAD_BIAS))]
    values = numpy_helper.to_array(bias).copy()
    values[-1] += by
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, path)


def slow_graph(path: Path, size: int = 1200) -> None:
    """Make a graph take some hundred milliseconds more for the same answers."""
    model = onnx.load(path)
    graph = model.graph
    weights = np.random.default_rng(0).normal(0, 1e-3, (size, size)).astype(np.float32)
    total = next(output for output in graph.output if output.name == "total")
    for node in graph.node:
        for i, name in enumerate(node.output):
            if name == total.name:
                node.output[i] = "total_before"
    graph.initializer.extend(
        [numpy_helper.from_array(weights, "slow_weights"), numpy_helper.from_array(np.float32(0), "slow_zero")]
    )
    # What is multiplied depends on the input, or ONNX Runtime would compute it once.
    graph.node.extend(
        [
            helper.make_node("Cast", ["lengths"], ["slow_lengths"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["slow_lengths"], ["slow_length"], keepdims=0),
            helper.make_node("Mul", ["slow_length", "slow_weights"], ["slow_0"]),
            *(helper.make_node("MatMul", [f"slow_{i}", "slow_weights"], [f"slow_{i + 1}"]) for i in range(4)),
            helper.make_node("ReduceMax", ["slow_4"], ["slow_sum"], keepdims=0),
            helper.make_node("Mul", ["slow_sum", "slow_zero"], ["slow_nothing"]),
            helper.make_node("Add", ["total_before", "slow_nothing"], [total.name]),
        ]
    )
    onnx.save(model, path)


def altered(path: Path, change: Callable[[Path], None]) -> None:
    """Put a changed copy in a file's place by rename, as a deployment tool would; an open file stays what it was."""
    copy = path.with_name(f"{path.name}.new")
    shutil.copyfile(path, copy)
    change(copy)
    copy.replace(path)


def _shift_script(path: Path, by: float) -> None:
    module = torch.jit.load(path)
    tensors = dict([*module.named_buffers(), *module.named_parameters()])
    [bias] = [value for name, value in tensors.items() if name.endswith((EVIDENCE_BIAS, HEAD_BIAS))]
    with torch.no_grad():
        bias[-1] += by
    module.save(str(path))
