"""Versions: moved in whole, pinned last, switched by rename; whatever is interrupted leaves the old one answering."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export import outputs, versions
from export.errors import RepositoryError
from export.manifest import MANIFEST, kind_of, read_manifest
from export.repository import Names, Pins, ensemble_config, parameters, read_config, replace_text, write_configurations

BET = Names("bet")
Stage = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    shutil.copytree(repository, folder)
    return folder


@pytest.fixture
def stage(repository: Path, tmp_path: Path) -> Stage:
    """A staged copy of the exported version, as `add` would have made it once more."""

    def make(names: Names = BET, **changes: Any) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path / f"staged-{len(list(tmp_path.iterdir()))}"
        manifest = {**read_manifest(repository / "bet_classifier" / "1"), **changes}
        write_configurations(folder, names, manifest["labels"], Pins(1))
        for ours, theirs in zip(names.versioned, BET.versioned, strict=True):
            shutil.copytree(repository / theirs / "1", folder / ours / "1")
        return folder, manifest

    return make


def pins(folder: Path, names: Names = BET) -> tuple[int, int | None]:
    found = versions.read_pins(folder, names)
    assert found is not None
    return found.version, found.previous


def test_the_exported_version_is_whole_pinned_and_described(repository: Path) -> None:
    (version,) = versions.list_versions(repository, BET)
    assert (version.number, version.pinned, version.faults) == (1, True, ())
    assert version.labels == ("negative", "positive")
    manifest = read_manifest(repository / "bet_classifier" / "1")
    assert set(manifest["files"]) == {"model.py", "tokenizer.json", "model.pt", "model.onnx", "parity.json"}
    assert manifest["parity"]["parity_served"] <= 1e-5
    assert manifest["probe"]["label"] in version.labels
    assert manifest["data"]["sha256"]["calibration"]
    assert {"torch", "onnx", "tokenizers"} <= set(manifest["tools"])


def test_the_next_version_goes_beside_the_first_and_is_pinned_in_both_ensembles(models: Path, stage: Stage) -> None:
    folder, manifest = stage()
    assert versions.install(models, BET, folder, 1, manifest) == 2
    assert pins(models) == (2, 1)
    for ensemble in BET.ensembles:
        steps = read_config(models / ensemble / "config.pbtxt").ensemble_scheduling.step
        assert [step.model_version for step in steps] == [2, 2]
    assert [v.faults for v in versions.list_versions(models, BET)] == [(), ()]


@pytest.mark.parametrize("after", range(4))
def test_a_crash_while_moving_in_leaves_the_old_version_answering(
    models: Path, stage: Stage, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = stage()
    moved = 0
    rename = Path.rename

    def crash(self: Path, target: Path) -> Path:
        nonlocal moved
        if moved == after:
            raise KeyboardInterrupt
        moved += 1
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", crash)
    if after == len(BET.versioned):  # all is moved, and the pins are not written yet
        monkeypatch.setattr(versions, "_write_pins", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        versions.install(models, BET, folder, 1, manifest)
    monkeypatch.undo()
    assert pins(models) == (1, None)
    assert next(v for v in versions.list_versions(models, BET) if v.number == 1).faults == ()
    # What is half there is named, cannot be promoted, takes no number twice, and can be removed.
    half = [v.number for v in versions.list_versions(models, BET) if v.number == 2]
    assert bool(half) == (after > 0)
    if 0 < after < len(BET.versioned):
        with pytest.raises(RepositoryError, match="version 2 cannot be served"):
            versions.pin(models, BET, 2)
        again, manifest = stage()
        assert versions.install(models, BET, again, 1, manifest) == 3
        versions.remove(models, BET, 2)
        assert versions.numbers(models, BET) == [1, 3]


def test_other_labels_under_a_known_name_are_refused(models: Path, stage: Stage) -> None:
    folder, manifest = stage(labels=["positive", "negative"])
    with pytest.raises(RepositoryError, match="choose another --name"):
        versions.install(models, BET, folder, 1, manifest)
    assert versions.numbers(models, BET) == [1]


def test_another_name_gets_models_of_its_own(models: Path, stage: Stage) -> None:
    names = Names("spam")
    folder, manifest = stage(names, name="spam", labels=["ham", "spam"])
    assert versions.install(models, names, folder, 1, manifest) == 1
    assert {"spam", "spam_tokenizer", "spam_classifier", "spam_torchscript", "spam_classifier_torchscript"} <= {
        p.name for p in models.iterdir()
    }
    assert pins(models, names) == (1, None)
    assert pins(models) == (1, None)


def test_an_operators_numbers_survive_the_next_export_and_other_tensors_do_not(models: Path, stage: Stage) -> None:
    path = models / "bet_classifier" / "config.pbtxt"
    replace_text(path, path.read_text().replace("count: 2", "count: 5"))
    tokenizer = models / "bet_tokenizer" / "config.pbtxt"
    replace_text(tokenizer, tokenizer.read_text().replace("TYPE_INT64", "TYPE_INT32"))
    folder, manifest = stage()
    versions.install(models, BET, folder, 1, manifest)
    assert "count: 5" in path.read_text()
    assert "TYPE_INT64" in tokenizer.read_text()


def test_the_version_that_answers_cannot_be_removed_and_others_can(models: Path, stage: Stage) -> None:
    folder, manifest = stage()
    versions.install(models, BET, folder, 1, manifest)
    with pytest.raises(RepositoryError, match="promote another first"):
        versions.remove(models, BET, 2)
    versions.remove(models, BET, 1)
    assert versions.numbers(models, BET) == [2]
    assert pins(models) == (2, None)  # there is nothing to go back to any more
    with pytest.raises(RepositoryError, match="has no version 1; it has 2"):
        versions.remove(models, BET, 1)


def test_promote_remembers_what_answered_before(models: Path, stage: Stage) -> None:
    for _ in range(2):
        folder, manifest = stage()
        versions.install(models, BET, folder, 1, manifest)
    assert pins(models) == (3, 2)
    assert versions.pin(models, BET, 1).version == 3
    assert pins(models) == (1, 3)
    versions.pin(models, BET, 1)  # twice the same is no way back to itself
    assert pins(models) == (1, 3)


def test_the_ensembles_say_the_budgets_of_the_version_that_they_pin(models: Path, stage: Stage) -> None:
    def said(ensemble: str) -> Any:
        return json.loads(parameters(read_config(models / ensemble / "config.pbtxt")).get("budgets", "null"))

    first = read_manifest(models / "bet_classifier" / "1")["budgets"]
    assert said("bet") == said("bet_torchscript") == first
    in_fp32 = {"precision": "fp32", "budgets": [{"max_error": 0.05}]}
    folder, manifest = stage(budgets=[{"max_error": 0.1}], torchscript=in_fp32)
    versions.install(models, BET, folder, 1, manifest)
    assert (said("bet"), said("bet_torchscript")) == ([{"max_error": 0.1}], in_fp32["budgets"])
    versions.pin(models, BET, 1)
    assert said("bet") == said("bet_torchscript") == first
    # A version from before there were budgets: what was proven of one graph is not said of the other.
    folder, manifest = stage(budgets=[{"max_error": 0.1}], torchscript={"precision": "fp32"})
    versions.install(models, BET, folder, 1, manifest)
    assert (said("bet"), said("bet_torchscript")) == ([{"max_error": 0.1}], None)


@pytest.mark.parametrize(
    "file", ["bet_classifier/1/model.onnx", "bet_tokenizer/1/tokenizer.json", "bet_tokenizer/1/model.py"]
)
def test_an_altered_or_truncated_file_is_named_and_not_promoted(models: Path, file: str) -> None:
    path = models / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RepositoryError, match=f"{file} is not the file of the manifest"):
        versions.pin(models, BET, 1)
    path.unlink()
    with pytest.raises(RepositoryError, match=f"{file} is missing"):
        versions.pin(models, BET, 1)


def test_manifests_that_differ_are_not_one_version(models: Path) -> None:
    path = models / "bet_tokenizer" / "1" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "created": "another day"}))
    with pytest.raises(RepositoryError, match="manifests of version 1 differ"):
        versions.pin(models, BET, 1)


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_is_not(models: Path) -> None:
    left = models.parent / ".models-staging-killed"
    (left / "bet").mkdir(parents=True)
    with versions.staging_folder(models) as living:
        with versions.staging_folder(models) as other:
            assert living.exists()
            assert living != other
        assert living.exists()
        assert not left.exists()
        assert living.stat().st_dev == models.stat().st_dev
    assert not living.exists()


def test_a_version_of_another_level_does_not_change_what_the_others_answer_with(models: Path, stage: Stage) -> None:
    folder, manifest = stage(graph_level="basic")
    before = (models / "bet_classifier" / "config.pbtxt").read_bytes()
    with pytest.raises(RepositoryError, match=r"level 'basic' and those of 'bet' in .* run at 'all'"):
        versions.install(models, BET, folder, 1, manifest)
    assert (models / "bet_classifier" / "config.pbtxt").read_bytes() == before
    assert versions.numbers(models, BET) == [1]


def test_a_version_keeps_the_outputs_that_it_was_exported_with_and_shares_no_name_with_others(tmp_path: Path) -> None:
    older = {"kind": "bet", "labels": ["no", "yes"], "version": 1}  # as exported before n-grams were named
    kind = kind_of(older)
    declared = [output.name for output in ensemble_config(BET, ("no", "yes"), Pins(1), kind=kind).output]
    assert "evidence_budget" in declared
    assert not {"evidence_ngrams", "evidence_nats"} & set(declared)
    assert kind_of({**older, "outputs": [output.name for output in outputs.BET.outputs]}) == outputs.BET
    folder = tmp_path / BET.classifier / "1"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps(older), encoding="utf-8")
    versions.require_same_answers(tmp_path, BET, ("no", "yes"), kind, answering=1)
    with pytest.raises(RepositoryError, match="differ in the outputs evidence_nats, evidence_ngrams"):
        versions.require_same_answers(tmp_path, BET, ("no", "yes"), outputs.BET, answering=1)
