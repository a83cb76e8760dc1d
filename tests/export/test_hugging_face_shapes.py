"""Every batch and every length: exported forms answer as the model does on each row alone, or the gate refuses them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_hugging_face import LIMIT, TEXTS, write_folder, write_rows
from torch import Tensor, nn

from export import staged
from export.__main__ import main
from export.checkpoints import load_checkpoint
from export.hugging_face import HuggingFaceCheckpoint
from export.onnx_format import open_session
from export.outputs import REASONS, SOFTMAX
from export.padded import PaddedClassifier
from export.parity import Executor, onnx_executor, torchscript_executor, ways_of_asking
from export.repository import Names
from export.rows import RowFiles
from export.staged import StagedVersion
from export.torchscript import NamedSoftmaxAnswers, open_torchscript
from train.decision import Decision

FAMILIES = ("bert", "distilbert")


@pytest.fixture(scope="module", params=FAMILIES)
def version(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StagedVersion:
    """A family's classifier, written in both forms; its folder holds the checkpoint and labelled rows as well."""
    folder = tmp_path_factory.mktemp(request.param)
    rows = write_rows(write_folder(folder / "model", request.param), folder / "rows.csv")
    files = RowFiles(calibration=rows)
    checkpoint = load_checkpoint(folder / "model")
    decision = checkpoint.calibrate(files, 59).decide(max_error=0.2)
    made = StagedVersion(folder / "staged", Names("theirs"), checkpoint, decision, files)
    made.write()
    return made


@pytest.fixture(params=["onnx", "torchscript"])
def execute(request: pytest.FixtureRequest, version: StagedVersion) -> Executor:
    if request.param == "onnx":
        return onnx_executor(open_session(version.onnx, {}))
    return torchscript_executor(open_torchscript(version.torchscript), SOFTMAX)


def document(version: StagedVersion, tokens: int, seed: int) -> np.ndarray:
    """Ids of so many tokens: opening and closing ones around what stands in the texts, as far as there is room."""
    (ids,) = version.checkpoint.encoder.encode([" ".join(TEXTS[seed : seed + 20])])
    return np.concatenate([ids[: tokens - 1], ids[-1:]])


@pytest.mark.parametrize("tokens", [2, 3, 17, LIMIT])
@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_every_batch_of_every_length_answers_as_each_row_alone(
    rows: int, tokens: int, version: StagedVersion, execute: Executor
) -> None:
    # PT#170264, #150842, tf#18199; setfit#446, tf#8873, #1010: with zeros in the mask of all but the longest
    equal = [document(version, tokens, seed) for seed in range(rows)]
    uneven = [document(version, max(2, tokens - seed), seed) for seed in range(rows)]
    for documents in (equal, uneven):
        lengths = np.array([[len(row)] for row in documents], np.int32)
        answer = execute(np.concatenate(documents), lengths)
        right = version.checkpoint.answers(version.decision, documents)
        np.testing.assert_allclose(answer.probabilities, right.probabilities, atol=1e-4)
        np.testing.assert_array_equal(answer.label, right.label)
        np.testing.assert_array_equal(answer.review, right.review)


def test_the_gate_asks_with_such_batches_and_lengths(version: StagedVersion) -> None:  # PT#170264
    ways = ways_of_asking([document(version, 2 + i % (LIMIT - 1), i) for i in range(45)])
    sizes = {len(group) for way in ways.values() for group, _ in way}
    assert {1, 2, 3, 7} <= sizes


def test_a_row_without_any_token_leaves_a_normal_one_beside_it_as_it_is(
    version: StagedVersion, execute: Executor
) -> None:  # PT#159973
    normal, nothing = document(version, 9, 0), np.empty(0, np.int64)
    (alone,) = version.checkpoint.answers(version.decision, [normal]).probabilities
    for rows in ([normal, nothing], [nothing, normal], [nothing, normal, nothing]):
        answer = execute(np.concatenate(rows), np.array([[len(row)] for row in rows], np.int32))
        assert np.isfinite(answer.probabilities).all()
        assert np.isfinite(answer.total).all()
        for row, given in zip(rows, answer.probabilities, strict=True):
            if len(row):
                np.testing.assert_allclose(given, alone, atol=1e-4)


class Swapped(nn.Module):
    """Takes the mask for the ids and the ids for the mask."""

    def __init__(self, answer: nn.Module) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.answer(attention_mask, input_ids)


class Kept(nn.Module):
    """Padding inside what is traced: the length of the example's longest row is kept as a number."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(
        self, input_ids: Tensor, lengths: Tensor
    ) -> tuple[list[str], Tensor, Tensor, Tensor, list[str], Tensor]:
        label, probabilities, total, review, reason, prediction_set = self.whole(input_ids, lengths)
        labels: list[int] = label[:, 0].tolist()
        reasons: list[int] = reason[:, 0].tolist()
        return (
            [str(i) for i in labels],
            probabilities,
            total,
            review,
            ["uncertain" if i == 1 else "" for i in reasons],
            prediction_set,
        )


def trace_swapped(classifier: PaddedClassifier, labels: Sequence[str], path: Path) -> None:
    traced = torch.jit.trace(Swapped(classifier.answer), classifier.example(), check_trace=False)
    named = NamedSoftmaxAnswers(traced, classifier.limit, classifier.pad_id, list(labels), list(REASONS))
    torch.jit.script(named).save(path)


def trace_with_its_length(classifier: PaddedClassifier, labels: Sequence[str], path: Path) -> None:
    lengths = torch.tensor([[9], [5]], dtype=torch.int32)
    traced = torch.jit.trace(classifier, (torch.arange(14) % 3, lengths), check_trace=False)
    torch.jit.script(Kept(traced)).save(path)


@pytest.mark.parametrize(
    ("version", "broken"),
    [("bert", trace_swapped), ("distilbert", trace_swapped), ("bert", trace_with_its_length)],
    indirect=["version"],
)
def test_a_broken_trace_is_refused_and_nothing_enters_the_repository(
    broken: Callable[..., None], version: StagedVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # setfit#446, tf#8873, #1010
    def write_broken(classifier: PaddedClassifier, labels: Sequence[str], path: Path) -> None:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of each number that the trace keeps
            broken(classifier, labels, path)

    monkeypatch.setattr(staged, "write_torchscript", write_broken)
    assert refused_by(version, tmp_path, monkeypatch) >= {"parity_torchscript"}


@pytest.mark.parametrize("version", ["bert"], indirect=True)
def test_a_temperature_that_both_exports_agree_on_is_refused_by_the_model_itself(
    version: StagedVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = HuggingFaceCheckpoint.classifier

    def too_sure(checkpoint: HuggingFaceCheckpoint, decision: Decision) -> PaddedClassifier:
        assert decision.temperature is not None
        return right(checkpoint, replace(decision, temperature=decision.temperature * 1.05))

    monkeypatch.setattr(HuggingFaceCheckpoint, "classifier", too_sure)
    missed = refused_by(version, tmp_path, monkeypatch)
    assert missed >= {"parity_joined", "parity_torchscript", "parity_onnx", "nll_difference"}


def refused_by(version: StagedVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The checks that `export add` says do not hold; it must exit with 1 and leave the repository as it was."""
    monkeypatch.chdir(tmp_path)
    model, rows, models = version.checkpoint.path, version.files.calibration, tmp_path / "models"
    arguments = ["add", str(model), "--calibration", str(rows), "--name", "theirs", "--repository", str(models)]
    assert main([*arguments, "--gate-texts", "21"]) == 1
    assert not (models / "theirs").exists()
    report = json.loads((tmp_path / "build" / "add" / "report.json").read_text())
    assert report["version"] is None
    return {check["name"] for check in report["checks"] if check["holds"] is False}
