"""A Hugging Face head's answers, computed from its logits with NumPy: the truth that the gate compares with.

Activation and decision are written here a second time, apart from `export.heads`, so that a mistake in the exported
module's own shows as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax

from export.answers import Answers, Floats
from export.decisions import AnyDecision, MultiLabelDecision, RegressionDecision
from export.outputs import REASONS
from train.decision import Decision


def answers_of_logits(logits: Floats, decision: AnyDecision, label_names: tuple[str, ...]) -> Answers:
    """Logits [N, C] -> the answers under a decision."""
    if isinstance(decision, MultiLabelDecision):
        return _multi_label(logits, decision)
    if isinstance(decision, RegressionDecision):
        half = np.float32(decision.half_width)
        return Answers(value=logits[:, 0], prediction_interval=np.concatenate([logits - half, logits + half], axis=1))
    return _softmax(logits, decision, np.array(label_names, dtype=np.str_))


def binary_entropy(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of yes-or-no questions in nats, 0 where the answer is certain."""
    p = np.clip(probabilities, np.finfo(np.float64).tiny, 1)
    q = np.clip(1 - probabilities, np.finfo(np.float64).tiny, 1)
    nats: NDArray[np.float64] = -(p * np.log(p) + q * np.log(q))
    return nats


def _softmax(logits: Floats, decision: Decision, labels: NDArray[np.str_]) -> Answers:
    assert decision.temperature is not None
    log_p = log_softmax(logits / np.float32(decision.temperature), axis=1)
    probabilities = np.exp(log_p)
    total = -(probabilities * log_p).sum(1)
    uncertain = ~(total <= np.float32(decision.risk_threshold))
    return Answers(
        label=labels[probabilities.argmax(1)],
        probabilities=probabilities,
        total=total,
        review=uncertain,
        reason=np.where(uncertain, REASONS[1], REASONS[0]),
        prediction_set=(1 - probabilities) <= np.float32(decision.conformal_threshold),
    )


def _multi_label(logits: Floats, decision: MultiLabelDecision) -> Answers:
    temperatures = np.array([label.temperature for label in decision.labels])
    thresholds = np.array([label.risk_threshold for label in decision.labels])
    probabilities = expit(logits.astype(np.float64) / temperatures)
    entropies = binary_entropy(probabilities)
    undecided = ~(entropies <= thresholds)
    review = undecided.any(1)
    return Answers(
        probabilities=probabilities.astype(np.float32),
        assigned=probabilities >= 0.5,
        total=entropies.sum(1).astype(np.float32),
        undecided=undecided,
        review=review,
        reason=np.where(review, REASONS[1], REASONS[0]),
    )
