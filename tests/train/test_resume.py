"""A run that was killed goes on where it stopped, from what is whole, and ends as if it had never been."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import set_seed

from train import trainer
from train.checkpoint import SEAL, newest_whole, seal, verify, written_whole
from train.errors import CheckpointError
from train.evidence import HeldOut
from train.fit import FitOptions, fit
from train.model import BetConfig, BetForSequenceClassification
from train.preset import load_preset
from train.training import Labelled, TrainingTexts, train_streams

WHOLE = ("trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
STEPS = 6  # of each of three epochs


class Killed(RuntimeError):
    pass


class Watched(trainer._Epochs):
    """Counts steps, and stands in for a kill: the process gets no chance to tidy up."""

    def __init__(self, texts: TrainingTexts, steps: list[int], kill_at: int | None) -> None:
        super().__init__(texts)
        self.steps, self.kill_at = steps, kill_at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)
        if state.global_step == self.kill_at:
            raise Killed


@dataclass
class Run:
    """What a run came to, and which steps it made for it."""

    best: dict[str, Any]
    weights: dict[str, torch.Tensor]
    steps: list[int]


def small_run(path: Path, *, resume: bool = False, kill_at: int | None = None, worsening: bool = False) -> Run:
    """Three epochs of six steps on noise; by one set of validation labels each is better, by its opposite worse."""
    random = np.random.default_rng(0)
    documents = [random.integers(2, 90, random.integers(5, 60)).astype(np.int64) for _ in range(48)]
    labels = np.array([int((d < 30).mean() > 0.3) for d in documents])
    config = BetConfig(
        vocab_size=90, embedding_size=8, hidden_size=8, num_attention_heads=2, intermediate_size=8, hash_slots=64
    )
    set_seed(0)
    model = BetForSequenceClassification(config)
    options = replace(load_preset("demo").training, epochs=3.0, batch_size=8, window=32)
    validation = Labelled(documents[:16], labels[:16] if worsening else 1 - labels[:16])
    tokens = sum(len(d) for d in documents)
    held_out = HeldOut(random.normal(0, 0.1, (tokens, 3, 1)).astype(np.float16), np.zeros((48, 1), np.float32))
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_Epochs", lambda texts: Watched(texts, steps, kill_at))
        best = train_streams(
            model, Labelled(documents, labels), held_out, validation, options, run=path, seed=0, resume=resume
        )
    return Run(best, {name: value.clone() for name, value in model.state_dict().items()}, steps)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    path = tmp_path_factory.mktemp("whole")
    return path, small_run(path)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed in its third epoch; tests resume a copy of it."""
    path = tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        small_run(path, kill_at=2 * STEPS + 2)
    assert rolling(path) == [STEPS, 2 * STEPS]
    return path


def rolling(run: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in (run / "rolling").iterdir())


def assert_equal(run: Run, other: Run) -> None:
    assert run.best == other.best
    for name, value in run.weights.items():
        assert torch.equal(value, other.weights[name]), name


def test_a_killed_and_resumed_run_ends_bit_equal_to_an_uninterrupted_one(
    uninterrupted: tuple[Path, Run], killed: Path, tmp_path: Path
) -> None:
    shutil.copytree(killed, tmp_path / "run")
    resumed = small_run(tmp_path / "run", resume=True)
    assert resumed.steps == list(range(2 * STEPS + 1, 3 * STEPS + 1))
    assert_equal(resumed, uninterrupted[1])
    assert rolling(tmp_path / "run") == [STEPS, 2 * STEPS, 3 * STEPS]


def test_a_finished_run_does_nothing_when_it_is_resumed(uninterrupted: tuple[Path, Run]) -> None:  # tf#10290
    path, whole = uninterrupted
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    again = small_run(path, resume=True)
    assert again.steps == []
    assert_equal(again, whole)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()} == before


def test_a_complete_fit_is_left_as_it_is_with_resume_and_without(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:  # tf#10290
    mark = json.loads((tiny_checkpoint / "provenance.json").read_text())
    before = {file: file.stat().st_mtime_ns for file in tiny_checkpoint.parent.rglob("*")}
    options = FitOptions(output=tiny_checkpoint.parent, preset=str(Path(__file__).parents[1] / "tiny.yaml"), limit=600)
    caplog.set_level(logging.INFO)
    for resume in (False, True):
        caplog.clear()
        assert fit(replace(options, resume=resume)) == tiny_checkpoint
        assert caplog.messages == [f"already trained with these options: {tiny_checkpoint}"]
    assert {file: file.stat().st_mtime_ns for file in tiny_checkpoint.parent.rglob("*")} == before
    assert mark["seconds"]["pretraining"] > 0
    assert mark["seconds"]["training"] > 0


def test_the_best_and_the_newest_are_kept_where_the_first_evaluation_was_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # tf#12915, #11748, #28544
    monkeypatch.setattr(trainer, "KEEP_ROLLING", 1)
    caplog.set_level(logging.INFO)
    whole = small_run(tmp_path / "whole", worsening=True)
    assert whole.best["step"] == STEPS
    with pytest.raises(Killed):
        small_run(tmp_path / "killed", worsening=True, kill_at=2 * STEPS + 2)
    assert rolling(tmp_path / "killed") == [2 * STEPS]
    assert [path.name for path in (tmp_path / "killed" / "milestones").iterdir()] == [f"step-{STEPS}"]
    caplog.clear()
    resumed = small_run(tmp_path / "killed", resume=True, worsening=True)
    assert f"checkpoint-{2 * STEPS}" in next(line for line in caplog.messages if "resuming from" in line)
    assert resumed.steps[-1] == whole.steps[-1]
    assert_equal(resumed, whole)
    assert rolling(tmp_path / "killed") == [3 * STEPS]


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def empty(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"")


def truncated(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def never_written(name: str) -> Callable[[Path], None]:
    """Not there when the folder was sealed: the hashes agree."""

    def harm(folder: Path) -> None:
        (folder / name).unlink()
        seal(folder)

    return harm


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (without("trainer_state.json"), "missing: trainer_state.json"),
        (never_written("trainer_state.json"), "lacks trainer_state.json"),
        (empty("model.safetensors"), "altered: model.safetensors"),
        (truncated("optimizer.pt"), "altered: optimizer.pt"),
        (without(SEAL), f"has no {SEAL}"),
        (truncated(SEAL), "is damaged"),
    ],
    ids=["no state", "state never written", "empty weights", "truncated optimizer", "no seal", "truncated seal"],
)
def test_a_damaged_checkpoint_is_passed_over_with_its_reason_for_the_last_good_one(  # tf#35782, #35525, #40790
    harm: Callable[[Path], None], reason: str, killed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(killed, tmp_path / "run")
    harm(tmp_path / "run" / "rolling" / f"checkpoint-{2 * STEPS}")
    caplog.set_level(logging.INFO)
    newest, reasons = newest_whole(tmp_path / "run" / "rolling")
    assert newest is not None
    assert newest.name == f"checkpoint-{STEPS}"
    assert reason in reasons[0]
    assert f"checkpoint-{2 * STEPS}" in reasons[0]


def test_a_run_goes_on_from_the_last_good_checkpoint_and_says_why_not_from_a_newer_one(
    uninterrupted: tuple[Path, Run], killed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # tf#35525
    shutil.copytree(killed, tmp_path / "run")
    empty("model.safetensors")(tmp_path / "run" / "rolling" / f"checkpoint-{2 * STEPS}")
    caplog.set_level(logging.INFO)
    resumed = small_run(tmp_path / "run", resume=True)
    assert "altered: model.safetensors" in caplog.text
    assert resumed.steps[0] == STEPS + 1
    assert_equal(resumed, uninterrupted[1])


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_over_silently(killed: Path, tmp_path: Path) -> None:
    # tf#40790
    shutil.copytree(killed, tmp_path / "run")
    empty("model.safetensors")(tmp_path / "run" / "rolling" / f"checkpoint-{STEPS}")
    truncated("optimizer.pt")(tmp_path / "run" / "rolling" / f"checkpoint-{2 * STEPS}")
    with pytest.raises(CheckpointError, match=r"no rolling checkpoint can be resumed: .*optimizer\.pt.*model\.safe"):
        small_run(tmp_path / "run", resume=True)


def test_what_is_no_checkpoint_of_a_run_is_not_taken_for_one(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        with written_whole(tmp_path / f"checkpoint-{step}") as staging:
            for name in WHOLE:
                (staging / name).write_text(str(step))
    shutil.copytree(tmp_path / "checkpoint-10", tmp_path / "checkpoint-11-of-yesterday")
    newest, reasons = newest_whole(tmp_path)
    assert newest is not None
    assert (newest.name, reasons) == ("checkpoint-10", [])
    assert newest_whole(tmp_path / "nothing here") == (None, [])


def test_milestones_are_the_improvements_and_each_is_whole(uninterrupted: tuple[Path, Run]) -> None:
    records = []
    for folder in (uninterrupted[0] / "milestones").iterdir():
        verify(folder)
        records.append(json.loads((folder / "milestone.json").read_text()))
    records.sort(key=lambda record: record["step"])
    assert [record["step"] for record in records] == [STEPS, 2 * STEPS, 3 * STEPS]
    values = [record["nll"] for record in records]
    assert values == sorted(values, reverse=True)
