"""What is measured of probabilities and uncertainties: pure functions on arrays, used by evaluation and by the gates.

Probabilities are [rows, classes] and labels int64 [rows] throughout. A *risk score* ranks answers by how likely they
are wrong (larger is worse); accepting an answer means giving it out without a human look. Selective prediction follows
Geifman and El-Yaniv (2017), equal-mass calibration error Nixon et al. (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.metrics import roc_auc_score

Floats = NDArray[np.float64] | NDArray[np.float32]
Labels = NDArray[np.int64]
Bools = NDArray[np.bool_]

# A float32 softmax at logits of ±40 gives exactly 0 and 1; one such row must not make the mean infinite.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)


def correct(probabilities: Floats, labels: Labels) -> Bools:
    """Whether the most probable class is the label; bool [rows]."""
    right: Bools = probabilities.argmax(axis=1) == labels
    return right


def accuracy(probabilities: Floats, labels: Labels) -> float:
    """Share of rows whose most probable class is the label."""
    return float(correct(probabilities, labels).mean())


def log_losses(probabilities: Floats, labels: Labels) -> NDArray[np.float64]:
    """Negative log-likelihood of each row in nats, with probabilities kept above `SMALLEST_PROBABILITY`."""
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    losses: NDArray[np.float64] = -np.log(np.clip(of_label, SMALLEST_PROBABILITY, 1.0))
    return losses


def nll(probabilities: Floats, labels: Labels) -> float:
    """Mean negative log-likelihood, nats per row."""
    return float(log_losses(probabilities, labels).mean())


def brier(probabilities: Floats, labels: Labels) -> float:
    """Mean squared distance between the probabilities and the one-hot label, summed over classes (0 to 2)."""
    one_hot = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - one_hot) ** 2).sum(axis=1).mean())


def entropy(probabilities: Floats) -> NDArray[np.float64]:
    """Entropy of each row in nats: the risk score of a classifier that has nothing better."""
    p = np.clip(probabilities.astype(np.float64), SMALLEST_PROBABILITY, 1.0)
    nats: NDArray[np.float64] = -(p * np.log(p)).sum(axis=1)
    return nats


@dataclass(frozen=True)
class Bin:
    """Rows of similar confidence: how many, how confident on average, and how often right."""

    rows: int
    confidence: float
    accuracy: float


def calibration_bins(probabilities: Floats, labels: Labels, bins: int = 15, *, equal_width: bool = False) -> list[Bin]:
    """The rows grouped by the confidence of their answer, without empty groups, in rising order.

    Equal mass (the default) gives every bin as many rows as possible; rows of equal confidence stay together, so that
    the result does not depend on their order. Equal width cuts [0, 1] into `bins`, 1.0 belonging to the last.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = correct(probabilities, labels)
    order = np.argsort(confidence, kind="stable")
    confidence, right = confidence[order], right[order]
    if equal_width:
        index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
        starts = np.flatnonzero(np.diff(index, prepend=-1))
    else:
        sizes = [len(part) for part in np.array_split(confidence, bins)]
        cuts = np.cumsum([0, *sizes[:-1]])
        starts = np.unique(np.searchsorted(confidence, confidence[cuts[cuts < len(confidence)]], side="left"))
    ends = [*starts[1:], len(confidence)]
    return [
        Bin(int(end - start), float(confidence[start:end].mean()), float(right[start:end].mean()))
        for start, end in zip(starts, ends, strict=True)
    ]


def ece(probabilities: Floats, labels: Labels, bins: int = 15, *, equal_width: bool = False) -> float:
    """Expected calibration error: mean distance between confidence and accuracy of the bins, weighted by their rows."""
    grouped = calibration_bins(probabilities, labels, bins, equal_width=equal_width)
    return sum(abs(group.confidence - group.accuracy) * group.rows for group in grouped) / len(labels)


def risk_coverage(risk: Floats, right: Bools) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Accepted rows and the errors among them at every threshold that the risk score can express.

    Returns:
        rows accepted int64 [thresholds], from few to all, and their error rate float64 [thresholds]. Rows of equal risk
        are accepted together.
    """
    order = np.argsort(risk, kind="stable")
    sorted_risk = risk[order]
    last = np.flatnonzero(np.append(sorted_risk[1:] != sorted_risk[:-1], True))
    wrong = np.cumsum(~right[order])[last]
    return last + 1, wrong / (last + 1)


def share_accepted_at(risk: Floats, right: Bools, max_error: float) -> float:
    """The largest share of rows, taken by rising risk, whose error rate is at most `max_error`; 0 where none is.

    The threshold is chosen on these very rows, so this says how well a score ranks, not what a budget would have given.
    """
    rows, error = risk_coverage(risk, right)
    allowed = rows[error <= max_error]
    return float(allowed.max() / len(risk)) if len(allowed) else 0.0


def aurc(risk: Floats, right: Bools) -> float:
    """Area under the risk–coverage curve: the error rate among the accepted, averaged over how many are accepted.

    Within rows of equal risk the errors are spread evenly, which is the mean over their orders.
    """
    rows, error = risk_coverage(risk, right)
    accepted = np.arange(1, len(risk) + 1)
    wrong = np.interp(accepted, np.append(0, rows), np.append(0.0, rows * error))
    return float((wrong / accepted).mean())


def auroc(score: Floats, positive: Bools) -> float | None:
    """Probability that a positive row scores above a negative one; None where all rows are of one kind."""
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, score))


def told_apart(low: Floats, high: Floats) -> float:
    """Probability that a score of `high` is above one of `low` (area under the curve); NaN where either is empty."""
    area = auroc(np.concatenate([low, high]), np.repeat([False, True], [len(low), len(high)]))
    return math.nan if area is None else area


def prediction_sets(probabilities: Floats, threshold: float) -> Bools:
    """Split-conformal sets: class c is in a row's set where ``1 − p_c ≤ threshold``; bool [rows, classes]."""
    included: Bools = (1.0 - probabilities) <= threshold
    return included


def coverage(sets: Bools, labels: Labels) -> float:
    """Share of rows whose set holds the label."""
    return float(sets[np.arange(len(labels)), labels].mean())


def clopper_pearson(successes: int, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a share (Clopper and Pearson 1934); [0, 1] for no rows."""
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, rows - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, rows - successes)) if successes < rows else 1.0
    return low, high


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    rows: int,
    confidence: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic of row indices, over rows drawn with replacement.

    For a paired comparison the statistic takes the difference on the same rows.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, rows, rows)) for _ in range(resamples)]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
