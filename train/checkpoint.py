"""Checkpoints that are whole or not there: written beside, sealed with hashes, moved in by one rename.

Three kinds lie in a run's folder. `rolling/checkpoint-N` (newest three; what a run resumes from), `milestones/step-N`
(each improvement on validation; weights alone) and `production` (what export takes: weights, configuration, tokenizer,
calibration, provenance, card). `files.json` in each lists the SHA-256 of every other file, so that a truncated or
altered one is recognised and named.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from train.calibration import Calibration
from train.errors import CheckpointError
from train.model.bet import BetForSequenceClassification
from train.tokenizer import load_tokenizer, save_tokenizer

SEAL = "files.json"
PROVENANCE_FILE = "provenance.json"
# Without one of these the Trainer would go on silently from step 0, or with an optimizer that knows nothing.
_ROLLING_FILES = ("trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
_PRODUCTION_FILES = ("config.json", "model.safetensors", "tokenizer.json", "calibration.json", PROVENANCE_FILE)


@dataclass(frozen=True)
class Checkpoint:
    """A production checkpoint, loaded; `model` is in evaluation mode."""

    path: Path
    model: BetForSequenceClassification
    tokenizer: Tokenizer
    calibration: Calibration
    provenance: dict[str, Any]

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities."""
        return self.model.config.label_names


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path) -> None:
    """Write `files.json`: the SHA-256 of every file of the folder, flushed to disk."""
    files = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SEAL
    }
    with (folder / SEAL).open("w", encoding="utf-8") as file:
        json.dump(files, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def verify(folder: Path) -> dict[str, str]:
    """Check a sealed folder and return its hashes.

    Raises:
        CheckpointError: naming what is missing or altered.
    """
    path = folder / SEAL
    try:
        files: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {SEAL}, so it was not completed, or not written by this project"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); use another checkpoint") from error
    missing = [name for name in files if not (folder / name).is_file()]
    altered = [name for name in files if name not in missing and sha256_of(folder / name) != files[name]]
    if missing or altered:
        faults = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"altered: {', '.join(altered)}"] * bool(altered)
        raise CheckpointError(f"{folder} is not whole ({'; '.join(faults)}); use another checkpoint or train again")
    return files


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Give a folder to write into; seal it and move it to `folder` when the block ends without an error.

    An existing `folder` is replaced only then. What an interrupted writer left beside it is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / f".{folder.name}.unfinished"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        seal(staging)
        replaced = folder.parent / f".{folder.name}.replaced"
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        staging.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def newest_whole(rolling: Path) -> tuple[Path | None, list[str]]:
    """The newest rolling checkpoint that is whole, and why newer ones were passed over.

    Raises:
        CheckpointError: if there are checkpoints and none is whole; a run never starts over silently.
    """
    steps = {path: path.name.removeprefix("checkpoint-") for path in rolling.glob("checkpoint-*")}
    found = sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: -int(steps[path]))
    reasons: list[str] = []
    for path in found:
        try:
            lacking = [name for name in _ROLLING_FILES if name not in verify(path)]
        except CheckpointError as error:
            reasons.append(str(error))
        else:
            if not lacking:
                return path, reasons
            reasons.append(f"{path} lacks {', '.join(lacking)}")
    if reasons:
        raise CheckpointError(
            "no rolling checkpoint can be resumed: " + "; ".join(reasons) + f"; remove {rolling} to start at step 0"
        )
    return None, reasons


def save_production(
    folder: Path,
    *,
    model: BetForSequenceClassification,
    tokenizer: Tokenizer,
    calibration: Calibration,
    provenance: dict[str, Any],
    card: str,
) -> None:
    """Write the production checkpoint, whole or not at all."""
    with written_whole(folder) as staging:
        model.save_pretrained(staging)
        save_tokenizer(tokenizer, staging)
        calibration.save(staging)
        (staging / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
        (staging / "README.md").write_text(card, encoding="utf-8")


def load_production(folder: Path | str) -> Checkpoint:
    """Load a production checkpoint after checking every file of it.

    Raises:
        CheckpointError: if the folder does not exist, is not a production checkpoint of this project, or is not whole.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}; `python -m train fit` writes one")
    files = verify(folder)
    missing = [name for name in _PRODUCTION_FILES if name not in files]
    if missing:
        raise CheckpointError(
            f"{folder} is not a production checkpoint (no {', '.join(missing)}); give the run's `production` folder"
        )
    model = BetForSequenceClassification.from_pretrained(folder).train(False)
    provenance: dict[str, Any] = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    return Checkpoint(folder, model, load_tokenizer(folder), Calibration.load(folder), provenance)
