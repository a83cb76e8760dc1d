"""When to let an answer through: the error budget, the prediction set, and what counts as unfamiliar.

*At most 5 % of the answers that I accept without looking are wrong* is a budget. Learn-then-Test (Angelopoulos et al.
2021, 2110.01052) turns it into a threshold on the total uncertainty: the thresholds of a fixed grid are tested in an
order that these rows did not choose, each is kept while the Clopper–Pearson upper bound of the error among the rows it
accepts stays within the budget, and the first that fails ends the test; so the guarantee holds for the one chosen.

Where the test begins matters more than the bound: from the strictest threshold up, three unlucky rows among the first
180 ended it at 28 % accepted where 80 % can be. So other rows choose the start, the threshold whose budget they support
best (split fixed-sequence testing), and the test goes on to laxer ones from there. Prediction sets are split conformal
(Vovk et al. 2005).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, binom

from train.errors import CalibrationError

Floats = npt.NDArray[np.floating[Any]]
Counts = int | npt.NDArray[np.integer[Any]]

NOTHING = -1.0  # a risk threshold that no answer meets: total entropy is never negative
_GRID = 200  # thresholds tested, evenly over the possible entropies 0 … log C
_START_SHARE = 0.5  # accepted at the start where no other rows can choose it


@dataclass(frozen=True)
class Decision:
    """Thresholds that go into the served graph, with what they were proven on."""

    max_error: float
    confidence: float
    risk_threshold: float  # accepted where total (nats) <= this; NOTHING where the budget cannot be proven
    novelty_threshold: float | None  # unfamiliar where epistemic (nats) > this; None for a model without epistemic
    novelty_quantile: float | None
    conformal_level: float
    conformal_threshold: float  # a class is in the set where 1 - p <= this; 1 means every class
    rows: int
    accepted_share: float  # of the calibration rows
    accepted_error: float  # observed among the accepted rows; 0 where none is
    accepted_error_bound: float  # its upper bound at `confidence`; 1 where none is
    message: str  # empty, or what a user should know
    temperature: float | None = None  # of a plain softmax, whose logits are divided by it; BET has its posterior

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a manifest."""
        return asdict(self)


def clopper_pearson_upper(errors: Counts, rows: Counts, confidence: float) -> Floats:
    """Upper confidence bounds of error rates (one-sided, exact), of the shape of both counts; 1 where all are wrong."""
    right = np.asarray(rows) - np.asarray(errors)
    bounds = beta.ppf(confidence, np.asarray(errors) + 1, np.maximum(right, 1))
    return np.asarray(np.where(right > 0, bounds, 1.0))


def rows_to_prove(max_error: float, confidence: float) -> int:
    """Fewest accepted rows, none wrong, that prove the budget: 59 for 5 % at 95 %.

    Raises:
        CalibrationError: for a budget or a confidence outside (0, 1).
    """
    for name, value in (("max_error", max_error), ("confidence", confidence)):
        if not 0 < value < 1:
            raise CalibrationError(f"{name} = {value} must lie between 0 and 1, for instance 0.05")
    return math.ceil(math.log(1 - confidence) / math.log(1 - max_error))


def best_supported_threshold(
    risk: Floats, correct: npt.NDArray[np.bool_], *, max_error: float, highest: float
) -> float | None:
    """The threshold at which rows [N] speak most strongly for the budget: smallest binomial p-value; None without rows.

    Only the *order* of a test may come from these rows; the guarantee comes from others.
    """
    if not len(risk):
        return None
    grid, rows, errors = _along_grid(risk, correct, np.ones(len(risk), bool), highest)
    return float(grid[int(np.argmin(binom.cdf(errors, rows, max_error)))])


def learn_then_test(
    risk: Floats,
    correct: npt.NDArray[np.bool_],
    eligible: npt.NDArray[np.bool_],
    *,
    max_error: float,
    confidence: float,
    highest: float,
    start: float | None = None,
) -> tuple[float, str]:
    """The laxest threshold that the budget allows, and what to say about it.

    Args:
        risk: [N], larger is worse; here total entropy in nats.
        correct: [N], whether the answer was right.
        eligible: [N], rows that are not refused for another reason.
        max_error: budget, a share in (0, 1).
        confidence: of the guarantee, in (0, 1).
        highest: largest possible risk, end of the grid.
        start: threshold at which the test begins, chosen without these rows; by default the strictest that accepts half
            of them, which looks at their number alone.

    Raises:
        CalibrationError: for a budget or a confidence outside (0, 1).
    """
    least = rows_to_prove(max_error, confidence)
    grid, rows, errors = _along_grid(risk, correct, eligible, highest)
    enough = int(np.searchsorted(rows, least))  # counts grow with the threshold
    chosen_start = np.searchsorted(rows, _START_SHARE * len(risk)) if start is None else np.searchsorted(grid, start)
    if enough == len(grid):
        return NOTHING, (
            f"no budget can be proven with {len(risk)} calibration rows ({int(eligible.sum())} of them familiar): "
            f"{max_error:.1%} at {confidence:.0%} confidence takes at least {least} accepted rows without an error; "
            "every answer goes to review until there are more rows"
        )
    first = min(max(enough, int(chosen_start)), len(grid) - 1)
    missed = clopper_pearson_upper(errors[first:], rows[first:], confidence) > max_error
    kept = int(np.argmax(missed)) if missed.any() else len(missed)
    if kept == 0:
        return NOTHING, _what_it_takes(int(errors[first]), int(rows[first]), len(risk), max_error, confidence)
    return float(grid[first + kept - 1]), ""


def _along_grid(
    risk: Floats, correct: npt.NDArray[np.bool_], eligible: npt.NDArray[np.bool_], highest: float
) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Thresholds from strict to lax, rows that each accepts, and errors among them."""
    grid = np.linspace(0, highest, _GRID + 1)[1:]
    rows = np.searchsorted(np.sort(risk[eligible]), grid, side="right")
    errors = np.searchsorted(np.sort(risk[eligible & ~correct]), grid, side="right")
    return grid, rows, errors


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
