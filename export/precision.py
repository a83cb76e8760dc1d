"""fp16 and int8: the same checkpoint with smaller numbers, calibrated on what these numbers answer.

A lower precision moves logits, so its temperature and thresholds are fitted on its own logits, and the error budget
holds for what is served. It is then held against fp32 in PyTorch, on the calibration rows and with tolerances of its
own, and against itself, by the gate, with the strict ones. Temperature, softmax and entropy stay in fp32.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from export.answers import Answers, Floats, compare, scale_of
from export.budgets import Budget
from export.checkpoints import Exportable
from export.decisions import AnyDecision
from export.encoder import Ids
from export.errors import PrecisionError
from export.hugging_face import HuggingFaceCheckpoint
from export.onnx_format import OPSET, open_session, quiet
from export.outputs import REGRESSION
from export.padded_onnx import ragged
from export.repository import CPU, GPU
from export.row_by_row import answer_row_by_row
from export.rows import RowFiles
from train.decision import Decision
from train.metrics import ece, nll
from verdict import Report


@dataclass(frozen=True)
class Precision:
    """What weights and products are computed in, and how far probabilities may be from fp32's (measured in ADR 9)."""

    name: str
    tolerance: float  # of |Δp|, which 99 of 100 calibration rows must hold


FP32, FP16, INT8 = Precision("fp32", 0.0), Precision("fp16", 1e-2), Precision("int8", 5e-2)
PRECISIONS = {precision.name: precision for precision in (FP32, FP16, INT8)}
LABEL_FLIPS, ACCURACY_LOSS, NLL_LOSS = 0.01, 0.01, 0.02  # share of calibration rows, the same, nats


@dataclass(frozen=True)
class LoweredCheckpoint(HuggingFaceCheckpoint):
    """A checkpoint as the graph of a lower precision answers: logits come from ONNX Runtime, a text at a time.

    `model` is what is exported, and `lower` what is done to the exported graph.
    """

    lower: Callable[[onnx.ModelProto], onnx.ModelProto] = answer_row_by_row
    session: onnxruntime.InferenceSession | None = None

    def run(self, documents: Sequence[Ids]) -> Floats:
        """Logits [R, C] of texts, each computed alone."""
        assert self.session is not None
        rows = [
            self.session.run(["logits"], {"input_ids": ids, "lengths": np.array([[len(ids)]], dtype=np.int32)})[0]
            for ids in documents
        ]
        return np.concatenate(rows)

    def require_padding_is_harmless(self, documents: Sequence[Ids]) -> None:
        """Rows are never padded here; the model in fp32 was asked."""


@dataclass(frozen=True)
class Lowered:
    """A lower precision of the ONNX graph; TorchScript stays in fp32, with the decision that was fitted there."""

    precision: Precision
    checkpoint: LoweredCheckpoint
    full_decision: AnyDecision
    full_budgets: Sequence[Budget] = ()


def require_possible(checkpoint: Exportable, precision: Precision, device: str) -> None:
    """Refuse what cannot be served, before anything is computed.

    Raises:
        PrecisionError: in one sentence.
    """
    if device == GPU and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise PrecisionError(
            "--device gpu needs an NVIDIA GPU and the package onnxruntime-gpu, and this onnxruntime has only "
            f"{', '.join(onnxruntime.get_available_providers())}; export for --device cpu, or on a machine with a GPU"
        )
    if device == GPU and precision is INT8:
        raise PrecisionError(
            "int8 here is dynamic quantisation, for which ONNX Runtime has no operators on a GPU; use --precision fp16"
        )
    if precision is not FP32 and not isinstance(checkpoint, HuggingFaceCheckpoint):
        raise PrecisionError(
            f"{checkpoint.path} is a BET checkpoint, which is served in fp32: its dispersion over orders is smaller "
            f"than what {precision.name} rounds away (docs/adr/0009); leave --precision out"
        )


def lowered(checkpoint: Exportable, precision: Precision, device: str) -> LoweredCheckpoint:
    """The checkpoint in a lower precision, ready to be calibrated.

    Raises:
        GraphError: if it cannot be exported.
    """
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    model: nn.Module = _Half(checkpoint.model) if precision is FP16 else checkpoint.model
    own: dict[str, Any] = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    made = LoweredCheckpoint(**{**own, "model": model, "known": {}, "lower": _lowering(precision, device)})
    classifier = made.classifier(_ANY_DECISION)
    with quiet():
        graph = made.lower(ragged(classifier, _Logits(model), ["logits"], OPSET))
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(graph, Path(folder) / "logits.onnx")
        session = open_session(Path(folder) / "logits.onnx", {}, provider=provider_of(device))
    return LoweredCheckpoint(**{**own, "model": model, "known": {}, "lower": made.lower, "session": session})


def provider_of(device: str) -> str:
    """ONNX Runtime's execution provider of a device."""
    return "CPUExecutionProvider" if device == CPU else "CUDAExecutionProvider"


def compare_precisions(
    checkpoint: Exportable, low: Lowered, decision: AnyDecision, files: RowFiles, report: Report
) -> None:
    """Hold a lower precision against fp32 in PyTorch on the calibration rows, each with its own decision."""
    texts, truth = checkpoint.held_out(files)
    documents = checkpoint.encoder.encode(texts)
    full = checkpoint.answers(low.full_decision, documents)
    less = low.checkpoint.answers(decision, documents)
    difference = compare(full, less)
    gaps = _apart(full, less)
    unit = "of the values' spread" if checkpoint.kind == REGRESSION else ""
    percentile = float(np.quantile(gaps, 0.99))
    report.add("precision_difference", percentile, f"99th percentile {unit}".strip(), f"<= {low.precision.tolerance:g}")
    report.add("precision_difference_largest", float(gaps.max()), unit)
    report.add("precision_difference_mean", float(gaps.mean()), unit)
    if full.probabilities is None or less.probabilities is None or truth is None:
        return
    flips = (difference.label_flips or 0) / len(texts)
    report.add("precision_label_flips", flips, "of calibration rows", f"<= {LABEL_FLIPS:g}")
    sides = [_questions(p, np.asarray(truth)) for p in (full.probabilities, less.probabilities)]
    accuracies = [float(np.mean([(p.argmax(1) == labels).mean() for p, labels in side])) for side in sides]
    losses = [float(np.mean([nll(p, labels) for p, labels in side])) for side in sides]
    report.add("precision_accuracy_loss", accuracies[0] - accuracies[1], "", f"<= {ACCURACY_LOSS:g}")
    report.add("precision_nll_loss", losses[1] - losses[0], "nats", f"<= {NLL_LOSS:g}")
    report.add("precision_ece", float(np.mean([ece(p, labels) for p, labels in sides[1]])))


def _apart(full: Answers, less: Answers) -> NDArray[np.float64]:
    """Of each row, the largest |Δp|, or the difference of the values over their spread; each has its own interval."""
    gaps: NDArray[np.float64]
    if full.value is not None and less.value is not None:
        gaps = np.abs(full.value.astype(np.float64) - less.value) / scale_of(full)
        return gaps
    assert full.probabilities is not None
    assert less.probabilities is not None
    gaps = np.abs(full.probabilities.astype(np.float64) - less.probabilities).max(1)
    return gaps


def _questions(probabilities: Floats, truth: NDArray[Any]) -> list[tuple[Floats, NDArray[np.int64]]]:
    """Probabilities [N, C] and truth [N] as one question of C classes; truth [N, C] as C questions of yes or no."""
    if truth.ndim == 1:
        return [(probabilities, truth.astype(np.int64))]
    return [
        (np.stack([1 - p, p], axis=1), carried.astype(np.int64))
        for p, carried in zip(probabilities.T, truth.T, strict=True)
    ]


class _Half(nn.Module):
    """A model whose parameters are float16, with logits in float32.

    Parameters alone, as `from_pretrained(dtype=torch.float16)` has it: what a model keeps in buffers, such as the
    frequencies of rotary positions, stays as fine as it is.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.half()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return SequenceClassifierOutput(logits=logits.float())


class _Logits(nn.Module):
    """The model up to its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


_ANY_DECISION = Decision(0.05, 0.95, 0.0, None, None, 0.95, 1.0, 0, 0.0, 0.0, 1.0, "", 1.0)


def _lowering(precision: Precision, device: str) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    if precision is INT8:
        return lambda model: answer_row_by_row(_quantised(model))
    return answer_row_by_row if device == CPU else lambda model: model


def _quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights of matrix products in 8 bits with a scale per output channel, activations by the range of each tensor.

    Products that narrow, with fewer outputs than inputs, stay in fp32: the wide activation behind a feed-forward
    layer's nonlinearity has outliers that take the whole scale (MiniLM, 167 reviews: mean |Δp| .0137 with them, .0076
    without, at .68 and .77 of fp32's seconds), and the head is small.
    Unsigned weights: the products of signed ones with unsigned activations may saturate on processors without VNNI,
    where the graph would answer otherwise (onnxruntime's documentation of quantisation, "U8S8"); unsigned ones are
    exact on all, at about the same speed.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, plain)
        quantize_dynamic(
            plain,
            small,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=_narrowing(model.graph),
            per_channel=True,
            weight_type=QuantType.QUInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        quantised: onnx.ModelProto = onnx.load(small)
    return quantised


def _narrowing(graph: onnx.GraphProto) -> list[str]:
    """Matrix products whose weights have more inputs than outputs, by name of the node."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    names = []
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and len(shape := shapes.get(node.input[1], ())) == 2:
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            inputs, outputs = shape[::-1] if transposed else shape
            if inputs > outputs:
                names.append(node.name)
    return names
