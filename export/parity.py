"""The gate: exported graphs must answer as PyTorch does, on real texts, at every length, with any neighbours.

Each text alone, joined with neighbours at random, and in rectangular requests that are filled up with -1: against the
model on each text alone. What misses a tolerance does not enter the repository.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from export.answers import EVIDENCE_TOLERANCE, VALUE_TOLERANCE, Answers, Difference, Floats, compare, scale_of
from export.encoder import Ids
from export.outputs import MULTI_LABEL, REASONS, REGRESSION, Kind
from export.texts import GateText
from train.metrics import nll
from train.model.segments import FILL
from verdict import Report

Tolerances = Mapping[str, float]

TOLERANCES: Tolerances = {
    "probabilities": 1e-5,  # the contract
    # The entropy's slope is log((1-p)/p), at most 11.5 at the smallest probability the model gives (1e-5): what the
    # contract allows in p may be 1.2e-4 nats.
    "uncertainty": 1e-4,
    # Relative, since it reaches 1e4: there the deviation of p is 3e-5 and float32 resolves 1 - p to 6e-8, which is
    # 0.4 % of its square, and more than one such rounding meets.
    "concentration": 2e-2,
    "order_dispersion": 1e-5,  # a standard deviation of probabilities
    "evidence_budget": 1,  # it is rounded to whole orders, and either side of .5 is a right answer
    "evidence": EVIDENCE_TOLERANCE,
}
PADDED_TOLERANCES: Tolerances = {
    # Twelve layers of products whose sums each library orders anew, for each width that a row is padded to, and a
    # temperature below 1 that multiplies what comes out. The nats follow by the entropy's slope.
    "probabilities": 1e-4,
    "uncertainty": 1e-3,
}
REGRESSION_TOLERANCES: Tolerances = {"value": VALUE_TOLERANCE}


def tolerances_of(kind: Kind, labels: int) -> Tolerances:
    """What a kind of model with so many labels may differ by."""
    if kind == REGRESSION:
        return REGRESSION_TOLERANCES
    if kind == MULTI_LABEL:  # its total is a sum over the labels, each of which may differ by as much as a softmax's
        return {**PADDED_TOLERANCES, "uncertainty": labels * PADDED_TOLERANCES["uncertainty"]}
    return PADDED_TOLERANCES if kind.padded else TOLERANCES


_OTHERS = {
    "uncertainty": "nats",
    "concentration": "relative",
    "order_dispersion": "",
    "evidence_budget": "orders",
    "evidence": "nats",
}
FLIPS = (
    "label_flips",
    "review_flips",
    "reason_flips",
    "prediction_set_flips",
    "undecided_flips",
    "ngram_flips",
)

Executor = Callable[[Ids, np.ndarray[Any, np.dtype[np.int32]]], Answers]
"""input_ids [T], lengths [R, 1] -> answers of R texts."""

_JOINT_SIZES = (2, 3, 7, 16, 64)
_FILLED_SIZES = (2, 3, 7, 32)
_BANDED_SIZES = (2, 3, 7)
_SHOWN_CHARACTERS = 80
_BINS = 15


def torch_executor(classifier: nn.Module, kind: Kind, labels: Sequence[str]) -> Executor:
    """Eager PyTorch; against itself alone it shows whether a text's answer depends on its neighbours."""
    names = [output.name for output in kind.outputs]

    def execute(ids: Ids, lengths: np.ndarray[Any, np.dtype[np.int32]]) -> Answers:
        with torch.no_grad():
            tensors = classifier(torch.from_numpy(ids), torch.from_numpy(lengths))
        answer = dict(zip(names, (tensor.numpy() for tensor in tensors), strict=True))
        said_of = {"label": labels, "reason": REASONS, "evidence_ngrams": getattr(classifier, "pieces", ())}
        for name, said in said_of.items():
            if name in answer:
                answer[name] = np.array(said, dtype=np.str_)[answer[name]]
        return Answers.of_outputs(names, list(answer.values()))

    return execute


def torchscript_executor(module: torch.jit.ScriptModule, kind: Kind) -> Executor:
    """The saved TorchScript file."""
    names = [output.name for output in kind.outputs]

    def execute(ids: Ids, lengths: np.ndarray[Any, np.dtype[np.int32]]) -> Answers:
        with torch.inference_mode():  # as Triton's backend runs it
            return Answers.of_outputs(names, module(torch.from_numpy(ids), torch.from_numpy(lengths)))

    return execute


def onnx_executor(session: onnxruntime.InferenceSession) -> Executor:
    """The saved ONNX file in ONNX Runtime."""
    names = [output.name for output in session.get_outputs()]

    def execute(ids: Ids, lengths: np.ndarray[Any, np.dtype[np.int32]]) -> Answers:
        return Answers.of_outputs(names, session.run(names, {"input_ids": ids, "lengths": lengths}))

    return execute


def ways_of_asking(
    documents: Sequence[Ids], seed: int = 0, *, padded: bool = False
) -> dict[str, list[tuple[list[int], bool]]]:
    """How the texts are put: name -> groups of text indices, and whether a group is filled up to a rectangle.

    Every way covers every text once; groups mix lengths at random. For a padded model, whose joined rows all cost as
    much as the longest, two groups mix every length and the others hold texts of similar ones.
    """
    random = np.random.default_rng(seed)
    if padded:
        return {
            "alone": [([i], False) for i in range(len(documents))],
            "joined": [(group, False) for group in _banded(documents, random)],
            "filled": [(group, True) for group in _banded(documents, random)],
        }
    return {
        "alone": [([i], False) for i in range(len(documents))],
        "joined": [(group, False) for group in _groups(len(documents), _JOINT_SIZES, random)],
        "filled": [(group, True) for group in _groups(len(documents), _FILLED_SIZES, random)],
    }


def run(executor: Executor, documents: Sequence[Ids], groups: Sequence[tuple[list[int], bool]]) -> Answers:
    """Execute the groups; answers come back in the order of the documents."""
    parts, order = [], []
    for group, filled in groups:
        rows = [documents[i] for i in group]
        if filled:
            width = max(len(row) for row in rows)
            rows = [np.pad(row, (0, width - len(row)), constant_values=FILL) for row in rows]
        lengths = np.array([[len(row)] for row in rows], dtype=np.int32)
        parts.append(executor(np.concatenate(rows), lengths))
        order += group
    return Answers.joined(parts).take(np.argsort(order))


@dataclass
class Parity:
    """The gate's findings, side by side: each side's answers in every way of asking, against the reference."""

    reference: Answers
    texts: Sequence[GateText]
    tolerances: Tolerances = field(default_factory=lambda: TOLERANCES)
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict)
    nll: float | None = None  # largest difference of the labelled texts' NLL and ECE, over sides and ways
    ece: float | None = None
    by_bucket: dict[str, dict[str, float]] = field(default_factory=dict)
    padded: bool = False  # how the texts are joined; see `ways_of_asking`

    def check(self, side: str, executor: Executor, reference: Answers | None = None) -> None:
        """Compare an executor in every way of asking."""
        documents = [text.ids for text in self.texts]
        ways = ways_of_asking(documents, padded=self.padded)
        self.add(side, {way: run(executor, documents, groups) for way, groups in ways.items()}, reference)

    def add(self, side: str, answers: Mapping[str, Answers], reference: Answers | None = None) -> None:
        """Compare one side's answers, by way of asking.

        Args:
            reference: where this side has a truth of its own, as a lower precision has.
        """
        reference = reference or self.reference
        self.differences[side] = {way: compare(reference, answer) for way, answer in answers.items()}
        self.by_bucket[side] = _by_bucket(reference, answers.values(), self.texts)
        labelled = [i for i, text in enumerate(self.texts) if text.label is not None]
        true = reference.probabilities
        if not labelled or true is None:
            return
        truth = np.array([self.texts[i].label for i in labelled])
        for answer in answers.values():
            if answer.probabilities is not None:
                apart = scores_apart(true[labelled], answer.probabilities[labelled], truth)
                self.nll, self.ece = max(self.nll or 0.0, apart[0]), max(self.ece or 0.0, apart[1])

    @property
    def non_finite(self) -> list[str]:
        """Outputs that are not finite somewhere, on whichever side, by name."""
        return sorted({output for _, _, difference in self._all() for output in difference.non_finite})

    def add_to(self, report: Report) -> None:
        """Add the checks, and under `parity` what is behind them."""
        is_value = self.reference.value is not None
        tolerance = self.tolerances["value" if is_value else "probabilities"]
        for side, ways in self.differences.items():
            largest = max(difference.answer for difference in ways.values())
            report.add(f"parity_{side}", largest, "of the values' spread" if is_value else "", f"<= {tolerance:g}")
        for name, unit in _OTHERS.items():
            values = [v for _, _, difference in self._all() if (v := getattr(difference, name)) is not None]
            if values:
                report.add(f"{name}_difference", max(values), unit, f"<= {self.tolerances.get(name, 0.0):g}")
        for flips in FLIPS:
            counts = [count for _, _, difference in self._all() if (count := getattr(difference, flips)) is not None]
            if counts:
                report.add(flips, sum(counts), "answers", "== 0")
        if self.nll is not None:
            report.add("nll_difference", self.nll, "nats", "<= 1e-4")
            report.add("ece_difference", self.ece, "", "<= 1e-4")
        report.add("non_finite", len(self.non_finite), "outputs", "== 0")
        report.details["parity"] = self.as_dict()

    def as_dict(self) -> dict[str, Any]:
        """What the parity report keeps: every side, way and bucket, and the worst text."""
        side, way, worst = max(self._all(), key=lambda entry: entry[2].answer)
        text = self.texts[worst.worst]
        return {
            "texts": len(self.texts),
            "texts_by_bucket": dict(Counter(text.bucket for text in self.texts)),  # every way covers all of them
            "groups": {
                way: sorted({len(group) for group, _ in groups})
                for way, groups in ways_of_asking([text.ids for text in self.texts], padded=self.padded).items()
            },
            "tolerances": dict(self.tolerances),
            "sides": {s: {w: _plain(asdict(d)) for w, d in ways.items()} for s, ways in self.differences.items()},
            "largest_by_bucket": {side: _plain(buckets) for side, buckets in self.by_bucket.items()},
            "non_finite": self.non_finite,
            "worst": {
                "side": side,
                "way": way,
                "difference": _plain({"answer": worst.answer})["answer"],
                "position": worst.worst,
                "bucket": text.bucket,
                "tokens": text.tokens,
                "text": text.text[:_SHOWN_CHARACTERS],
            },
        }

    def _all(self) -> Iterator[tuple[str, str, Difference]]:
        for side, ways in self.differences.items():
            for way, difference in ways.items():
                yield side, way, difference


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON, which has no infinity: a difference that is not finite becomes null."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}


def scores_apart(reference: Floats, other: Floats, truth: NDArray[Any]) -> tuple[float, float]:
    """By how much NLL (nats) and calibration error of two sides differ on labelled rows.

    Args:
        reference: probabilities [N, C], as `other`.
        truth: class indices [N], or which labels each row carries, bool [N, C]; the scores are then the means over
            the labels' yes-or-no questions.
    """
    if truth.ndim > 1:
        columns = [
            scores_apart(_yes_or_no(reference[:, c]), _yes_or_no(other[:, c]), truth[:, c])
            for c in range(truth.shape[1])
        ]
        nlls, eces = np.mean(columns, axis=0)
        return float(nlls), float(eces)
    labels = truth.astype(np.int64)
    # The reference's bins for both sides: rounding would swap rows of two bins whose confidences nearly agree.
    bins = np.array_split(np.argsort(reference.max(1), kind="stable"), _BINS)
    return (
        _apart(nll(reference, labels), nll(other, labels)),
        _apart(_ece(reference, labels, bins), _ece(other, labels, bins)),
    )


def _yes_or_no(probabilities: Floats) -> Floats:
    return np.stack([1 - probabilities, probabilities], axis=1)


def _apart(reference: float, other: float) -> float:
    gap = abs(reference - other)
    return gap if math.isfinite(gap) else math.inf


def _ece(probabilities: Floats, labels: Ids, bins: Sequence[Ids]) -> float:
    """Expected calibration error of the most probable class over given bins of rows."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    return sum(abs(float(confidence[b].mean() - right[b].mean())) * len(b) for b in bins if len(b)) / len(labels)


def _by_bucket(reference: Answers, answers: Iterable[Answers], texts: Sequence[GateText]) -> dict[str, float]:
    """Largest difference of the answer in each length bucket."""
    rows: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        rows.setdefault(text.bucket, []).append(i)
    given, scale = list(answers), scale_of(reference)
    return {
        bucket: max(compare(reference.take(index), answer.take(index), scale).answer for answer in given)
        for bucket, index in rows.items()
    }


def _banded(documents: Sequence[Ids], random: np.random.Generator) -> Iterator[list[int]]:
    """Groups of 7 and of 3 texts of every length from the shortest to the longest, then groups of similar lengths."""
    order = sorted((int(i) for i in random.permutation(len(documents))), key=lambda i: len(documents[i]))
    for size in (7, 3):
        if len(order) > size:
            mixed = [order[j * (len(order) - 1) // (size - 1)] for j in range(size)]
            yield [mixed[int(i)] for i in random.permutation(size)]
            order = [i for i in order if i not in mixed]
    turn = 0
    while order:
        size = _BANDED_SIZES[turn % len(_BANDED_SIZES)]
        yield order[:size][::-1]
        order = order[size:]
        turn += 1


def _groups(count: int, sizes: Sequence[int], random: np.random.Generator) -> Iterator[list[int]]:
    order = [int(i) for i in random.permutation(count)]
    turn = 0
    while order:
        size = sizes[turn % len(sizes)]
        yield order[:size]
        order = order[size:]
        turn += 1
