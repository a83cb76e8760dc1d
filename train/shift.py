"""How the answers fare away from home: rows of another domain, short crops, and which signal would have told.

A budget holds for texts like those it was proven on. On others the error among the accepted stands beside it, with what
a monitor could have seen without labels: how many texts the model itself calls unfamiliar, how well `epistemic` and
`total` tell them from held-out rows, and how far the distribution of `total` has moved (Kolmogorov–Smirnov).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from scipy.stats import ks_2samp

from train import metrics
from train.answers import Answers
from train.decision import Decision
from verdict import Report

UNFAMILIAR_TARGETS = {
    "documents": ">= 0.98",
    "word_salad": ">= 0.98",
    "unigram_salad": ">= 0.95",
    "other_languages": ">= 0.99",
    "code": ">= 0.99",
}


def measure_shift(
    report: Report, name: str, model: Answers, baseline: Answers, decision: Decision, *, held_out: Answers
) -> None:
    """Add what is worth knowing of rows from another domain, under `name_…` and without targets."""
    right, accepted = model.right, model.accepted(decision)
    count, wrong = int(accepted.sum()), int((accepted & ~right).sum())
    report.add(f"{name}_accuracy", right.mean(), "share")
    report.add(f"{name}_baseline_accuracy", baseline.right.mean(), "share")
    report.add(f"{name}_nll", metrics.nll(model.probabilities, model.labels), "nats")
    report.add(f"{name}_baseline_nll", metrics.nll(baseline.probabilities, model.labels), "nats")
    report.add(f"{name}_ece", metrics.ece(model.probabilities, model.labels), "share")
    report.add(f"{name}_accepted", count / len(right), "share")
    report.add(f"{name}_accepted_error", wrong / count if count else None, "share")
    if model.epistemic is not None and decision.novelty_threshold is not None:
        report.add(f"{name}_unfamiliar", (model.epistemic > decision.novelty_threshold).mean(), "share")
    if held_out.epistemic is not None and model.epistemic is not None:
        report.add(f"{name}_told_by_epistemic", metrics.told_apart(held_out.epistemic, model.epistemic), "")
    report.add(f"{name}_told_by_total", metrics.told_apart(held_out.total, model.total), "")
    moved = ks_2samp(held_out.total, model.total)
    report.add(f"{name}_total_moved", float(moved.statistic), "")
    intervals = report.details.setdefault("intervals", {})
    intervals[f"{name}_accuracy"] = metrics.clopper_pearson(int(right.sum()), len(right))
    intervals[f"{name}_accepted_error"] = metrics.clopper_pearson(wrong, count)
    report.details.setdefault("shift", {})[name] = {
        "rows": len(right),
        "budget": decision.max_error,
        "total_moved_p": float(moved.pvalue),
    }


def measure_unfamiliar(
    report: Report,
    model: Answers,
    found: Mapping[str, Mapping[str, NDArray[Any]]],
    decision: Decision,
    *,
    with_targets: bool,
) -> None:
    """How well `epistemic` tells held-out rows from text that is nothing like them, by kind of text.

    Args:
        model: answers on the held-out rows.
        found: answers on unfamiliar texts, by kind (`train.unfamiliar`).
    """
    if model.epistemic is None:
        return
    kinds = report.details.setdefault("unfamiliar", {})
    for name, answers in found.items():
        auroc = metrics.told_apart(model.epistemic, answers["epistemic"])
        target = UNFAMILIAR_TARGETS.get(name) if with_targets else None
        report.add(f"unfamiliar_auroc_{name}", auroc, "", target)
        accepted = answers["total"] <= decision.risk_threshold
        if decision.novelty_threshold is not None:
            accepted &= answers["epistemic"] <= decision.novelty_threshold
        kinds[name] = {
            "texts": len(answers["total"]),
            "auroc_epistemic": auroc,
            "auroc_total": metrics.told_apart(model.total, answers["total"]),
            "accepted": float(accepted.mean()),
        }
