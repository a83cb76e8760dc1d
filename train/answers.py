"""Answers of a classifier on labelled rows, and how groups of such rows fare: what verdict and pictures both read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from train import metrics
from train.decision import Decision
from train.metrics import Bools, Floats, Labels

LENGTH_GROUPS = 6
BLOCKS_PER_CLASS = 4  # the test part of `train.splits` is four contiguous blocks of each class


@dataclass(frozen=True)
class Answers:
    """A classifier's answers on labelled rows.

    Attributes:
        probabilities: [rows, classes].
        total: [rows], nats; the risk score, and all that a baseline has (its entropy).
        epistemic: [rows], nats, or None for a classifier without a posterior.
        labels: int64 [rows].
    """

    probabilities: Floats
    total: Floats
    epistemic: Floats | None
    labels: Labels

    @cached_property
    def right(self) -> Bools:
        """Whether each answer is the label."""
        return metrics.correct(self.probabilities, self.labels)

    def accepted(self, decision: Decision) -> Bools:
        """Rows that need no review: within the error budget's threshold, and familiar."""
        within: Bools = self.total <= decision.risk_threshold
        if self.epistemic is None or decision.novelty_threshold is None:
            return within
        return within & (self.epistemic <= decision.novelty_threshold)


@dataclass(frozen=True)
class Group:
    """How one group of rows fared; shares are None where they would be of no rows."""

    name: str
    rows: int
    error: float
    error_interval: tuple[float, float]
    accepted: float
    accepted_error: float | None
    coverage: float
    set_size: float
    total: float
    epistemic: float | None
    baseline_error: float


def by_block(labels: Labels, names: tuple[str, ...]) -> dict[str, NDArray[np.int64]]:
    """Rows of each class in contiguous blocks, in their order: what shifts between films or sources shows here."""
    return {
        f"{name} {block + 1}/{BLOCKS_PER_CLASS}": rows
        for label, name in enumerate(names)
        for block, rows in enumerate(np.array_split(np.flatnonzero(labels == label), BLOCKS_PER_CLASS))
        if len(rows)
    }


def by_length(words: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Rows in groups of about equal size by their number of words; rows of equal length stay together."""
    edges = np.unique(np.quantile(words, np.arange(1, LENGTH_GROUPS) / LENGTH_GROUPS, method="higher"))
    group = np.searchsorted(edges, words, side="right")
    split = (np.flatnonzero(group == index) for index in range(len(edges) + 1))
    return {f"{words[rows].min()}–{words[rows].max()} words": rows for rows in split if len(rows)}


def group_rows(
    groups: Mapping[str, NDArray[np.int64]], model: Answers, baseline: Answers, decision: Decision
) -> list[Group]:
    """Errors, acceptance, set coverage and mean uncertainties of each group of rows."""
    right, accepted = model.right, model.accepted(decision)
    sets = metrics.prediction_sets(model.probabilities, decision.conformal_threshold)
    return [
        Group(
            name,
            len(rows),
            float((~right[rows]).mean()),
            metrics.clopper_pearson(int((~right[rows]).sum()), len(rows)),
            float(accepted[rows].mean()),
            float((~right[rows])[accepted[rows]].mean()) if accepted[rows].any() else None,
            metrics.coverage(sets[rows], model.labels[rows]),
            float(sets[rows].sum(axis=1).mean()),
            float(model.total[rows].mean()),
            None if model.epistemic is None else float(model.epistemic[rows].mean()),
            float((~baseline.right[rows]).mean()),
        )
        for name, rows in groups.items()
    ]
