"""Every encoder family through the live Triton, by the command that a user types; each about a minute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_hugging_face import FAMILIES, LABELS, LIMIT, without_limit, write_folder, write_rows

from export import versions
from export.__main__ import main
from export.repository import Names

ONE_LABEL = [family for family in FAMILIES if family not in ("fnet", "data2vec-text")]
CASES = [
    *((family, "multi_label_classification") for family in ("roberta", "modernbert")),
    *((family, "regression") for family in ("bert", "deberta-v2")),
    *((family, "single_label_classification") for family in ONE_LABEL),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("family", "problem"), CASES)
def test_a_family_is_added_behind_the_gate_and_serves_as_it_answers(
    family: str,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = ("score",) if problem == "regression" else LABELS
    write_folder(tmp_path / "model", family, labels, problem_type=problem)
    rows = write_rows(tmp_path / "model", tmp_path / "rows.csv", rows=120)
    limit = ("--max-tokens", str(LIMIT)) if without_limit(family) else ()
    arguments = ["add", str(tmp_path / "model"), "--calibration", str(rows), "--name", "theirs", *limit]
    assert main([*arguments, "--repository", str(tmp_path / "models"), "--max-error", "0.2", "--gate-texts", "14"]) == 0
    (version,) = versions.list_versions(tmp_path / "models", Names("theirs"))
    assert (version.pinned, version.faults) == (True, ())
    report = json.loads((tmp_path / "build" / "add" / "report.json").read_text())
    values = {check["name"]: check["value"] for check in report["checks"]}
    for side in ("served", "served_torchscript"):
        print(f"{family} {problem} parity_{side} {values[f'parity_{side}']:.1e}")
    assert values["mean_batch_size"] == 1
