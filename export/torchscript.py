"""A classifier → model.pt: traced, in a small scripted wrapper that turns indices into names.

Triton's PyTorch backend takes strings only as `List[str]`, which a trace cannot make; and a script cannot hold the
model's Python. Hence both: `torch.jit.trace` for the classifier, `torch.jit.script` around it.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.errors import GraphError
from export.graph import ServedClassifier, example_inputs
from export.outputs import MULTI_LABEL, PIECES, REASONS, REGRESSION
from export.padded import PaddedClassifier, pad_rows
from export.pieces import NGRAM_SEPARATOR

_RANDOM = ("aten::rand", "aten::normal", "aten::bernoulli", "aten::multinomial", "aten::uniform")


class NamedAnswers(nn.Module):
    """The traced classifier with names for indices; outputs in the order of `export.outputs.CLASSIFIER_OUTPUTS`."""

    labels: list[str]
    reasons: list[str]
    pieces: list[str]

    def __init__(
        self, traced: torch.jit.ScriptModule, labels: list[str], reasons: list[str], pieces: list[str]
    ) -> None:
        super().__init__()
        self.classifier = traced
        self.labels = labels
        self.reasons = reasons
        self.pieces = pieces
        self.size = PIECES
        self.separator = NGRAM_SEPARATOR

    def forward(
        self, input_ids: Tensor, lengths: Tensor
    ) -> tuple[
        list[str],
        Tensor,
        Tensor,
        Tensor,
        Tensor,
        Tensor,
        list[str],
        Tensor,
        Tensor,
        Tensor,
        Tensor,
        list[str],
        Tensor,
    ]:
        """input_ids [T], lengths [R, 1] -> the outputs; `label` and `reason` are lists of R names.

        `evidence_ngrams` is a list of R texts, n-grams one a line: the backend takes strings in one dimension only.
        """
        answer = self.classifier(input_ids, lengths)
        label_index: list[int] = answer[0][:, 0].tolist()
        reason_index: list[int] = answer[6][:, 0].tolist()
        piece_index: list[list[int]] = answer[11].tolist()
        ngrams: list[str] = []
        for row in piece_index:
            texts = [
                "".join([self.pieces[i] for i in row[first : first + self.size]])
                for first in range(0, len(row), self.size)
            ]
            ngrams.append(self.separator.join(texts))
        return (
            [self.labels[i] for i in label_index],
            answer[1],
            answer[2],
            answer[3],
            answer[4],
            answer[5],
            [self.reasons[i] for i in reason_index],
            answer[7],
            answer[8],
            answer[9],
            answer[10],
            ngrams,
            answer[12],
        )


class NamedSoftmaxAnswers(nn.Module):
    """A traced padded classifier with the padding in front, scripted so that lengths are not kept, and the names."""

    labels: list[str]
    reasons: list[str]

    def __init__(
        self, traced: torch.jit.ScriptModule, limit: int, pad_id: int, labels: list[str], reasons: list[str]
    ) -> None:
        super().__init__()
        self.answer = traced
        self.limit = limit
        self.pad_id = pad_id
        self.labels = labels
        self.reasons = reasons

    def forward(
        self, input_ids: Tensor, lengths: Tensor
    ) -> tuple[list[str], Tensor, Tensor, Tensor, list[str], Tensor]:
        """input_ids [T], lengths [R, 1] -> the outputs of `export.outputs.SOFTMAX`."""
        ids, mask = pad_rows(input_ids, lengths, self.limit, self.pad_id)
        answer = self.answer(ids, mask)
        label_index: list[int] = answer[0][:, 0].tolist()
        reason_index: list[int] = answer[4][:, 0].tolist()
        return (
            [self.labels[i] for i in label_index],
            answer[1],
            answer[2],
            answer[3],
            [self.reasons[i] for i in reason_index],
            answer[5],
        )


class NamedMultiLabelAnswers(nn.Module):
    """As `NamedSoftmaxAnswers`, for any number of labels of a text."""

    reasons: list[str]

    def __init__(self, traced: torch.jit.ScriptModule, limit: int, pad_id: int, reasons: list[str]) -> None:
        super().__init__()
        self.answer = traced
        self.limit = limit
        self.pad_id = pad_id
        self.reasons = reasons

    def forward(self, input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[str]]:
        """input_ids [T], lengths [R, 1] -> the outputs of `export.outputs.MULTI_LABEL`."""
        ids, mask = pad_rows(input_ids, lengths, self.limit, self.pad_id)
        answer = self.answer(ids, mask)
        reason_index: list[int] = answer[5][:, 0].tolist()
        return (answer[0], answer[1], answer[2], answer[3], answer[4], [self.reasons[i] for i in reason_index])


class RegressionAnswers(nn.Module):
    """A traced padded regression model with the padding in front; it has no names to give."""

    def __init__(self, traced: torch.jit.ScriptModule, limit: int, pad_id: int) -> None:
        super().__init__()
        self.answer = traced
        self.limit = limit
        self.pad_id = pad_id

    def forward(self, input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids [T], lengths [R, 1] -> the outputs of `export.outputs.REGRESSION`."""
        ids, mask = pad_rows(input_ids, lengths, self.limit, self.pad_id)
        answer = self.answer(ids, mask)
        return answer[0], answer[1]


def write_torchscript(classifier: ServedClassifier | PaddedClassifier, labels: Sequence[str], path: Path) -> None:
    """Trace the classifier and write it to `path`.

    Raises:
        GraphError: if it cannot be traced, or the trace draws random numbers.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # Tracing warns of every Python number it keeps; the gate compares at many shapes, which is the real check.
            warnings.simplefilter("ignore")
            if isinstance(classifier, PaddedClassifier):
                traced = torch.jit.trace(classifier.answer.eval(), classifier.example(), check_trace=False)
                named = _named(traced, classifier, list(labels))
            else:
                traced = torch.jit.trace(classifier.eval(), example_inputs(), check_trace=False)
                named = NamedAnswers(traced, list(labels), list(REASONS), classifier.pieces)
            _follow_the_input(traced)
            scripted = torch.jit.script(named)
            random = sorted({node.kind() for node in traced.inlined_graph.nodes() if _draws(node)})
    except (RuntimeError, TypeError) as error:
        raise GraphError(f"torch.jit could not trace the model: {error}") from error
    if random:
        raise GraphError(
            f"the trace draws random numbers: {', '.join(random)}; export the model in evaluation mode (model.eval())"
        )
    scripted.save(path)


def open_torchscript(path: Path) -> torch.jit.ScriptModule:
    """Load a written file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch points to torch.export, which this backend has not
        module: torch.jit.ScriptModule = torch.jit.load(path)
    return module


def _named(traced: torch.jit.ScriptModule, classifier: PaddedClassifier, labels: list[str]) -> nn.Module:
    """The padding in front of a traced padded model, and behind it the names that its kind gives."""
    padding = (classifier.limit, classifier.pad_id)
    if classifier.kind == MULTI_LABEL:
        return NamedMultiLabelAnswers(traced, *padding, list(REASONS))
    if classifier.kind == REGRESSION:
        return RegressionAnswers(traced, *padding)
    return NamedSoftmaxAnswers(traced, *padding, labels, list(REASONS))


def _follow_the_input(traced: torch.jit.ScriptModule) -> None:
    """Make new tensors where the input is: a trace records the device it was made on, and would fail on another."""
    module: Any
    for module in traced.modules():
        if not module._c._has_method("forward"):
            continue  # never called by itself in the trace
        graph = module.graph
        recorded = [node for node in graph.nodes() if _is_device(node)]
        if not recorded:
            continue
        tensor = next(value for value in graph.inputs() if value.type().isSubtypeOf(torch.TensorType.get()))
        device = graph.create("prim::device", [tensor])
        device.output().setType(torch.DeviceObjType.get())
        graph.prependNode(device)
        for node in recorded:
            node.output().replaceAllUsesWith(device.output())


def _is_device(node: torch.Node) -> bool:
    return node.kind() == "prim::Constant" and node.output().type().kind() == "DeviceObjType"


def _draws(node: torch.Node) -> bool:
    kind = node.kind()
    if kind == "aten::dropout":
        return bool(list(node.inputs())[2].toIValue())  # its flag `train`
    return kind.startswith(_RANDOM)
