"""Every budget of a manifest is the one that an export with it would have decided by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.budgets import USUAL, budgets_of, record, table
from export.manifest import read_manifest
from train.calibration import Calibration
from train.errors import CalibrationError


def calibration(rows: int = 2000, seed: int = 0) -> Calibration:
    """Rows that are right as often as they say."""
    random = np.random.default_rng(seed)
    p = random.beta(8, 1, rows).clip(0.5, 0.9999)
    total = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    correct = random.random(rows) < p
    half = rows // 2
    return Calibration(
        total=total[:half].tolist(),
        epistemic=np.full(half, 0.01).tolist(),
        true_probability=np.where(correct, p, 1 - p)[:half].tolist(),
        correct=correct[:half].tolist(),
        num_classes=2,
        novelty_threshold=0.02,
        novelty_quantile=0.99,
        fitting_total=total[half:].tolist(),
        fitting_correct=correct[half:].tolist(),
    )


def test_the_usual_budgets_and_the_chosen_one_from_strict_to_lax() -> None:
    budgets = budgets_of(calibration(), 0.03, 0.95)
    assert [b.max_error for b in budgets] == sorted({*USUAL, 0.03})
    shares = [b.accepted_share for b in budgets]
    assert shares == sorted(shares)
    for budget in budgets:
        decision = calibration().decide(budget.max_error, 0.95)
        assert budget.risk_threshold == decision.risk_threshold
        assert budget.accepted_error_bound <= budget.max_error or not budget.accepted_share
    assert len(budgets_of(calibration(), 0.05, 0.95)) == len(USUAL)


def test_a_budget_that_cannot_be_proven_says_so_in_the_table() -> None:
    few = calibration()
    few = replace(
        few, **{name: getattr(few, name)[:40] for name in ("total", "epistemic", "true_probability", "correct")}
    )
    lines = table(budgets_of(few, 0.05, 0.95)).splitlines()
    assert len(lines) == 1 + len(USUAL)
    assert all("none" in line for line in lines[1:3])
    assert "at least 299 accepted rows" in lines[1]


def test_a_budget_outside_its_range_is_refused() -> None:
    with pytest.raises(CalibrationError, match="max_error = 0"):
        budgets_of(calibration(), 0.0, 0.95)


def test_an_exported_version_holds_its_budgets(repository: Path) -> None:
    manifest = read_manifest(repository / "bet_classifier" / "1")
    assert [row["max_error"] for row in manifest["budgets"]] == list(USUAL)
    chosen = next(row for row in manifest["budgets"] if row["max_error"] == manifest["calibration"]["max_error"])
    for name in chosen.keys() - {"message"}:
        assert chosen[name] == manifest["calibration"][name]


def test_the_record_is_plain_data() -> None:
    assert all(isinstance(row, dict) for row in record(budgets_of(calibration(), 0.05, 0.95)))
