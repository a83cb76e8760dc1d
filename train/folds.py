"""Several checkpoints of one configuration, folds or seeds: every figure's mean, range and deviation over them.

Folds of one corpus differ by more than most changes to a model do, so targets are held to the mean. Intervals of
differences to the baseline are pooled: the mean over checkpoints, whose rows are drawn independently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.errors import DataError
from train.evaluation import COMMAND, PAGE, evaluate
from train.page import write_folds
from verdict import BUILD_FOLDER, Report

_BOTH = {
    "snippets_accuracy": ">= 0.765",
    "snippets_nll": "<= 0.475",
    "ece": "<= 0.010",
    "error_auroc_total": ">= 0.865",
    "conformal_coverage_off": "<= 0.015",
    "accepted_error": "<= 0.05",
}
TARGETS = {
    "demo": {"accuracy": ">= 0.911", "nll": "<= 0.222", **_BOTH},
    "full": {"accuracy": ">= 0.918", "nll": "<= 0.212", **_BOTH},
    "pretrained": {"accuracy": ">= 0.925", **_BOTH},
}


def evaluate_all(
    checkpoints: Sequence[Path],
    data: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    *,
    shift: Mapping[str, str] | None = None,
    output: Path | None = None,
    cache_dir: Path | None = None,
) -> Report:
    """Evaluate each checkpoint into a folder of its own, and report the means.

    Args:
        checkpoints: production folders; all of one preset.
        data, text_column, label_column, shift, cache_dir: as in `train.evaluation.evaluate`.
        output: folder of the page; `build/evaluate` if None.

    Raises:
        CheckpointError: if one is not whole.
        DataError: if a corpus has changed, or the checkpoints are of several presets.
    """
    folder = BUILD_FOLDER / COMMAND if output is None else output
    reports = []
    for number, checkpoint in enumerate(checkpoints):
        one = evaluate(
            checkpoint, data, text_column, label_column, shift=shift, output=folder / str(number), cache_dir=cache_dir
        )
        one.write(folder / str(number))
        reports.append(one)
    presets = sorted({str(one.details["preset"]) for one in reports})
    if len(presets) > 1:
        raise DataError(
            f"these checkpoints are of the presets {', '.join(presets)}: a mean over them says nothing; evaluate each "
            "preset by itself"
        )
    return combined(reports, folder, presets[0])


def combined(reports: Sequence[Report], folder: Path, preset: str) -> Report:
    """One report of the means; targets apply where they apply to each of the reports."""
    values: dict[str, list[float]] = {}
    units: dict[str, str] = {}
    for report in reports:
        for check in report.checks:
            if check.value is not None:
                values.setdefault(check.name, []).append(check.value)
                units[check.name] = check.unit
    everywhere = {name: found for name, found in values.items() if len(found) == len(reports)}
    with_targets = all(any(check.target for check in report.checks) for report in reports)
    wanted = TARGETS.get(preset, {}) if with_targets else {}
    own = {check.name: check.target for check in reports[0].checks} if with_targets else {}
    total = Report(COMMAND)
    for name, found in everywhere.items():
        total.add(name, float(np.mean(found)), units[name], wanted.get(name, own.get(name)))
    total.details |= {
        "preset": preset,
        "checkpoints": [report.details["checkpoint"] for report in reports],
        "runs": {
            name: {
                "values": found,
                "mean": float(np.mean(found)),
                "smallest": min(found),
                "largest": max(found),
                "deviation": float(np.std(found, ddof=1)),
            }
            for name, found in everywhere.items()
        },
        "intervals": _pooled([report.details["intervals"] for report in reports]),
        "rows": [report.details["rows"] for report in reports],
    }
    total.details["page"] = str(write_folds(total, folder / PAGE))
    return total


def _pooled(intervals: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Intervals of the means of independent figures: half widths add as squares."""
    pooled: dict[str, tuple[float, float]] = {}
    for name in intervals[0]:
        ends: Any = np.array([found[name] for found in intervals if name in found])
        if len(ends) == len(intervals):
            middle, half = ends.mean(), np.sqrt((np.diff(ends, axis=1) ** 2).sum()) / 2 / len(ends)
            pooled[name] = (float(middle - half), float(middle + half))
    return pooled
