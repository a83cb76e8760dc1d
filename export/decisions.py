"""What is decided from calibration rows for the heads that have no single label, beside `train.decision.Decision`.

A multi-label head answers one yes-or-no question for each label, so each has a temperature and an error budget of its
own. A regression head answers with a number, and what can be promised of it is an interval. The kind of a version
(`export.outputs`) says which of the three its manifest holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from export.outputs import MULTI_LABEL, REGRESSION, Kind
from train.decision import Decision


@dataclass(frozen=True)
class LabelDecision:
    """The yes-or-no question of one label; an answer is wrong where `p >= 0.5` is not the truth."""

    label: str
    temperature: float
    risk_threshold: float  # decided where the binary entropy (nats) <= this; `train.decision.NOTHING`: never
    positives: int  # calibration rows that carry the label, of all
    decided_share: float  # of the scored calibration rows
    decided_error: float  # observed among the decided rows; 0 where none is
    decided_error_bound: float  # its upper bound at the confidence; 1 where none is
    message: str  # empty, or why it is never decided


@dataclass(frozen=True)
class MultiLabelDecision:
    """Temperatures and thresholds of every label. Budget and confidence hold for each label by itself."""

    max_error: float
    confidence: float
    rows: int  # scored
    accepted_share: float  # of the scored calibration rows: no label undecided
    labels: tuple[LabelDecision, ...]
    message: str  # empty, or what a user should know

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a manifest."""
        return asdict(self)


@dataclass(frozen=True)
class RegressionDecision:
    """The split-conformal interval around a value (Lei et al. 2018, 1604.04173)."""

    conformal_level: float
    half_width: float  # in units of the value: the ⌈(n+1)·level⌉-th smallest |y - value| of n calibration rows
    rows: int
    mean_absolute_error: float  # of the calibration rows, in units of the value
    scale: float  # standard deviation of the values on the calibration rows
    message: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a manifest."""
        return asdict(self)


AnyDecision = Decision | MultiLabelDecision | RegressionDecision


def decision_of(kind: Kind, record: Mapping[str, Any]) -> AnyDecision:
    """The decision that a manifest holds under `calibration`."""
    if kind == REGRESSION:
        return RegressionDecision(**record)
    if kind == MULTI_LABEL:
        return MultiLabelDecision(**{**record, "labels": tuple(LabelDecision(**entry) for entry in record["labels"])})
    return Decision(**record)
