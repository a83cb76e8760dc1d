"""Would the model find wrong labels? Some are flipped, and rows are ranked by how little it believes theirs."""

from __future__ import annotations

import numpy as np

from train import metrics
from train.answers import Answers
from verdict import Report

_SHARE = 0.05
_SEED = 0


def measure_wrong_labels(report: Report, model: Answers, baseline: Answers) -> None:
    """Flip one label in twenty to another class, and add how well -log p(given label) finds them.

    `label_noise_auroc` is the area under the curve, `label_noise_found` the share of flipped rows among as many of the
    highest rank. The corpus's own wrong labels count against both.
    """
    random = np.random.default_rng(_SEED)
    rows, classes = model.probabilities.shape
    flipped = np.zeros(rows, dtype=bool)
    flipped[random.choice(rows, max(1, round(_SHARE * rows)), replace=False)] = True
    given = np.where(flipped, (model.labels + random.integers(1, classes, rows)) % classes, model.labels)
    for prefix, answers in (("", model), ("baseline_", baseline)):
        doubt = metrics.log_losses(answers.probabilities, given)
        first = np.argsort(-doubt, kind="stable")[: int(flipped.sum())]
        report.add(f"{prefix}label_noise_auroc", metrics.auroc(doubt, flipped), "")
        report.add(f"{prefix}label_noise_found", float(flipped[first].mean()), "share")
