"""The verdict on a checkpoint: its answers on rows that it never saw, beside a baseline on the same rows.

Last stage of training and the command `python -m train evaluate`. The corpus is loaded again by the checkpoint's
provenance and proven to be the same by its hashes; only then is the held-out part read. Targets belong to the corpus
that they were set on, IMDB's held-out part; any other corpus is reported without them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.utils.logging import disable_progress_bar

from train import metrics
from train.answers import Answers, Group, by_block, by_length, group_rows
from train.baseline import fit_baseline
from train.checkpoint import Checkpoint, load_production
from train.data import IMDB, Corpus, Split, load_rows, reload_corpus, snippets_beside
from train.decision import Decision
from train.errors import DataError
from train.figures import draw
from train.metrics import Floats, Labels
from train.page import write_page
from train.prediction import predict_texts
from train.shift import measure_shift, measure_unfamiliar
from train.splits import fingerprint
from train.stretches import short_length, stretch
from train.unfamiliar import unfamiliar_texts
from train.wrong_labels import measure_wrong_labels
from verdict import BUILD_FOLDER, Report

COMMAND, PAGE = "evaluate", "report.html"
CROPS = "crops"
_CROP_WORDS = (8, 60)
BUDGETS = {"5pct": 0.05, "1pct": 0.01}
_log = logging.getLogger(__name__)


def evaluate(
    checkpoint: Path,
    data: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    *,
    shift: Mapping[str, str] | None = None,
    output: Path | None = None,
    cache_dir: Path | None = None,
) -> Report:
    """Measure a production checkpoint, draw the pictures, and return the report (not yet written).

    Args:
        checkpoint: folder that `train fit` wrote.
        data: other labelled rows to measure it on (a file, a data set); None for the held-out part of its own corpus.
            The corpus that it was trained on is recognised under any name, and then only its held-out part is used.
        text_column: of `data`; the column that the checkpoint was trained on if None.
        label_column: likewise.
        shift: labelled rows of other domains by name, each a file or data set with the same columns and classes.
        output: folder of the pictures; `build/evaluate` if None.
        cache_dir: cache of Hugging Face `datasets`.

    Raises:
        CheckpointError: if the checkpoint is not whole.
        DataError: if its corpus has changed, or `data` cannot be read or has other classes.
    """
    started = time.perf_counter()
    disable_progress_bar()  # transformers draws one for loading a file that takes a blink
    loaded = load_production(checkpoint)
    provenance = loaded.provenance["data"]
    corpus = reload_corpus(provenance, cache_dir)
    columns = (text_column or provenance["text_column"], label_column or provenance["label_column"])
    held_out, part = _held_out(corpus, data, columns, loaded.label_names, cache_dir)
    parts = {"held_out": held_out}
    snippets = snippets_beside(corpus, cache_dir) if data is None else None
    if snippets is not None:
        parts["snippets"] = snippets
    for name, source in (shift or {}).items():
        if name in (*parts, CROPS):
            raise DataError(f"--shift {name}={source}: rows of that name are measured already; choose another name")
        parts[name] = load_rows(source, loaded.label_names, *columns, cache_dir=cache_dir)
    parts[CROPS] = _cropped(held_out)
    # Beside the checkpoint, not in it: the folder is sealed by its hashes.
    baseline = fit_baseline(corpus, {name: split.texts for name, split in parts.items()}, checkpoint.resolve().parent)
    answers = {name: _ask(loaded, split) for name, split in parts.items()}
    bars = {name: _of_baseline(baseline.probabilities[name], split.labels) for name, split in parts.items()}
    decision = loaded.calibration.decide()

    report = Report(COMMAND)
    targets = has_targets(corpus, data)
    measure(report, answers["held_out"], bars["held_out"], decision, with_targets=targets)
    _compare_budgets(report, answers["held_out"], decision, bars["held_out"], baseline.calibration.decide())
    measure_wrong_labels(report, answers["held_out"], bars["held_out"])
    for name in (name for name in parts if name != "held_out"):
        measure_shift(report, name, answers[name], bars[name], decision, held_out=answers["held_out"])
    words = np.array([len(text.split()) for text in held_out.texts])
    of_class = {name: np.flatnonzero(held_out.labels == label) for label, name in enumerate(corpus.label_names)}
    classes = {name: rows for name, rows in of_class.items() if len(rows)}
    by_class = group_rows(classes, answers["held_out"], bars["held_out"], decision)
    blocks = group_rows(by_block(held_out.labels, corpus.label_names), answers["held_out"], bars["held_out"], decision)
    lengths = group_rows(by_length(words), answers["held_out"], bars["held_out"], decision)
    report.details |= {
        "checkpoint": str(checkpoint),
        "preset": loaded.provenance["preset"]["name"],
        "rows": {"part": part, "count": len(held_out), "sha256": provenance["sha256"]},
        "decision": asdict(decision),
        "baseline": {
            "C": baseline.strength,
            "temperature": baseline.temperature,
            "validation_nll": baseline.validation_nll,
            "seconds": baseline.seconds,
        },
        "by_block": [asdict(group) for group in blocks],
        "by_length": [asdict(group) for group in lengths],
        "by_class": [asdict(group) for group in by_class],
    }
    worst = max(abs(group.coverage - decision.conformal_level) for group in lengths)
    report.add("conformal_coverage_off_worst_length", worst, "share", "<= 0.03" if targets else None)
    _say_where_the_budget_broke(report, blocks, lengths)
    folder = BUILD_FOLDER / COMMAND if output is None else output
    if held_out is corpus.test:
        kinds = unfamiliar_texts(corpus.train.texts, words)
        found = {name: predict_texts(loaded.model, loaded.tokenizer, texts) for name, texts in kinds.items()}
        measure_unfamiliar(report, answers["held_out"], found, decision, with_targets=targets)
    figures = draw(folder, answers["held_out"], bars["held_out"], decision, lengths, rows_name=part)
    report.details["figures"] = [str(path) for path in figures]
    report.add("seconds_evaluate", time.perf_counter() - started, "s")
    report.details["page"] = str(write_page(report, folder / PAGE, rows=part, figures=figures))
    return report


def has_targets(corpus: Corpus, data: str | None) -> bool:
    """Whether the targets apply: they were set on the whole held-out part of IMDB's labelled reviews."""
    return data is None and corpus.name == IMDB and corpus.provenance["limit"] is None


def measure(report: Report, model: Answers, baseline: Answers, decision: Decision, *, with_targets: bool) -> None:
    """Add the checks of held-out rows, and their 95 % intervals as the detail `intervals`."""
    intervals: dict[str, tuple[float, float]] = report.details.setdefault("intervals", {})
    rows = len(model.labels)

    def add(
        name: str, value: float | None, unit: str, target: str = "", interval: tuple[float, float] | None = None
    ) -> None:
        report.add(name, value, unit, target if with_targets and target else None)
        if interval is not None:
            intervals[name] = interval

    def mean_interval(values: NDArray[np.float64]) -> tuple[float, float]:
        return metrics.bootstrap(lambda i: float(values[i].mean()), rows)

    right, bar = model.right, baseline.right
    loss = metrics.log_losses(model.probabilities, model.labels)
    bar_loss = metrics.log_losses(baseline.probabilities, baseline.labels)
    gain = right.astype(np.float64) - bar
    add("accuracy", right.mean(), "share", ">= 0.900", metrics.clopper_pearson(int(right.sum()), rows))
    add("baseline_accuracy", bar.mean(), "share", "", metrics.clopper_pearson(int(bar.sum()), rows))
    add("accuracy_above_baseline", gain.mean(), "share", "> 0", mean_interval(gain))
    add("nll", loss.mean(), "nats", "<= 0.25", mean_interval(loss))
    add("baseline_nll", bar_loss.mean(), "nats", "", mean_interval(bar_loss))
    intervals["nll_below_baseline"] = mean_interval(bar_loss - loss)
    p, labels = model.probabilities, model.labels
    spread = metrics.bootstrap(lambda i: metrics.ece(p[i], labels[i]), rows)
    add("ece", metrics.ece(p, labels), "share", "<= 0.02", spread)
    add("baseline_ece", metrics.ece(baseline.probabilities, labels), "share")
    add("brier", metrics.brier(p, labels), "")

    accepted = model.accepted(decision)
    count, wrong = int(accepted.sum()), int((accepted & ~right).sum())
    add("accepted_at_5pct", count / rows, "share", "", metrics.clopper_pearson(count, rows))
    # Where nothing is accepted nothing accepted is wrong: there is no rate that could miss the budget.
    target = f"<= {decision.max_error:g}" if count else ""
    add("accepted_error", wrong / count if count else None, "share", target, metrics.clopper_pearson(wrong, count))
    for name, budget in BUDGETS.items():
        share = metrics.share_accepted_at(model.total, right, budget)
        add(f"acceptable_at_{name}", share, "share", "", _acceptable_interval(model, budget))
        add(f"baseline_acceptable_at_{name}", metrics.share_accepted_at(baseline.total, bar, budget), "share")
        intervals[f"acceptable_at_{name}_above_baseline"] = _acceptable_interval(model, budget, baseline)
    add("aurc", metrics.aurc(model.total, right), "share")
    add("baseline_aurc", metrics.aurc(baseline.total, bar), "share")
    add("error_auroc_total", metrics.auroc(model.total, ~right), "")
    if model.epistemic is not None:
        add("error_auroc_epistemic", metrics.auroc(model.epistemic, ~right), "")
        add("error_auroc_aleatoric", metrics.auroc(model.total - model.epistemic, ~right), "")
    add("error_auroc_top", metrics.auroc(1 - p.max(axis=1), ~right), "")
    add("baseline_error_auroc", metrics.auroc(baseline.total, ~bar), "")
    sets = metrics.prediction_sets(p, decision.conformal_threshold)
    covered = metrics.coverage(sets, labels)
    add("conformal_coverage", covered, "share", "", metrics.clopper_pearson(round(covered * rows), rows))
    add("conformal_coverage_off", abs(covered - decision.conformal_level), "share", "<= 0.015")
    add("conformal_set_size", sets.sum(axis=1).mean(), "classes")


def _compare_budgets(
    report: Report, model: Answers, decision: Decision, baseline: Answers, baseline_decision: Decision
) -> None:
    """Add what the baseline accepts under a budget of its own, proven on the same rows, and how much more the model."""
    ours, theirs = model.accepted(decision), baseline.accepted(baseline_decision)
    gain = ours.astype(np.float64) - theirs
    report.add("baseline_accepted_at_5pct", theirs.mean(), "share")
    report.add("baseline_accepted_error", (~baseline.right[theirs]).mean() if theirs.any() else None, "share")
    report.details["intervals"]["accepted_at_5pct_above_baseline"] = metrics.bootstrap(
        lambda i: float(gain[i].mean()), len(gain)
    )


def _cropped(split: Split) -> Split:
    """A short stretch of each text, of 8 to 60 words: what a text of this domain is when most of it is missing."""
    random = np.random.default_rng(0)
    stretches = (stretch(text.split(), short_length(random, *_CROP_WORDS), random) for text in split.texts)
    return Split([" ".join(words) for words in stretches], split.labels)


def _held_out(
    corpus: Corpus, data: str | None, columns: tuple[str, str], names: tuple[str, ...], cache_dir: Path | None
) -> tuple[Split, str]:
    """The rows to measure on, and what to call them."""
    own = f"held-out part of {'IMDB train' if corpus.name == IMDB else corpus.name}"
    if data is None or data == corpus.name:
        return corpus.test, own
    rows = load_rows(data, names, *columns, cache_dir=cache_dir)
    seen = {fingerprint(text) for part in (corpus.train, corpus.validation, corpus.calibration) for text in part.texts}
    unseen = np.array([row for row, text in enumerate(rows.texts) if fingerprint(text) not in seen], dtype=np.int64)
    if not len(unseen):
        raise DataError(f"{data}: every row was trained on or calibrated with; give rows that the model has not seen")
    if len(unseen) < len(rows):
        _log.warning("%s: %d rows were trained on or calibrated with and are left out", data, len(rows) - len(unseen))
    return rows.take(unseen), data


def _ask(loaded: Checkpoint, split: Split) -> Answers:
    _log.info("predicting %s texts", f"{len(split):,}")
    found: Mapping[str, NDArray[Any]] = predict_texts(loaded.model, loaded.tokenizer, split.texts)
    return Answers(found["probabilities"], found["total"], found["epistemic"], split.labels)


def _of_baseline(probabilities: Floats, labels: Labels) -> Answers:
    return Answers(probabilities, metrics.entropy(probabilities), None, labels)


def _acceptable_interval(answers: Answers, budget: float, other: Answers | None = None) -> tuple[float, float]:
    """Interval of the share acceptable within a budget; with another classifier, of how much more that is."""

    def share(of: Answers, rows: NDArray[np.int64]) -> float:
        return metrics.share_accepted_at(of.total[rows], of.right[rows], budget)

    return metrics.bootstrap(
        lambda rows: share(answers, rows) - (share(other, rows) if other is not None else 0.0), len(answers.labels)
    )


def _say_where_the_budget_broke(report: Report, blocks: list[Group], lengths: list[Group]) -> None:
    """Where the held-out error among the accepted exceeds the budget, name the groups that break it."""
    broken = [check for check in report.checks if check.name == "accepted_error" and check.holds is False]
    if not broken:
        return
    lines = [
        f"  {group.name}: {group.accepted_error:.3f} of {group.accepted:.2f} × {group.rows} rows"
        for group in sorted([*blocks, *lengths], key=lambda group: -(group.accepted_error or 0.0))
        if group.accepted_error is not None
    ]
    _log.warning("error among the accepted %.4f is over the budget; by group:\n%s", broken[0].value, "\n".join(lines))
