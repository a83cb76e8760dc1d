"""Answers of many texts from any side of the gate, and how two sides differ.

PyTorch, TorchScript, ONNX Runtime and the live server all end in one `Answers`. An output that a kind of classifier
does not have is None on every side; one that a single side lacks counts as infinitely far.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.outputs import PIECES, WIDE
from export.pieces import NGRAM_SEPARATOR

Floats = NDArray[np.float32]

VALUE_TOLERANCE = 5e-4
"""What a regression's value may differ by, in standard deviations of the values. The arithmetic is that of a softmax's
logits, without an activation that would shrink what each library rounds: eight families of two layers differ by up to
2.1e-5, and deeper ones need room. A twentieth of a hundredth of the spread is finer than anybody labels."""

EVIDENCE_TOLERANCE = 1e-4
"""Nats that an n-gram may say more or less on another side; two that are no further apart may change places."""


@dataclass(frozen=True)
class Answers:
    """What one side says about N texts; fields are named as the served outputs."""

    label: NDArray[np.str_] | None = None  # [N]
    probabilities: Floats | None = None  # [N, C]
    total: Floats | None = None  # [N] nats
    review: NDArray[np.bool_] | None = None  # [N]
    reason: NDArray[np.str_] | None = None  # [N]
    prediction_set: NDArray[np.bool_] | None = None  # [N, C]
    aleatoric: Floats | None = None  # [N] nats
    epistemic: Floats | None = None  # [N] nats
    concentration: Floats | None = None  # [N, C]
    order_dispersion: Floats | None = None  # [N]
    evidence_budget: NDArray[np.int32] | None = None  # [N]
    evidence_ngrams: NDArray[np.str_] | None = None  # [N, 8], empty behind the last
    evidence_nats: Floats | None = None  # [N, 8]
    assigned: NDArray[np.bool_] | None = None  # [N, C]
    undecided: NDArray[np.bool_] | None = None  # [N, C]
    value: Floats | None = None  # [N]
    prediction_interval: Floats | None = None  # [N, 2]

    def __len__(self) -> int:
        return len(next(iter(self.given().values())))

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Answers:
        """These rows, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        return Answers(**{name: values[index] for name, values in self.given().items()})

    def only(self, names: Iterable[str]) -> Answers:
        """These outputs, as far as there are any."""
        given = self.given()
        return Answers(**{name: given[name] for name in names if name in given})

    def given(self) -> dict[str, NDArray[Any]]:
        """The outputs that there are, by name."""
        return {field.name: values for field in fields(self) if (values := getattr(self, field.name)) is not None}

    @staticmethod
    def of_outputs(names: Sequence[str], outputs: Sequence[Any]) -> Answers:
        """From a graph's outputs and their names, each an array or tensor [R, 1] or [R, C], or a list of R names."""
        values: dict[str, Any] = {}
        for name, output in zip(names, outputs, strict=True):
            if name == "evidence_ngrams":
                values[name] = _ngrams(output)
                continue
            array = np.array(output, dtype=np.str_) if name in ("label", "reason") else np.asarray(output)
            values[name] = array if name in WIDE else array.reshape(-1)
        return Answers(**values)

    @staticmethod
    def joined(parts: Sequence[Answers]) -> Answers:
        """All rows of the parts, one after the other."""
        return Answers(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in parts[0].given()})


@dataclass(frozen=True)
class Difference:
    """How far one side is from the reference over N texts; a value that is not finite counts as infinitely far.

    None where neither side has the output; infinitely far, or all texts, where a single side has it.
    """

    probabilities: float | None  # largest |Δp|
    value: float | None  # largest difference of value or interval, in scales of the values (see `scale_of`)
    uncertainty: float | None  # largest difference of total, aleatoric or epistemic, nats
    concentration: float | None  # largest relative difference
    order_dispersion: float | None  # largest difference
    evidence_budget: float | None  # largest difference, orders
    evidence: float | None  # largest difference of the n-grams' nats without their signs, the heaviest first
    label_flips: int | None  # texts with another label, or another set of labels
    review_flips: int | None
    reason_flips: int | None
    prediction_set_flips: int | None
    undecided_flips: int | None  # texts with other undecided labels
    ngram_flips: int | None  # texts with another n-gram, or one with other nats, beyond what may change places
    non_finite: tuple[str, ...]  # outputs, by name, of either side
    worst: int  # the text with the largest difference of `answer`

    @property
    def answer(self) -> float:
        """The difference that the gate calls parity: of the probabilities, or of the value."""
        return max(gap for gap in (self.probabilities, self.value) if gap is not None)


def compare(reference: Answers, other: Answers, scale: float | None = None) -> Difference:
    """Measure `other` against the reference, row by row.

    Args:
        scale: of the values of a regression, where the reference is a part of a whole that has another.
    """
    scale = scale_of(reference) if scale is None else scale
    p = _rows_apart(reference.probabilities, other.probabilities)
    value = _values_apart(reference, other, scale)
    answer = np.stack([gap for gap in (p, value) if gap is not None]).max(0)
    nats = [_largest(reference, other, name) for name in ("total", "aleatoric", "epistemic")]
    labels = [_flips(reference, other, name) for name in ("label", "assigned")]
    return Difference(
        probabilities=None if p is None else float(p.max()),
        value=None if value is None else float(value.max()),
        uncertainty=max((gap for gap in nats if gap is not None), default=None),
        concentration=_largest(reference, other, "concentration", relative=True),
        order_dispersion=_largest(reference, other, "order_dispersion"),
        evidence_budget=_largest(reference, other, "evidence_budget"),
        evidence=_largest(_loudness(reference), _loudness(other), "evidence_nats"),
        label_flips=max((flips for flips in labels if flips is not None), default=None),
        review_flips=_flips(reference, other, "review"),
        reason_flips=_flips(reference, other, "reason"),
        prediction_set_flips=_flips(reference, other, "prediction_set"),
        undecided_flips=_flips(reference, other, "undecided"),
        ngram_flips=_ngram_flips(reference, other),
        non_finite=tuple(sorted(set(_non_finite(reference)) | set(_non_finite(other)))),
        worst=int(answer.argmax()),
    )


def scale_of(reference: Answers) -> float:
    """In what the differences of a regression are told: the standard deviation of its values over the texts.

    The unit is the user's own (stars, years, euros), so only the spread says what is much. What float32 cannot resolve
    at the size of a value is taken off before: a year of birth is known to 0.0001, however little the years differ.
    """
    if reference.value is None:
        return 1.0
    with np.errstate(invalid="ignore"):
        spread = float(np.std(reference.value.astype(np.float64)))
    return spread if math.isfinite(spread) and spread > 0 else float(np.finfo(np.float32).tiny)


def _values_apart(reference: Answers, other: Answers, scale: float) -> NDArray[np.float64] | None:
    """The largest difference of value or interval in each row, in scales."""
    gaps: list[NDArray[np.float64]] = []
    for name in ("value", "prediction_interval"):
        own = getattr(reference, name)
        gap = _rows_apart(own, getattr(other, name))
        if gap is not None:
            gaps.append(gap if own is None else np.maximum(gap - _resolution(own), 0) / scale)
    if not gaps:
        return None
    largest: NDArray[np.float64] = np.stack(gaps).max(0)
    return largest


def _resolution(values: NDArray[Any]) -> NDArray[np.float64]:
    """Four units in the last place of the largest number in each row, float64 [N]."""
    largest: NDArray[np.float64] = np.abs(values.astype(np.float64)).reshape(len(values), -1).max(1)
    # Of what is no number, nothing is taken off: it must stay infinitely far.
    return np.where(np.isfinite(largest), largest, 0) * 4 * float(np.finfo(np.float32).eps)


def _rows_apart(a: NDArray[Any] | None, b: NDArray[Any] | None) -> NDArray[np.float64] | None:
    """The largest difference in each row; None where neither side has the output, infinite where only one has."""
    if a is None and b is None:
        return None
    if a is None or b is None:
        there = a if a is not None else b
        return np.full(len(there) if there is not None else 0, np.inf)
    largest: NDArray[np.float64] = _gap(a, b).reshape(len(a), -1).max(1)
    return largest


def _flips(reference: Answers, other: Answers, name: str) -> int | None:
    """Texts whose entries differ; None where neither side has the output, all of them where only one has."""
    a, b = getattr(reference, name), getattr(other, name)
    if a is None and b is None:
        return None
    if a is None or b is None:
        return len(reference)
    return int((a != b).reshape(len(a), -1).any(1).sum())


def _ngrams(output: Any) -> NDArray[np.str_]:
    """n-grams [N, 8] from pieces [N, 24], or from N texts with an n-gram on each line."""
    if isinstance(output, list):
        return np.array([text.split(NGRAM_SEPARATOR) for text in output], dtype=np.str_)
    pieces = np.asarray(output).reshape(len(output), -1, PIECES)
    return np.array([["".join(parts) for parts in row] for row in pieces.tolist()], dtype=np.str_)


def _loudness(answers: Answers) -> Answers:
    nats = answers.evidence_nats
    return answers if nats is None else replace(answers, evidence_nats=np.abs(nats))


def _ngram_flips(reference: Answers, other: Answers) -> int | None:
    """Texts in which a side misses an n-gram that the other names; None where neither names any.

    The quietest that are named may have been chosen otherwise among equals, so they may be missing.
    """
    if reference.evidence_ngrams is None and other.evidence_ngrams is None:
        return None
    sides = [(side.evidence_ngrams, side.evidence_nats) for side in (reference, other)]
    named = [(ngrams, nats) for ngrams, nats in sides if ngrams is not None and nats is not None]
    if len(named) < 2:
        return len(reference)
    (ngrams, nats), (others, their_nats) = named
    same = ((ngrams == others) & (np.abs(nats - their_nats) <= EVIDENCE_TOLERANCE)).all(1)
    return sum(
        not (_all_named(ngrams[i], nats[i], others[i], their_nats[i]))
        or not _all_named(others[i], their_nats[i], ngrams[i], nats[i])
        for i in np.flatnonzero(~same)
    )


def _all_named(ngrams: NDArray[np.str_], nats: Floats, others: NDArray[np.str_], their_nats: Floats) -> bool:
    """Whether each n-gram of a text that is louder than the quietest named stands among the others, with its nats."""
    near = np.abs(nats[:, None] - their_nats) <= EVIDENCE_TOLERANCE
    found = ((ngrams[:, None] == others) & near).any(1)
    return bool((found | (np.abs(nats) <= np.abs(nats).min() + EVIDENCE_TOLERANCE)).all())


def _largest(reference: Answers, other: Answers, name: str, *, relative: bool = False) -> float | None:
    """The largest difference of an output; None where neither side has it, infinite where only one has."""
    a, b = getattr(reference, name), getattr(other, name)
    gap = _rows_apart(a, b)
    if gap is None:
        return None
    if relative and a is not None and b is not None:
        gap = _gap(a, b) / np.maximum(np.abs(a), 1e-6)
    return float(gap.max())


def _gap(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    # NaN on both sides would compare as nothing at all; it must be the worst there is.
    with np.errstate(invalid="ignore"):  # infinity less infinity
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return np.where(np.isfinite(gap), gap, np.inf)


def _non_finite(answers: Answers) -> list[str]:
    return [name for name, v in answers.given().items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
