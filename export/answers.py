"""Answers of many texts from any side of the gate, and how two sides differ.

PyTorch, TorchScript, ONNX Runtime and the live server all end in one `Answers`. An output that a kind of classifier
does not have is None on every side; one that a single side lacks counts as infinitely far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Answers:
    """What one side says about N texts; fields are named as the served outputs."""

    label: NDArray[np.str_]  # [N]
    probabilities: Floats  # [N, C]
    total: Floats  # [N] nats
    review: NDArray[np.bool_]  # [N]
    reason: NDArray[np.str_]  # [N]
    prediction_set: NDArray[np.bool_]  # [N, C]
    aleatoric: Floats | None = None  # [N] nats
    epistemic: Floats | None = None  # [N] nats
    concentration: Floats | None = None  # [N, C]
    order_dispersion: Floats | None = None  # [N]
    evidence_budget: NDArray[np.int32] | None = None  # [N]

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Answers:
        """These rows, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        return Answers(**{name: values[index] for name, values in self.given().items()})

    def given(self) -> dict[str, NDArray[Any]]:
        """The outputs that there are, by name."""
        return {field.name: values for field in fields(self) if (values := getattr(self, field.name)) is not None}

    @staticmethod
    def of_outputs(names: Sequence[str], outputs: Sequence[Any]) -> Answers:
        """From a graph's outputs and their names, each an array or tensor [R, 1] or [R, C], or a list of R names."""
        values: dict[str, Any] = {}
        for name, output in zip(names, outputs, strict=True):
            array = np.array(output, dtype=np.str_) if name in ("label", "reason") else np.asarray(output)
            per_class = name in ("probabilities", "prediction_set", "concentration")
            values[name] = array if per_class else array.reshape(-1)
        return Answers(**values)

    @staticmethod
    def joined(parts: Sequence[Answers]) -> Answers:
        """All rows of the parts, one after the other."""
        return Answers(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in parts[0].given()})


@dataclass(frozen=True)
class Difference:
    """How far one side is from the reference over N texts; a value that is not finite counts as infinitely far."""

    probabilities: float  # largest |Δp|
    uncertainty: float  # largest difference of total, aleatoric or epistemic, nats
    concentration: float | None  # largest relative difference
    order_dispersion: float | None  # largest difference
    evidence_budget: float | None  # largest difference, orders
    label_flips: int
    review_flips: int
    reason_flips: int
    prediction_set_flips: int
    non_finite: tuple[str, ...]  # outputs, by name, of either side
    worst: int  # the text with the largest |Δp|


def compare(reference: Answers, other: Answers) -> Difference:
    """Measure `other` against the reference, row by row."""
    p = _gap(reference.probabilities, other.probabilities).max(1)
    return Difference(
        probabilities=float(p.max()),
        uncertainty=max(_largest(reference, other, name) or 0.0 for name in ("total", "aleatoric", "epistemic")),
        concentration=_largest(reference, other, "concentration", relative=True),
        order_dispersion=_largest(reference, other, "order_dispersion"),
        evidence_budget=_largest(reference, other, "evidence_budget"),
        label_flips=int((reference.label != other.label).sum()),
        review_flips=int((reference.review != other.review).sum()),
        reason_flips=int((reference.reason != other.reason).sum()),
        prediction_set_flips=int((reference.prediction_set != other.prediction_set).any(1).sum()),
        non_finite=tuple(sorted(set(_non_finite(reference)) | set(_non_finite(other)))),
        worst=int(p.argmax()),
    )


def _largest(reference: Answers, other: Answers, name: str, *, relative: bool = False) -> float | None:
    """The largest difference of an output; None where neither side has it, infinite where only one has."""
    a, b = getattr(reference, name), getattr(other, name)
    if a is None and b is None:
        return None
    if a is None or b is None:
        return math.inf
    gap = _gap(a, b)
    return float((gap / np.maximum(np.abs(a), 1e-6) if relative else gap).max())


def _gap(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    # NaN on both sides would compare as nothing at all; it must be the worst there is.
    gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return np.where(np.isfinite(gap), gap, np.inf)


def _non_finite(answers: Answers) -> list[str]:
    return [name for name, v in answers.given().items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
