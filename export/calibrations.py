"""Calibration of the heads that have no single label: scores of the user's rows, from which a decision is made.

Multi-label: every fourth row fits a temperature for each label and chooses where its Learn-then-Test begins; the others
prove the label's error budget, as `train.calibration` does for a single label. Regression: nothing is fitted, so every
row counts towards the conformal interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from export.answers import Floats
from export.decisions import AnyDecision, LabelDecision, MultiLabelDecision, RegressionDecision
from export.reference import binary_entropy
from train.calibration import Calibration
from train.decision import best_supported_threshold, clopper_pearson_upper, learn_then_test
from train.errors import CalibrationError
from train.temperature import fit_temperature

LEVEL = 0.95  # of prediction intervals, as of prediction sets
_HIGHEST = math.log(2)  # entropy of a yes-or-no question, nats


def require_enough(path: Path, rows: int, scored: int, least: int) -> None:
    """Refuse rows that could not prove a budget if every answer were right.

    Raises:
        CalibrationError: naming how many it takes.
    """
    if scored < least:
        raise CalibrationError(
            f"{path} holds {rows} rows, of which {scored} are left to prove the error budget on, and it takes at least "
            f"{least} without an error: give at least {-(-least * 4 // 3)} rows, or allow a larger --max-error"
        )


@dataclass(frozen=True)
class MultiLabelCalibration:
    """Logits of the calibration rows, and which labels each row carries."""

    label_names: tuple[str, ...]
    logits: Floats  # [N, C]
    truth: NDArray[np.bool_]  # [N, C]

    @staticmethod
    def fitting(rows: int) -> NDArray[np.bool_]:
        """Which of N rows fit, bool [N]; the others are scored."""
        return np.resize([True, False, False, False], rows)

    @property
    def accuracy(self) -> float:
        """Share of right yes-or-no answers of the scored rows, over all labels; no temperature changes it."""
        scored = ~self.fitting(len(self.truth))
        return float(((self.logits >= 0) == self.truth)[scored].mean())

    def decide(self, max_error: float, confidence: float) -> MultiLabelDecision:
        """Prove the budget of each label by itself.

        Raises:
            CalibrationError: for a budget or a confidence outside (0, 1).
        """
        fit = self.fitting(len(self.truth))
        decided = np.ones(int((~fit).sum()), dtype=bool)
        labels = []
        for index, name in enumerate(self.label_names):
            label, within = self._decide_label(index, name, fit, max_error, confidence)
            labels.append(label)
            decided &= within
        unproven = [f"label {label.label!r} is always undecided: {label.message}" for label in labels if label.message]
        return MultiLabelDecision(
            max_error=max_error,
            confidence=confidence,
            rows=len(decided),
            accepted_share=float(decided.mean()),
            labels=tuple(labels),
            message="; ".join(unproven),
        )

    def _decide_label(
        self, index: int, name: str, fit: NDArray[np.bool_], max_error: float, confidence: float
    ) -> tuple[LabelDecision, NDArray[np.bool_]]:
        logits, truth = self.logits[:, index], self.truth[:, index]
        temperature = fit_temperature(_as_two_classes(logits[fit]), truth[fit].astype(np.int64))
        risk = binary_entropy(expit(logits.astype(np.float64) / temperature))
        correct = (logits >= 0) == truth
        threshold, message = learn_then_test(
            risk[~fit],
            correct[~fit],
            np.ones(int((~fit).sum()), dtype=bool),
            max_error=max_error,
            confidence=confidence,
            highest=_HIGHEST,
            start=best_supported_threshold(risk[fit], correct[fit], max_error=max_error, highest=_HIGHEST),
        )
        within = risk[~fit] <= threshold
        rows, errors = int(within.sum()), int((within & ~correct[~fit]).sum())
        decision = LabelDecision(
            label=name,
            temperature=temperature,
            risk_threshold=threshold,
            positives=int(truth.sum()),
            decided_share=rows / len(within),
            decided_error=errors / rows if rows else 0.0,
            decided_error_bound=float(clopper_pearson_upper(errors, rows, confidence)),
            message=message,
        )
        return decision, within


@dataclass(frozen=True)
class RegressionCalibration:
    """Values that the model gives the calibration rows, and the right ones."""

    path: Path
    values: NDArray[np.float64]  # [N]
    truth: NDArray[np.float64]  # [N]

    def decide(self, max_error: float, confidence: float) -> RegressionDecision:
        """The interval; a number is neither right nor wrong, so budget and confidence decide nothing here.

        Raises:
            CalibrationError: if the rows are too few for the level.
        """
        residuals = np.sort(np.abs(self.truth - self.values))
        rows = len(residuals)
        rank = math.ceil(round((rows + 1) * LEVEL, 9))
        if rank > rows:
            least = math.ceil(round(LEVEL / (1 - LEVEL), 9))
            raise CalibrationError(
                f"{self.path} holds {rows} rows, and an interval that covers {LEVEL:.0%} takes at least {least}; give "
                "more labelled rows"
            )
        return RegressionDecision(
            conformal_level=LEVEL,
            half_width=float(np.float32(residuals[rank - 1])),
            rows=rows,
            mean_absolute_error=float(residuals.mean()),
            scale=float(self.values.std()),
        )


AnyCalibration = Calibration | MultiLabelCalibration | RegressionCalibration


def summary(calibration: AnyCalibration, decision: AnyDecision) -> list[tuple[str, float, str]]:
    """What a report says of a calibration: names, values and units."""
    rows = "of calibration rows"
    if isinstance(decision, RegressionDecision):
        return [
            ("calibration_mae", decision.mean_absolute_error, "units of the value"),
            ("interval_half_width", decision.half_width, "units of the value"),
        ]
    if isinstance(calibration, MultiLabelCalibration):
        accuracy, unit = calibration.accuracy, "of calibration labels"
    else:
        assert isinstance(calibration, Calibration)
        accuracy, unit = sum(calibration.correct) / len(calibration.correct), rows
    return [("calibration_accuracy", accuracy, unit), ("accepted_share", decision.accepted_share, rows)]


def _as_two_classes(logits: Floats) -> Floats:
    """A sigmoid of x is the softmax of (0, x): logits [N] -> [N, 2]."""
    return np.stack([np.zeros_like(logits), logits], axis=1)
