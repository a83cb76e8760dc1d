"""A checkpoint is whole or it is refused by name, and a run goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, set_seed

from train import training
from train.checkpoint import load_production, newest_whole, seal, verify, written_whole
from train.errors import CheckpointError, ConfigError, DataError
from train.fit import FitOptions, fit
from train.model import BetConfig, BetForSequenceClassification
from train.prediction import predict_texts
from train.preset import load_preset
from train.training import train_trunk


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


def test_resuming_takes_the_newest_whole_checkpoint_and_says_why_not_a_newer_one(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        folder_with(tmp_path / f"checkpoint-{step}", optimizer=str(step))
    (tmp_path / "checkpoint-10" / "optimizer").write_text("")
    newest, reasons = newest_whole(tmp_path)
    assert newest is not None
    assert newest.name == "checkpoint-9"
    assert "checkpoint-10" in reasons[0]
    assert "altered: optimizer" in reasons[0]
    for step in (2, 9):
        (tmp_path / f"checkpoint-{step}" / "files.json").unlink()
    with pytest.raises(CheckpointError, match="no rolling checkpoint can be resumed"):
        newest_whole(tmp_path)
    assert newest_whole(tmp_path / "nothing here") == (None, [])


class Killed(RuntimeError):
    pass


class KillAt(TrainerCallback):
    """Stands in for a kill: the process gets no chance to tidy up."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == self.step:  # type: ignore[attr-defined]
            raise Killed


def small_run(path: Path, monkeypatch: pytest.MonkeyPatch, *, resume: bool = False, kill_at: int | None = None) -> dict:
    random = np.random.default_rng(0)
    documents = [random.integers(2, 90, random.integers(5, 60)).astype(np.int64) for _ in range(48)]
    labels = np.array([int((d < 30).mean() > 0.3) for d in documents])
    config = BetConfig(
        vocab_size=90, embedding_size=8, hidden_size=8, num_attention_heads=2, intermediate_size=8, hash_slots=64
    )
    set_seed(0)
    model = BetForSequenceClassification(config)
    options = replace(load_preset("demo").training, epochs=3.0, batch_size=8, window=32)
    if kill_at is not None:
        plain = training._Epochs
        monkeypatch.setattr(training, "_Epochs", lambda windows: _Both(plain(windows), KillAt(kill_at)))
    try:
        best = train_trunk(
            model, (documents, labels), (documents[:16], labels[:16]), options, path, seed=0, resume=resume
        )
    finally:
        monkeypatch.undo()
    return {"best": best, "weights": {name: value.clone() for name, value in model.state_dict().items()}}


class _Both(TrainerCallback):
    def __init__(self, first: TrainerCallback, second: TrainerCallback) -> None:
        self.first, self.second = first, second

    def on_epoch_begin(self, *args: object, **kwargs: object) -> None:
        self.first.on_epoch_begin(*args, **kwargs)

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.second.on_step_end(*args, **kwargs)


def test_a_killed_and_resumed_run_ends_bit_equal_to_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small_run(tmp_path / "whole", monkeypatch)
    with pytest.raises(Killed):
        small_run(tmp_path / "killed", monkeypatch, kill_at=9)  # in the second of three epochs of six steps
    assert [path.name for path in (tmp_path / "killed" / "rolling").iterdir()] == ["checkpoint-6"]
    resumed = small_run(tmp_path / "killed", monkeypatch, resume=True)
    assert resumed["best"] == whole["best"]
    for name, value in whole["weights"].items():
        assert torch.equal(value, resumed["weights"][name]), name
    rolling = sorted(path.name for path in (tmp_path / "killed" / "rolling").iterdir())
    assert rolling == ["checkpoint-12", "checkpoint-18", "checkpoint-6"]
    again = small_run(tmp_path / "killed", monkeypatch, resume=True)  # a finished run does nothing more
    assert again["best"] == whole["best"]


def test_milestones_are_the_improvements_and_each_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_run(tmp_path, monkeypatch)
    records = []
    for folder in (tmp_path / "milestones").iterdir():
        verify(folder)
        records.append(json.loads((folder / "milestone.json").read_text()))
    records.sort(key=lambda record: record["step"])
    assert records[0]["step"] == 6
    values = [record["nll"] for record in records]
    assert values == sorted(values, reverse=True)


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
        .replace("epochs: 3 ", "epochs: many ")
        .replace("hidden_size: 64", "hiden_size: 64")
        + "\nextra: {}\n"
    )
    with pytest.raises(ConfigError) as raised:
        load_preset(str(path))
    for fault in (
        "unknown section 'extra'",
        "unknown key tokenizer.vocabulary",
        "missing key tokenizer.vocab_size",
        "training.epochs = 'many' must be of type float",
        "unknown key model.hiden_size",
    ):
        assert fault in str(raised.value)
    with pytest.raises(ConfigError, match="choose one of demo"):
        load_preset("nonesuch")
