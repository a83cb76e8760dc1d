"""A checkpoint is whole or it is refused by name; how a run goes on from one is in `test_resume`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from train.checkpoint import load_production, seal, verify, written_whole
from train.errors import CheckpointError, ConfigError, DataError
from train.fit import FitOptions, fit
from train.prediction import predict_texts
from train.preset import load_preset


def folder_with(path: Path, **files: str) -> Path:
    with written_whole(path) as staging:
        for name, content in files.items():
            (staging / name).write_text(content)
    return path


def test_a_folder_is_moved_in_whole_or_not_at_all(tmp_path: Path) -> None:
    target = folder_with(tmp_path / "kept", weights="old")

    def interrupted() -> None:
        with written_whole(target) as staging:
            (staging / "weights").write_text("new")
            raise RuntimeError("power is gone")

    with pytest.raises(RuntimeError, match="power"):
        interrupted()
    assert (target / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "weights").write_text("olD"), "altered: weights"),
        (lambda f: (f / "weights").write_text(""), "altered: weights"),
        (lambda f: (f / "weights").unlink(), "missing: weights"),
        (lambda f: (f / "files.json").unlink(), "has no files.json"),
        (lambda f: (f / "files.json").write_text("{"), "is damaged"),
    ],
)
def test_harm_to_a_sealed_folder_is_named(tmp_path: Path, harm: object, words: str) -> None:
    target = folder_with(tmp_path / "sealed", weights="old", config="{}")
    assert set(verify(target)) == {"weights", "config"}
    harm(target)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=words):
        verify(target)


def test_a_production_checkpoint_answers_as_before_and_names_its_classes(tiny_checkpoint: Path) -> None:
    loaded = load_production(tiny_checkpoint)
    assert loaded.label_names == ("negative", "positive")
    answer = predict_texts(loaded.model, loaded.tokenizer, ["a wonderful film", "a dreadful film", "[UNK] [PAD]", " "])
    assert answer["probabilities"].shape == (4, 2)
    assert np.isfinite(answer["total"]).all()
    decision = loaded.calibration.decide()
    assert loaded.provenance["data"]["rows"]["calibration"] == decision.rows + len(loaded.calibration.fitting_total)


def test_a_folder_that_is_no_production_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint folder"):
        load_production(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no files\.json"):
        load_production(tmp_path)
    seal(tmp_path)
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_production(tmp_path)


def test_a_complete_run_is_left_alone_and_an_unfinished_or_other_one_is_not_touched_silently(tmp_path: Path) -> None:
    options = FitOptions(output=tmp_path, data=str(tmp_path / "absent.csv"))
    with pytest.raises(DataError, match=r"absent\.csv"):
        fit(options)
    with pytest.raises(CheckpointError, match="--resume"):
        fit(options)
    with pytest.raises(CheckpointError, match="--overwrite"):
        fit(replace(options, seed=1))
    with pytest.raises(DataError):
        fit(replace(options, seed=1, overwrite=True))


def test_a_preset_with_faults_lists_them_all(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        Path("train/configs/demo.yaml")
        .read_text()
        .replace("vocab_size:", "vocabulary:")
        .replace("  epochs: ", "  epochs: many")
        .replace("hidden_size: 64", "hiden_size: 64")
        + "\nextra: {}\n"
    )
    with pytest.raises(ConfigError) as raised:
        load_preset(str(path))
    for fault in (
        "unknown section 'extra'",
        "unknown key tokenizer.vocabulary",
        "missing key tokenizer.vocab_size",
        "training.epochs = 'many",
        "unknown key model.hiden_size",
    ):
        assert fault in str(raised.value)
    with pytest.raises(ConfigError, match="choose one of demo"):
        load_preset("nonesuch")


def test_an_option_of_other_trainers_that_is_not_here_is_refused_and_not_ignored(tmp_path: Path) -> None:
    # tf#28544: nothing stops early here; the best evaluation of all epochs is what is kept.
    path = tmp_path / "mine.yaml"
    path.write_text(Path("train/configs/demo.yaml").read_text().replace("  epochs:", "  patience: 2\n  epochs:"))
    with pytest.raises(ConfigError, match=r"unknown key training\.patience"):
        load_preset(str(path))
