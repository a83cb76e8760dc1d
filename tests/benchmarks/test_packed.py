"""Packed against padded: the forms of a batch, the answers of a real export, and the verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.compare_settings import PackedSettings
from benchmarks.errors import TextsError, UsageError
from benchmarks.packed import FORMS, PackedOutcome, fill, judge_packed, measure_packed, pack, pad
from benchmarks.texts import load_texts

ROWS = [np.array([5, 6, 7]), np.array([8])]


def test_the_three_forms_of_a_batch() -> None:
    forms = {name: form(ROWS) for name, form in zip(FORMS, (pack, fill, pad), strict=True)}
    assert {name: ids.tolist() for name, (ids, _) in forms.items()} == {
        "packed": [5, 6, 7, 8],
        "filled": [5, 6, 7, 8, -1, -1],
        "padded": [5, 6, 7, 8, 8, 8],
    }
    assert [lengths for _, lengths in forms.values()] == [[3, 1], [3, 3], [3, 3]]


def test_a_real_export_answers_alike_packed_and_filled(repository: Path) -> None:
    settings = PackedSettings(repository=repository, rows=6, batches=2, rounds=2, short_tokens=8, short_repeats=3)
    said: list[str] = []
    outcome = measure_packed(settings, load_texts(sample=80).texts, said.append)
    assert outcome.largest_difference <= 1e-5
    assert outcome.cells > outcome.tokens  # real lengths differ
    assert {len(of) for of in (*outcome.seconds.values(), *outcome.short.values())} == {2}
    assert len(said) == 2
    checks = {check.name: check for check in judge_packed(settings, outcome).checks}
    assert checks["largest_difference"].holds
    assert (checks["milliseconds_8x8"].value or 0) > 0


def _outcome(padded: float, difference: float = 1e-7) -> PackedOutcome:
    """Three rounds, each slower than the one before."""
    seconds = {name: tuple(of * k for k in (1, 2, 4)) for name, of in {"packed": 1.0, "filled": 1.2}.items()}
    padded_seconds = tuple(padded * k for k in (1, 2, 4))
    return PackedOutcome(seconds | {"padded": padded_seconds}, 1000, 2600, difference, {8: (1.0,) * 3})


def test_ratios_are_taken_within_a_round_and_count_real_tokens_alone() -> None:
    report = judge_packed(PackedSettings(), _outcome(2.6))
    values = {check.name: check.value for check in report.checks}
    assert report.holds
    assert values["packed_over_padded"] == pytest.approx(2.6)
    assert values["packed_over_filled"] == pytest.approx(1.2)
    assert values["tokens_per_second_packed"] == pytest.approx(500)
    assert values["padded_places"] == pytest.approx(2.6)


@pytest.mark.parametrize(
    ("outcome", "missed"), [(_outcome(2.4), "packed_over_padded"), (_outcome(2.6, 1e-3), "largest_difference")]
)
def test_each_target_decides(outcome: PackedOutcome, missed: str) -> None:
    report = judge_packed(PackedSettings(), outcome)
    assert {check.name for check in report.checks if check.holds is False} == {missed}


def test_wrong_use_is_one_line(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"rows is 0.*threads is 0"):
        PackedSettings(rows=0, threads=0)
    with pytest.raises(TextsError, match="3 texts do not fill a batch of 32"):
        measure_packed(PackedSettings(repository=repository), ["a", "b", "c"], lambda line: None)
    assert main(["packed", "--rounds", "0"]) == 2
    assert "rounds is 0" in capsys.readouterr().err
