"""manifest.json: what a version is, where it came from, and the hash of each of its files.

The same bytes lie in each of the version's folders. Triton never reads it: the tokenizer step does, at start, and
refuses a tokenizer that is not the one named here; `serve` asks the probe; `export promote` compares the hashes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from export.errors import RepositoryError
from export.texts import HOSTILE
from train.checkpoint import Checkpoint, sha256_of
from train.decision import Decision
from train.tokenizer import UNK, encode
from verdict import versions

MANIFEST, PARITY = "manifest.json", "parity.json"

PROBE_TEXT = "An unexpected delight: the story is thin, but the acting is wonderful and I would watch it again."
_GOLDEN = (PROBE_TEXT, "Terrible.", "I don't know<br /><br />what to say about it ...", *HOSTILE)


def tokenizer_record(tokenizer: Tokenizer, file: Path, max_length: int, head_length: int) -> dict[str, Any]:
    """What the tokenizer step needs and checks: the file's hash, the cut, and golden ids."""
    golden = encode(tokenizer, list(_GOLDEN), max_length, head_length)
    return {
        "sha256": sha256_of(file),
        "max_length": max_length,
        "head_length": head_length,
        "no_token_id": tokenizer.token_to_id(UNK),
        "golden": [{"text": text, "ids": ids.tolist()} for text, ids in zip(_GOLDEN, golden, strict=True)],
    }


def describe(
    checkpoint: Checkpoint,
    decision: Decision,
    *,
    name: str,
    version: int,
    tokenizer: Mapping[str, Any],
    probe: Mapping[str, Any],
    git_commit: str | None,
) -> dict[str, Any]:
    """A manifest without the hashes of its files and its parity, which are known last."""
    provenance = checkpoint.provenance
    return {
        "name": name,
        "version": version,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit,
        "labels": list(checkpoint.label_names),
        "files": {},
        "config": json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8")),
        "tokenizer": dict(tokenizer),
        "checkpoint": {"path": str(checkpoint.path.resolve()), "sha256": sha256_of(checkpoint.path / "files.json")},
        "data": provenance.get("data"),
        "metrics": provenance.get("best"),
        "training": {key: provenance.get(key) for key in ("created", "git_commit", "seed", "versions")},
        "calibration": decision.as_dict(),
        "parity": {},
        "tools": versions(),
        "probe": dict(probe),
    }


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest as JSON."""
    path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a version's folder.

    Raises:
        RepositoryError: if it is missing or cannot be read.
    """
    path = folder / MANIFEST
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{path} cannot be read ({error}); this version is not whole: export it again") from error
    return content
