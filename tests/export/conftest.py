"""What the export tests share: a working folder of their own, and a graph that is broken as it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest

from export import staged
from export.padded import PaddedClassifier

Break = Callable[[onnx.ModelProto], None]


@pytest.fixture(autouse=True)
def reports_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands write their reports under the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def break_onnx(monkeypatch: pytest.MonkeyPatch) -> Callable[[Break], None]:
    """Have each ONNX graph of a Hugging Face classifier changed by an edit after it was written."""
    write = staged.write_onnx

    def with_edit(edit: Break) -> None:
        def write_broken(
            classifier: PaddedClassifier, labels: Sequence[str], path: Path, notes: dict[str, str]
        ) -> None:
            write(classifier, labels, path, notes)
            model = onnx.load(path)
            edit(model)
            onnx.save(model, path)

        monkeypatch.setattr(staged, "write_onnx", write_broken)

    return with_edit
