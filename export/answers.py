"""Answers of many texts from any side of the gate, and how two sides differ.

PyTorch, TorchScript, ONNX Runtime and the live server all end in one `Answers`. The reference is the model itself, on
each text alone, with the decision taken here from its thresholds and not by the exported graph, so that a mistake in
the graph's own decision shows as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.outputs import REASONS
from export.texts import Ids
from train.decision import Decision
from train.model import BetForSequenceClassification
from train.prediction import pack

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Answers:
    """What one side says about N texts; fields are named as the served outputs."""

    label: NDArray[np.str_]  # [N]
    probabilities: Floats  # [N, C]
    total: Floats  # [N] nats
    aleatoric: Floats  # [N] nats
    epistemic: Floats  # [N] nats
    review: NDArray[np.bool_]  # [N]
    reason: NDArray[np.str_]  # [N]
    prediction_set: NDArray[np.bool_]  # [N, C]
    concentration: Floats  # [N, C]
    order_dispersion: Floats  # [N]
    evidence_budget: NDArray[np.int32]  # [N]

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Answers:
        """These rows, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        return Answers(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @staticmethod
    def of_outputs(outputs: Sequence[Any]) -> Answers:
        """From a graph's outputs in their order, each an array or tensor [R, 1] or [R, C], or a list of R names."""
        values: dict[str, Any] = {}
        for field, output in zip(fields(Answers), outputs, strict=True):
            array = np.array(output, dtype=np.str_) if field.name in ("label", "reason") else np.asarray(output)
            per_class = field.name in ("probabilities", "prediction_set", "concentration")
            values[field.name] = array if per_class else array.reshape(-1)
        return Answers(**values)

    @staticmethod
    def joined(parts: Sequence[Answers]) -> Answers:
        """All rows of the parts, one after the other."""
        return Answers(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Answers)})


@torch.no_grad()
def reference_answers(
    model: BetForSequenceClassification, decision: Decision, labels: Sequence[str], documents: Sequence[Ids]
) -> Answers:
    """The model's own answers, each text alone, in eager PyTorch."""
    parts = []
    for document in documents:
        p = model.predict(*pack([document]))
        total, epistemic = p.total.numpy(), p.epistemic.numpy()
        uncertain = ~(total <= np.float32(decision.risk_threshold))
        unfamiliar = ~(epistemic <= np.float32(decision.novelty_threshold))
        probabilities = p.probabilities.numpy()
        parts.append(
            Answers(
                label=np.array(labels, dtype=np.str_)[probabilities.argmax(1)],
                probabilities=probabilities,
                total=total,
                aleatoric=p.aleatoric.numpy(),
                epistemic=epistemic,
                review=uncertain | unfamiliar,
                reason=np.where(uncertain, REASONS[1], np.where(unfamiliar, REASONS[2], REASONS[0])),
                prediction_set=(1 - probabilities) <= np.float32(decision.conformal_threshold),
                concentration=p.concentration.numpy(),
                order_dispersion=p.order_dispersion.numpy(),
                evidence_budget=p.evidence_budget.numpy().astype(np.int32),
            )
        )
    return Answers.joined(parts)


@dataclass(frozen=True)
class Difference:
    """How far one side is from the reference over N texts; a value that is not finite counts as infinitely far."""

    probabilities: float  # largest |Δp|
    uncertainty: float  # largest difference of total, aleatoric or epistemic, nats
    concentration: float  # largest relative difference
    order_dispersion: float  # largest difference
    evidence_budget: float  # largest difference, orders
    label_flips: int
    review_flips: int
    reason_flips: int
    prediction_set_flips: int
    non_finite: tuple[str, ...]  # outputs, by name, of either side
    worst: int  # the text with the largest |Δp|


def compare(reference: Answers, other: Answers) -> Difference:
    """Measure `other` against the reference, row by row."""
    p = _gap(reference.probabilities, other.probabilities).max(1)
    uncertainty = max(
        float(_gap(getattr(reference, name), getattr(other, name)).max())
        for name in ("total", "aleatoric", "epistemic")
    )
    scale = np.maximum(np.abs(reference.concentration), 1e-6)
    budget = np.abs(reference.evidence_budget.astype(np.int64) - other.evidence_budget.astype(np.int64))
    return Difference(
        probabilities=float(p.max()),
        uncertainty=uncertainty,
        concentration=float((_gap(reference.concentration, other.concentration) / scale).max()),
        order_dispersion=float(_gap(reference.order_dispersion, other.order_dispersion).max()),
        evidence_budget=float(budget.max()),
        label_flips=int((reference.label != other.label).sum()),
        review_flips=int((reference.review != other.review).sum()),
        reason_flips=int((reference.reason != other.reason).sum()),
        prediction_set_flips=int((reference.prediction_set != other.prediction_set).any(1).sum()),
        non_finite=tuple(sorted(set(_non_finite(reference)) | set(_non_finite(other)))),
        worst=int(p.argmax()),
    )


def _gap(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    # NaN on both sides would compare as nothing at all; it must be the worst there is.
    gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return np.where(np.isfinite(gap), gap, np.inf)


def _non_finite(answers: Answers) -> list[str]:
    return [
        field.name
        for field in fields(answers)
        if (values := getattr(answers, field.name)).dtype.kind == "f" and not np.isfinite(values).all()
    ]
