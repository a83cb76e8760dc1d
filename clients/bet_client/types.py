"""What a caller gets: one `Prediction` per text, with `Diagnostics` on demand, and the model's `Budget`s.

A field is None where the served model does not offer that output: a classifier without a posterior has no aleatoric
and epistemic part, and a model that was never calibrated has no review decision. A model with one label for a text
fills `label`, one with any number of them `labels`, and one that answers with a number `value`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class NgramEvidence:
    """One n-gram of the text, and what it says."""

    text: str
    """Its words; ``##`` where it begins inside a word."""
    nats: float
    """By how much it moves the log-odds of the answer: positive for the label, negative against it."""


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """How the model came to its answer; asked for with ``diagnostics=True``."""

    concentration: dict[str, float] | None
    """Parameters of the Dirichlet posterior, by label."""
    order_dispersion: float | None
    """Standard deviation of the probability over the orders in which the evidence was read."""
    evidence_budget: int | None
    """How many orders the text would have deserved (k*)."""
    evidence: tuple[NgramEvidence, ...] | None = None
    """The n-grams that spoke loudest for and against the label, at most eight, the loudest first. They are terms of a
    sum, which is only a part of what the answer rests on: the model reads the words in their order as well."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one text."""

    label: str | None
    """The most probable class, by name."""
    probabilities: dict[str, float] | None
    """Calibrated probability of each class, in class order. Those of one label sum to 1; where a text may carry any
    number of labels, each is the probability of that label by itself."""
    total: float | None
    """Entropy of the probabilities, in nats; = aleatoric + epistemic. Errors are best told by this one. Of several
    labels, the sum of each one's own: the entropy of the answer if they are independent."""
    aleatoric: float | None
    """The part of `total` that lies in the text itself, in nats."""
    epistemic: float | None
    """The part of `total` that comes from evidence which training never saw, in nats; tells unfamiliar text."""
    review: bool | None
    """Whether a human should look; of several labels, because some are `undecided`."""
    reason: str | None
    """Why: ``uncertain`` (outside the error budget) or ``unfamiliar`` (unlike the training data); else empty."""
    prediction_set: tuple[str, ...] | None
    """The classes that cannot be excluded at the exported confidence."""
    tokens: int | None
    """Tokens of the text; where it was cut, more than the model read."""
    truncated: bool | None
    """Whether the text was longer than the model reads, and cut."""
    diagnostics: Diagnostics | None = None
    labels: tuple[str, ...] | None = None
    """The labels that the text carries (probability at least 0.5), in class order; may be empty."""
    undecided: tuple[str, ...] | None = None
    """The labels whose yes or no is outside their error budget, in class order."""
    value: float | None = None
    """The number that a regression answers with."""
    prediction_interval: tuple[float, float] | None = None
    """Lower and upper end of what holds the right number at the exported level."""

    @property
    def probability(self) -> float:
        """Probability of `label`.

        Raises:
            AttributeError: if the model answers with several labels or with a number.
        """
        if self.label is None or self.probabilities is None:
            number, labels = "a number; read `value`", "any number of labels; read `labels` and `probabilities`"
            raise AttributeError(
                f"there is no one label: the model answers with {labels if self.value is None else number}"
            )
        return self.probabilities[self.label]


@dataclass(frozen=True, slots=True)
class Budget:
    """What one error budget comes to on the calibration rows of the version that answers.

    Each is proven by itself: choose one for what it promises, not for what it accepts.
    """

    max_error: float
    """The budget: the largest share of wrong answers among the accepted."""
    confidence: float
    """Of that promise."""
    risk_threshold: float
    """An answer is accepted where `total` is at most this, in nats; negative where nothing can be proven."""
    novelty_threshold: float | None
    """... and `epistemic` at most this, in nats; None for a model that has none."""
    rows: int
    """Calibration rows on which it was tested."""
    accepted_share: float
    """Share of these rows that are accepted."""
    accepted_error: float
    """Share of wrong answers among the accepted rows; 0 where none is accepted."""
    accepted_error_bound: float
    """Its upper bound at `confidence`; 1 where none is accepted."""
    message: str
    """Empty, or why nothing is accepted and what it would take."""

    def accepts(self, answer: Prediction) -> bool:
        """Whether the answer may pass without a human look under this budget, as `not answer.review` says under the
        budget of the export.

        Raises:
            ValueError: if the answer lacks an uncertainty that this budget bounds.
        """
        within = True
        for name, threshold in (("total", self.risk_threshold), ("epistemic", self.novelty_threshold)):
            if threshold is None:
                continue
            value: float | None = getattr(answer, name)
            if value is None:
                raise ValueError(f"the answer has no {name!r}, which this budget bounds: it is another model's answer")
            # In float32, as the served graph compares: else an answer right at a threshold is decided otherwise.
            within &= bool(value <= np.float32(threshold))
        return within
