"""The error budgets that a version's calibration can prove: the table that says what an answer without review is worth.

A version decides by one budget, the one that `export add` was given. Beside it the manifest and the ensemble's
configuration hold the others, so that a caller who needs a stricter or laxer one compares `total` and `epistemic` with
its thresholds (`bet_client`: `client.budgets()`) and needs no other export. Each budget is proven by itself: who picks
one of the rows *because* of what it accepts weakens the confidence, as always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from train.calibration import Calibration

USUAL = (0.01, 0.02, 0.05, 0.10)


@dataclass(frozen=True)
class Budget:
    """What one error budget comes to on the calibration rows."""

    max_error: float
    confidence: float
    risk_threshold: float  # accepted where total (nats) <= this and the text is familiar; negative: never
    novelty_threshold: float | None  # familiar where epistemic (nats) <= this; None: the model has no epistemic
    rows: int  # calibration rows that were scored
    accepted_share: float  # of these rows
    accepted_error: float  # among the accepted; 0 where none is
    accepted_error_bound: float  # its upper bound at the confidence; 1 where none is
    message: str  # empty, or why nothing is accepted and what it would take


def budgets_of(calibration: Calibration, max_error: float, confidence: float) -> list[Budget]:
    """The usual budgets and the chosen one, from strict to lax.

    Raises:
        CalibrationError: for a budget or a confidence outside (0, 1).
    """
    return [_budget(calibration, allowed, confidence) for allowed in sorted({*USUAL, max_error})]


def _budget(calibration: Calibration, max_error: float, confidence: float) -> Budget:
    decision = calibration.decide(max_error, confidence)
    return Budget(
        max_error=max_error,
        confidence=confidence,
        risk_threshold=decision.risk_threshold,
        novelty_threshold=decision.novelty_threshold,
        rows=decision.rows,
        accepted_share=decision.accepted_share,
        accepted_error=decision.accepted_error,
        accepted_error_bound=decision.accepted_error_bound,
        message=decision.message if not decision.accepted_share else "",
    )


def record(budgets: Sequence[Budget]) -> list[dict[str, Any]]:
    """Plain data, for a manifest."""
    return [asdict(budget) for budget in budgets]


def table(budgets: Sequence[Budget]) -> str:
    """The budgets for a reader, a line each."""
    lines = [f"{'budget':>8}  {'accepted':>8}  {'error':>7}  {'at most':>7}  {'where total <=':>14}"]
    for budget in budgets:
        if budget.accepted_share:
            lines.append(
                f"{budget.max_error:>8.1%}  {budget.accepted_share:>8.1%}  {budget.accepted_error:>7.2%}  "
                f"{budget.accepted_error_bound:>7.2%}  {budget.risk_threshold:>9.4f} nats"
            )
        else:
            lines.append(f"{budget.max_error:>8.1%}  {'none':>8}  {budget.message}")
    return "\n".join(lines)
