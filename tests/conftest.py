"""What the whole suite shares: a tiny classifier trained on real reviews, exported, and served by the real Triton.

Each is made once a session by the very functions that the commands call, so that every test downstream stands on the
main job itself.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: spinning threads on shared cores are far slower
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a hub

import pytest

TINY_PRESET = Path(__file__).parent / "tiny.yaml"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A production checkpoint for two classes, trained in seconds on a few hundred real reviews."""
    from train.fit import FitOptions, fit  # noqa: PLC0415  # torch only where a test needs it

    return fit(FitOptions(output=tmp_path_factory.mktemp("run"), preset=str(TINY_PRESET), limit=600))
