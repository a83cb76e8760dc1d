"""What a caller gets: one `Prediction` per text, with `Diagnostics` on demand.

A field is None where the served model does not offer that output: a classifier without a posterior has no aleatoric
and epistemic part, and a model that was never calibrated has no review decision.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """How the model came to its answer; asked for with ``diagnostics=True``."""

    concentration: dict[str, float] | None
    """Parameters of the Dirichlet posterior, by label."""
    order_dispersion: float | None
    """Standard deviation of the probability over the orders in which the evidence was read."""
    evidence_budget: int | None
    """How many orders the text would have deserved (k*)."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one text."""

    label: str
    """The most probable class, by name."""
    probabilities: dict[str, float]
    """Calibrated probability of each class, in class order; they sum to 1."""
    total: float | None
    """Entropy of the probabilities, in nats; = aleatoric + epistemic. Errors are best told by this one."""
    aleatoric: float | None
    """The part of `total` that lies in the text itself, in nats."""
    epistemic: float | None
    """The part of `total` that comes from evidence which training never saw, in nats; tells unfamiliar text."""
    review: bool | None
    """Whether a human should look."""
    reason: str | None
    """Why: ``uncertain`` (outside the error budget) or ``unfamiliar`` (unlike the training data); else empty."""
    prediction_set: tuple[str, ...] | None
    """The classes that cannot be excluded at the exported confidence."""
    tokens: int | None
    """Tokens of the text; where it was cut, more than the model read."""
    truncated: bool | None
    """Whether the text was longer than the model reads, and cut."""
    diagnostics: Diagnostics | None = None

    @property
    def probability(self) -> float:
        """Probability of `label`."""
        return self.probabilities[self.label]
