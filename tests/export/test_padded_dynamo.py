"""Padded classifiers by dynamo's exporter: ready for the day on which the tracing one, which ships, is removed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_hugging_face import FAMILIES, LABELS, LIMIT, without_limit, write_folder

from export import onnx_format
from export.checkpoints import load_checkpoint
from export.hugging_face import HuggingFaceCheckpoint
from export.onnx_format import open_session, write_onnx
from export.outputs import REASONS, SOFTMAX
from export.padded import PaddedClassifier
from export.padded_onnx import export_padded
from export.parity import PADDED_TOLERANCES
from train.decision import Decision

SERVED = [family for family in FAMILIES if family not in ("fnet", "data2vec-text")]
LENGTHS = (2, 3, 17, LIMIT)
EQUAL = [[length] * rows for rows in (1, 2, 3, 7) for length in LENGTHS]
MIXED = [[LIMIT, 2, 17, 3, 1, 9, 30], [5, 0, LIMIT + 23, 4], [LIMIT + 1]]  # empty and over-long ones among them


def classifier_of(family: str, folder: Path) -> PaddedClassifier:
    checkpoint = load_checkpoint(write_folder(folder, family), LIMIT if without_limit(family) else None)
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    decision = Decision(0.05, 0.95, 0.6, None, None, 0.95, 0.7, 100, 0.5, 0.01, 0.04, "", temperature=1.3)
    return checkpoint.classifier(decision)


def in_pytorch(classifier: PaddedClassifier, ids: torch.Tensor, lengths: torch.Tensor) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        label, probabilities, total, review, reason, prediction_set = (t.numpy() for t in classifier(ids, lengths))
    return {
        "label": np.array(LABELS, dtype=object)[label],
        "probabilities": probabilities,
        "total": total,
        "review": review,
        "reason": np.array(REASONS, dtype=object)[reason],
        "prediction_set": prediction_set,
    }


@pytest.mark.heavy
@pytest.mark.parametrize("family", SERVED)
def test_dynamo_carries_every_family_at_every_number_of_rows_and_tokens(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = classifier_of(family, tmp_path / "model")
    monkeypatch.setattr(onnx_format, "export_padded", partial(export_padded, dynamo=True))
    write_onnx(classifier, LABELS, tmp_path / "model.onnx", {})
    session = open_session(tmp_path / "model.onnx", {})
    names = [output.name for output in SOFTMAX.outputs]
    assert [output.name for output in session.get_outputs()] == names
    generator = torch.Generator().manual_seed(0)
    labels = set()
    for sizes in (*EQUAL, *MIXED):
        ids = torch.randint(5, 90, (sum(sizes),), generator=generator)
        lengths = torch.tensor(sizes, dtype=torch.int32)[:, None]
        wanted = in_pytorch(classifier, ids, lengths)
        feed = {"input_ids": ids.numpy(), "lengths": lengths.numpy()}
        given = dict(zip(names, session.run(names, feed), strict=True))
        for name, tolerance in (("probabilities", "probabilities"), ("total", "uncertainty")):
            assert given[name].shape == wanted[name].shape, (name, sizes)
            assert float(np.abs(given[name] - wanted[name]).max()) <= PADDED_TOLERANCES[tolerance], (name, sizes)
        for name in ("label", "reason", "review", "prediction_set"):
            np.testing.assert_array_equal(given[name], wanted[name], err_msg=f"{name} of {sizes}")
        labels.update(wanted["label"].ravel().tolist())
    assert len(labels) > 1  # a model that always says the same would prove little
