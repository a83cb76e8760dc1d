"""The verdict: every figure under its stable name, targets only where they belong, and the budget's failures shown."""

from __future__ import annotations

import json
import math
import shutil
import tarfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train import metrics
from train.__main__ import main
from train.answers import Answers, by_block, by_length, group_rows
from train.checkpoint import load_production
from train.data import load_corpus
from train.decision import Decision
from train.errors import DataError
from train.evaluation import evaluate, measure
from train.folds import combined, evaluate_all
from train.product_snippets import main as product_snippets
from train.shift import measure_shift
from train.wrong_labels import measure_wrong_labels
from verdict import Report

DECISION = Decision(
    max_error=0.05,
    confidence=0.95,
    risk_threshold=0.4,
    novelty_threshold=0.2,
    novelty_quantile=0.99,
    conformal_level=0.95,
    conformal_threshold=0.8,
    rows=600,
    accepted_share=0.6,
    accepted_error=0.03,
    accepted_error_bound=0.05,
    message="",
)
OF_ISSUE = [
    "accuracy",
    "baseline_accuracy",
    "accuracy_above_baseline",
    "nll",
    "ece",
    "accepted_at_5pct",
    "accepted_error",
]


def _answers(rows: int = 800, skill: float = 2.0, seed: int = 0) -> Answers:
    """Calibrated answers of a classifier of some skill: logits are normal, labels drawn from the probabilities."""
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-skill * rng.normal(size=rows) * 2))
    labels = (rng.random(rows) < p).astype(np.int64)
    probabilities = np.stack([1 - p, p], axis=1)
    return Answers(probabilities, metrics.entropy(probabilities), 0.2 * rng.random(rows), labels)


def _baseline(model: Answers) -> Answers:
    """The same rows by a classifier that is right a little less often."""
    flat = 0.5 + 0.6 * (model.probabilities - 0.5)
    flat[::19] = flat[::19, ::-1]
    return Answers(flat, metrics.entropy(flat), None, model.labels)


def _checks(report: Report) -> dict[str, float | None]:
    return {check.name: check.value for check in report.checks}


def test_the_figures_of_the_verdict_carry_their_stable_names_and_agree_with_the_metrics() -> None:
    model, report = _answers(), Report("evaluate")
    measure(report, model, _baseline(model), DECISION, with_targets=True)
    checks = _checks(report)
    assert list(checks)[:4] == ["accuracy", "baseline_accuracy", "accuracy_above_baseline", "nll"]
    assert set(OF_ISSUE) <= set(checks)
    assert checks["accuracy"] == metrics.accuracy(model.probabilities, model.labels)
    assert checks["ece"] == metrics.ece(model.probabilities, model.labels)
    accepted = (model.total <= 0.4) & (model.epistemic <= 0.2)  # type: ignore[operator]
    assert checks["accepted_at_5pct"] == accepted.mean()
    assert checks["accepted_error"] == pytest.approx((~model.right)[accepted].mean())
    assert checks["conformal_coverage"] is not None
    for name, (low, high) in report.details["intervals"].items():
        assert low <= high
        if name in checks:
            assert low - 0.01 <= (checks[name] or 0) <= high + 0.01


def test_targets_are_those_of_imdb_and_only_given_where_asked() -> None:
    model = _answers()
    with_targets, without = Report("evaluate"), Report("evaluate")
    measure(with_targets, model, _baseline(model), DECISION, with_targets=True)
    measure(without, model, _baseline(model), DECISION, with_targets=False)
    targets = {check.name: check.target for check in with_targets.checks if check.target}
    assert targets == {
        "accuracy": ">= 0.900",
        "accuracy_above_baseline": "> 0",
        "nll": "<= 0.25",
        "ece": "<= 0.02",
        "conformal_coverage_off": "<= 0.015",
        "accepted_error": "<= 0.05",
    }
    assert not any(check.target for check in without.checks)
    assert without.exit_status() == 0


def test_a_model_below_the_bar_fails_the_verdict() -> None:
    weak = _answers(skill=0.3)
    report = Report("evaluate")
    measure(report, weak, weak, DECISION, with_targets=True)
    missed = {check.name for check in report.checks if check.holds is False}
    assert {"accuracy", "accuracy_above_baseline", "nll"} <= missed
    assert report.exit_status() == 1
    assert report.exit_status(report_only=True) == 0


def test_where_nothing_is_accepted_no_budget_is_missed() -> None:
    report = Report("evaluate")
    model = _answers()
    measure(report, model, _baseline(model), replace(DECISION, risk_threshold=-1.0), with_targets=True)
    assert _checks(report)["accepted_at_5pct"] == 0
    assert _checks(report)["accepted_error"] is None
    assert next(check.holds for check in report.checks if check.name == "accepted_error") is None


def test_unfamiliar_rows_are_not_accepted_however_certain() -> None:
    model = _answers()
    strange = Answers(model.probabilities, model.total, np.full(len(model.labels), 0.3), model.labels)
    assert not strange.accepted(DECISION).any()


def test_another_domain_is_reported_without_targets() -> None:
    report = Report("evaluate")
    model = _answers(skill=0.8)
    measure_shift(report, "snippets", model, _baseline(model), DECISION, held_out=_answers())
    assert all(check.name.startswith("snippets_") and check.target is None for check in report.checks)
    checks = _checks(report)
    assert (checks["snippets_told_by_total"] or 0) > 0.6  # less skill, less certainty
    assert 0.4 < (checks["snippets_told_by_epistemic"] or 0) < 0.6  # drawn alike
    assert report.details["shift"]["snippets"]["total_moved_p"] < 0.01


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=200))
def test_length_groups_hold_every_row_once_and_never_split_a_length(values: list[int]) -> None:
    words = np.array(values)
    groups = by_length(words)
    assert sorted(np.concatenate(list(groups.values()))) == list(range(len(words)))
    ranges = sorted((words[rows].min(), words[rows].max()) for rows in groups.values())
    assert all(high < low for (_, high), (low, _) in pairwise(ranges))


def test_blocks_are_contiguous_per_class() -> None:
    labels = np.array([0, 1] * 8)
    blocks = by_block(labels, ("no", "yes"))
    assert list(blocks) == [f"{name} {i}/4" for name in ("no", "yes") for i in (1, 2, 3, 4)]
    assert blocks["yes 2/4"].tolist() == [5, 7]


def test_a_group_without_accepted_rows_has_no_error_among_them() -> None:
    model = _answers(40)
    (group,) = group_rows({"all": np.arange(40)}, model, _baseline(model), replace(DECISION, risk_threshold=-1.0))
    assert (group.accepted, group.accepted_error) == (0.0, None)
    assert group.error == pytest.approx((~model.right).mean())


def test_a_checkpoint_is_measured_on_rows_it_never_saw_with_pictures(tiny_checkpoint: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_checkpoint.rglob("*")}
    report = evaluate(tiny_checkpoint, output=tmp_path)
    checks = _checks(report)
    assert set(OF_ISSUE) | {"snippets_accuracy", "snippets_nll", "crops_nll", "label_noise_auroc"} <= set(checks)
    assert (checks["crops_nll"] or 0) > (checks["nll"] or 1)
    assert all(value is None or math.isfinite(value) for value in checks.values())
    assert report.details["rows"]["part"] == "held-out part of IMDB train"
    assert report.details["rows"]["count"] == 600
    assert not any(check.target for check in report.checks)  # a trial on some rows is no verdict on IMDB
    assert sum(group["rows"] for group in report.details["by_length"]) == 600
    assert sum(group["rows"] for group in report.details["by_block"]) == 600
    for name in ("reliability", "accepted", "length"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
    json.loads(report.write(tmp_path).read_text(encoding="utf-8"))
    # The baseline's cache lies beside the sealed folder, not in it.
    assert {path: path.stat().st_mtime_ns for path in tiny_checkpoint.rglob("*")} == before


def test_other_rows_are_matched_by_class_name_and_known_ones_left_out(tiny_checkpoint: Path, tmp_path: Path) -> None:
    corpus = load_corpus(limit=600)
    texts = [*corpus.train.texts[:30], *corpus.test.texts[:50]]
    labels = [corpus.label_names[i] for i in (*corpus.train.labels[:30], *corpus.test.labels[:50])]
    pd.DataFrame({"body": texts, "mood": labels}).to_csv(tmp_path / "mine.csv", index=False)
    report = evaluate(tiny_checkpoint, str(tmp_path / "mine.csv"), "body", "mood", output=tmp_path)
    assert report.details["rows"]["count"] == 50
    pd.DataFrame({"text": texts[:30], "label": labels[:30]}).to_csv(tmp_path / "seen.csv", index=False)
    with pytest.raises(DataError, match="every row was trained on or calibrated with"):
        evaluate(tiny_checkpoint, str(tmp_path / "seen.csv"), output=tmp_path)


def test_a_budget_that_breaks_shows_the_groups_that_break_it(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny checkpoint has too few rows to prove a budget, so its decision accepts nothing; accept everything
    # instead, and hold it to the target that a whole IMDB run would have.
    folder = tmp_path / "production"
    shutil.copytree(tiny_checkpoint, folder)
    loaded = load_production(folder)
    everything = replace(loaded.calibration.decide(), risk_threshold=10.0, novelty_threshold=10.0)
    monkeypatch.setattr("train.calibration.Calibration.decide", lambda self: everything)
    monkeypatch.setattr("train.evaluation.has_targets", lambda *_: True)
    report = evaluate(folder, output=tmp_path)
    assert next(check.holds for check in report.checks if check.name == "accepted_error") is False
    assert "over the budget" in caplog.text
    assert "negative 1/4" in caplog.text


def test_flipped_labels_are_found_by_a_model_that_knows_better() -> None:
    report, model = Report("evaluate"), _answers(4000, skill=4.0)
    measure_wrong_labels(report, model, Answers(np.full((4000, 2), 0.5), np.zeros(4000), None, model.labels))
    checks = _checks(report)
    assert (checks["label_noise_auroc"] or 0) > 0.9
    assert (checks["label_noise_found"] or 0) > 0.3
    assert checks["baseline_label_noise_auroc"] == pytest.approx(0.5)


def test_several_checkpoints_give_means_with_their_range(tiny_checkpoint: Path, tmp_path: Path) -> None:
    texts = ["Works well and looks good.", "Broke after a week, avoid it."] * 6
    frame = pd.DataFrame({"text": texts, "label": ["positive", "negative"] * 6})
    frame.to_csv(tmp_path / "products.csv", index=False)
    report = evaluate_all(
        [tiny_checkpoint, tiny_checkpoint], shift={"products": str(tmp_path / "products.csv")}, output=tmp_path / "page"
    )
    runs = report.details["runs"]
    assert runs["accuracy"]["values"][0] == runs["accuracy"]["mean"] == runs["accuracy"]["largest"]
    assert runs["products_accuracy"]["deviation"] == 0
    one = json.loads((tmp_path / "page" / "1" / "report.json").read_text(encoding="utf-8"))["intervals"]["nll"]
    low, high = report.details["intervals"]["nll"]
    assert high - low == pytest.approx((one[1] - one[0]) / math.sqrt(2))
    page = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert "2 checkpoints" in page
    assert "http" not in page


def test_the_mean_is_held_to_the_targets_of_its_preset(tmp_path: Path) -> None:
    reports = []
    for skill in (1.9, 2.1):
        report, model = Report("evaluate"), _answers(skill=skill)
        measure(report, model, _baseline(model), DECISION, with_targets=True)
        report.details |= {"checkpoint": "x", "rows": {"count": 800}}
        reports.append(report)
    total = combined(reports, tmp_path, "full")
    targets = {check.name: check.target for check in total.checks if check.target}
    assert targets["accuracy"] == ">= 0.918"
    assert targets["accuracy_above_baseline"] == "> 0"
    assert next(check.value for check in total.checks if check.name == "nll") == pytest.approx(
        np.mean([next(check.value for check in report.checks if check.name == "nll") for report in reports])
    )


def test_product_snippets_become_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rated = b"1_1\t-1.2\tIt broke at once.\n1_2\t0.1\tIt is blue.\n2_1\t2.05\tI love it, and so does she.\n"
    inner = tmp_path / "hutto_ICWSM_2014.tar.gz"
    (tmp_path / "amazonReviewSnippets_GroundTruth.txt").write_bytes(rated)
    with tarfile.open(inner, "w:gz") as archive:
        archive.add(tmp_path / "amazonReviewSnippets_GroundTruth.txt", "h/amazonReviewSnippets_GroundTruth.txt")
    with tarfile.open(tmp_path / "d.tar.gz", "w:gz") as archive:
        archive.add(inner, "v/hutto_ICWSM_2014.tar.gz")
    assert product_snippets([str(tmp_path / "d.tar.gz"), str(tmp_path / "products.csv")]) == 0
    rows = pd.read_csv(tmp_path / "products.csv")
    assert rows.label.tolist() == ["negative", "positive"]
    assert rows.text[1] == "I love it, and so does she."
    assert product_snippets([str(inner), str(tmp_path / "other.csv")]) == 2
    assert "pip download vaderSentiment==3.3.2" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["products", "=x.csv", "a b=x.csv", "p="])
def test_a_shift_is_a_name_and_a_file(option: str, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tiny_checkpoint), "--shift", option]) == 2
    assert "must be NAME=FILE" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there_is_wrong_use_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: there is no checkpoint folder")
