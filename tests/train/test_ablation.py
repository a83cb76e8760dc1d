"""Each component can be switched off by itself, and the table says what that costs."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from train import ablation
from train.__main__ import main
from train.ablation import ablate


def test_every_component_has_its_row(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(0)
    words = ["".join(random.choices("aeioklmnrstvz", k=6)) for _ in range(2000)]
    salad = {"salad": [" ".join(random.choices(words, k=150)) for _ in range(12)]}
    monkeypatch.setattr(ablation, "unfamiliar_texts", lambda training, lengths: salad)
    report = ablate(tiny_checkpoint)
    variants = report.details["variants"]
    whole = variants["everything"]
    assert variants["evidence alone"]["nll"] > whole["nll"]
    assert variants["both streams alone"]["nll"] > variants["evidence alone"]["nll"]
    assert variants["without the evidence stream"]["nll"] > whole["nll"]
    assert variants["without novelty"]["unfamiliar_auroc"] < whole["unfamiliar_auroc"]
    assert variants["one order of the segments"]["nll"] == pytest.approx(whole["nll"], abs=0.01)
    for row in variants.values():
        assert row["description_length"] > 0.5 * row["nll"]
    assert 0 <= report.details["harmonics"]["share"] <= 1
    assert len(report.checks) == 6 * len(variants)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", str(tmp_path / "nothing")]) == 2
    assert "there is no checkpoint folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["ablate", str(tmp_path / "empty"), "--json"]) == 2
    assert json.dumps({}) not in capsys.readouterr().out
