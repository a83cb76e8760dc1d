"""What the whole suite shares: a tiny classifier trained on real reviews, exported, and served by the real Triton.

Each is made once a session by the very functions that the commands call, so that every test downstream stands on the
main job itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: spinning threads on shared cores are far slower
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a hub
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # and none is told to anybody

import hypothesis
import pytest

if TYPE_CHECKING:
    from serve import Server

TINY_PRESET = Path(__file__).parent / "tiny.yaml"

hypothesis.settings.register_profile(
    "suite", deadline=None
)  # how fast an example is says more of the machine than of us
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A production checkpoint for two classes, trained in seconds on a few hundred real reviews."""
    from train.fit import FitOptions, fit  # noqa: PLC0415  # torch only where a test needs it

    return fit(FitOptions(output=tmp_path_factory.mktemp("run"), preset=str(TINY_PRESET), limit=600))


@pytest.fixture(scope="session")
def untraced_exporter() -> Iterator[None]:
    """torch's ONNX exporter out of coverage's sight: all Python, none of it ours, and twice as slow when traced."""
    import torch  # noqa: PLC0415

    export = torch.onnx.export

    def untraced(*arguments: Any, **options: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return export(*arguments, **options)
        finally:
            sys.settrace(tracer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", untraced)
        yield


@pytest.fixture(scope="session")
def repository(tiny_checkpoint: Path, untraced_exporter: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository that holds the tiny checkpoint as version 1 of `bet`; tests that change it take a copy."""
    from export.add import AddOptions, add  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("served") / "model_repository"
    added = add(AddOptions(tiny_checkpoint, repository=folder, gate_texts=70))
    assert added.version == 1, added.report.table()
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    """The real Triton on that repository."""
    from serve import start  # noqa: PLC0415

    with start(repository, timeout=120) as running:
        yield running
