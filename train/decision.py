"""When to let an answer through: the error budget, the prediction set, and what counts as unfamiliar.

*At most 5 % of the answers that I accept without looking are wrong* is a budget. Learn-then-Test (Angelopoulos et al.
2021, 2110.01052) turns it into a threshold on the total uncertainty: the thresholds of a fixed grid are tested from the
strictest on, and each is kept while the Clopper–Pearson upper bound of the error among the rows it accepts stays within
the budget; the first that fails ends the test, which is what makes the guarantee hold for the one chosen. Prediction
sets are split conformal (Vovk et al. 2005).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from train.errors import CalibrationError

Floats = npt.NDArray[np.floating[Any]]

NOTHING = -1.0  # a risk threshold that no answer meets: total entropy is never negative
_GRID = 200  # thresholds tested, evenly over the possible entropies 0 … log C
_START_SHARE = 0.25  # the test starts at the strictest threshold that accepts this share: at a handful of rows one
# unlucky error would end it, and nobody buys a budget that accepts less


@dataclass(frozen=True)
class Decision:
    """Thresholds that go into the served graph, with what they were proven on."""

    max_error: float
    confidence: float
    risk_threshold: float  # accepted where total (nats) <= this; NOTHING where the budget cannot be proven
    novelty_threshold: float  # unfamiliar where epistemic (nats) > this
    novelty_quantile: float
    conformal_level: float
    conformal_threshold: float  # a class is in the set where 1 - p <= this; 1 means every class
    rows: int
    accepted_share: float  # of the calibration rows
    accepted_error: float  # observed among the accepted rows; 0 where none is
    accepted_error_bound: float  # its upper bound at `confidence`; 1 where none is
    message: str  # empty, or what a user should know

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a manifest."""
        return asdict(self)


def clopper_pearson_upper(errors: int, rows: int, confidence: float) -> float:
    """Upper confidence bound of an error rate (one-sided, exact)."""
    if rows == 0 or errors >= rows:
        return 1.0
    return float(beta.ppf(confidence, errors + 1, rows - errors))


def rows_to_prove(max_error: float, confidence: float) -> int:
    """Fewest accepted rows, none wrong, that prove the budget: 59 for 5 % at 95 %."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - max_error))


def learn_then_test(
    risk: Floats,
    correct: npt.NDArray[np.bool_],
    eligible: npt.NDArray[np.bool_],
    *,
    max_error: float,
    confidence: float,
    highest: float,
) -> tuple[float, str]:
    """The laxest threshold that the budget allows, and what to say about it.

    Args:
        risk: [N], larger is worse; here total entropy in nats.
        correct: [N], whether the answer was right.
        eligible: [N], rows that are not refused for another reason.
        max_error: budget, a share in (0, 1).
        confidence: of the guarantee, in (0, 1).
        highest: largest possible risk, end of the grid.

    Raises:
        CalibrationError: for a budget or a confidence outside (0, 1).
    """
    for name, value in (("max_error", max_error), ("confidence", confidence)):
        if not 0 < value < 1:
            raise CalibrationError(f"{name} = {value} must lie between 0 and 1, for instance 0.05")
    least = rows_to_prove(max_error, confidence)
    start = max(least, math.ceil(_START_SHARE * len(risk)))
    grid = np.linspace(0, highest, _GRID + 1)[1:]
    accepted = eligible[None] & (risk[None] <= grid[:, None])
    rows, errors = accepted.sum(1), (accepted & ~correct[None]).sum(1)
    first = int(np.searchsorted(rows, start))  # counts grow with the threshold
    if first == len(grid):
        return NOTHING, (
            f"no budget can be proven with {len(risk)} calibration rows ({int(eligible.sum())} of them familiar): "
            f"{max_error:.1%} at {confidence:.0%} confidence takes at least {least} accepted rows without an error; "
            "every answer goes to review until there are more rows"
        )
    held = [
        clopper_pearson_upper(int(e), int(r), confidence) <= max_error
        for e, r in zip(errors[first:], rows[first:], strict=True)
    ]
    kept = held.index(False) if False in held else len(held)
    if kept == 0:
        return NOTHING, _what_it_takes(int(errors[first]), int(rows[first]), len(risk), max_error, confidence)
    return float(grid[first + kept - 1]), ""


def _what_it_takes(errors: int, rows: int, total: int, max_error: float, confidence: float) -> str:
    rate = errors / rows
    seen = f"{errors} of the {rows} most certain calibration rows are wrong ({rate:.1%})"
    if rate >= max_error:
        return (
            f"an error budget of {max_error:.1%} cannot be met: {seen}, and more rows will not change that; every "
            "answer goes to review; allow a larger --max-error or train a better model"
        )
    needed = rows
    while clopper_pearson_upper(math.ceil(rate * needed), needed, confidence) > max_error:
        needed = math.ceil(needed * 1.1)
    return (
        f"an error budget of {max_error:.1%} cannot be proven at {confidence:.0%} confidence: {seen}; every answer "
        f"goes to review; about {math.ceil(total * needed / rows)} calibration rows would do where {total} are given"
    )


def conformal_threshold(nonconformity: Floats, level: float) -> float:
    """Threshold of 1 - p(true class) that covers a share `level`: the ⌈(n+1)·level⌉-th smallest of n values.

    With too few rows for the level (n = 8 at 95 %) it is 1: every class belongs to every set.
    """
    n = len(nonconformity)
    # Rounded before the ceiling: 0.95 · 20 is 19.000000000000004 in floating point for some n.
    rank = math.ceil(round((n + 1) * level, 9))
    return 1.0 if rank > n else float(np.sort(nonconformity)[rank - 1])
