"""manifest.json: what a version is, where it came from, and the hash of each of its files.

The same bytes lie in each of the version's folders. Triton never reads it: the tokenizer step does, at start, and
refuses a tokenizer that is not the one named here; `serve` asks the probe; `export promote` compares the hashes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from export.answers import VALUE_TOLERANCE, Answers
from export.decisions import AnyDecision, RegressionDecision
from export.encoder import TextEncoder
from export.errors import RepositoryError
from export.outputs import BET, KINDS, Kind
from export.texts import HOSTILE
from train.checkpoint import sha256_of
from verdict import versions

MANIFEST, PARITY = "manifest.json", "parity.json"

PROBE_TEXT = "An unexpected delight: the story is thin, but the acting is wonderful and I would watch it again."
PROBED = ("label", "probabilities", "total", "value")
_NAMED_LATER = ("evidence_ngrams", "evidence_nats")
_GOLDEN = (PROBE_TEXT, "Terrible.", "I don't know<br /><br />what to say about it ...", *HOSTILE)


def tokenizer_record(encoder: TextEncoder, file: Path) -> dict[str, Any]:
    """What the tokenizer step needs and checks: the file's hash, the cut, and golden ids."""
    golden = encoder.encode(_GOLDEN)
    return {
        "sha256": sha256_of(file),
        "max_length": encoder.max_length,
        "head_length": encoder.head_length,
        "special_tokens": encoder.special_tokens,
        "no_token_id": encoder.no_token_id,
        "golden": [{"text": text, "ids": ids.tolist()} for text, ids in zip(_GOLDEN, golden, strict=True)],
    }


def encoder_of(tokenizer: Tokenizer, record: Mapping[str, Any]) -> TextEncoder:
    """The encoder that a version's manifest describes."""
    return TextEncoder(
        tokenizer,
        record["max_length"],
        record["head_length"],
        record.get("special_tokens", False),
        record["no_token_id"],
    )


def probe_record(answers: Answers, decision: AnyDecision) -> dict[str, Any]:
    """The answer to `PROBE_TEXT` as `serve` asks for it; empty where a number in it is none, which JSON cannot hold.

    A value's tolerance is its own, in the unit of the value: that of the gate, and what float32 resolves at its size.
    """
    given = answers.given()
    said: dict[str, Any] = {name: given[name][0].tolist() for name in PROBED if name in given}
    if not all(np.isfinite(given[name]).all() for name in said if name != "label"):
        return {}
    if isinstance(decision, RegressionDecision):
        said["tolerance"] = VALUE_TOLERANCE * decision.scale + 4 * float(np.finfo(np.float32).eps) * abs(said["value"])
    return {"text": PROBE_TEXT, **said}


def describe(
    *,
    name: str,
    version: int,
    kind: Kind,
    labels: Sequence[str],
    decision: AnyDecision,
    checkpoint: Mapping[str, Any],
    record: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    probe: Mapping[str, Any],
    git_commit: str | None,
) -> dict[str, Any]:
    """A manifest without the hashes of its files and its parity, which are known last.

    Args:
        checkpoint: its path and hash.
        record: `config`, `data`, `metrics` and `training`, as far as the checkpoint knows them.
    """
    return {
        "name": name,
        "version": version,
        "kind": kind.name,
        "outputs": [output.name for output in kind.outputs],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit,
        "labels": list(labels),
        "files": {},
        "tokenizer": dict(tokenizer),
        "checkpoint": dict(checkpoint),
        **record,
        "calibration": decision.as_dict(),
        "parity": {},
        "tools": versions(),
        "probe": dict(probe),
    }


def kind_of(manifest: Mapping[str, Any]) -> Kind:
    """The kind of classifier that a version is, with the outputs that it had when it was exported."""
    kind = KINDS[manifest.get("kind", BET.name)]
    # What was exported before manifests recorded them named no n-grams.
    given = manifest.get("outputs", [output.name for output in kind.outputs if output.name not in _NAMED_LATER])
    return replace(kind, outputs=tuple(output for output in kind.outputs if output.name in given))


def served_budgets(manifest: Mapping[str, Any], *, torchscript: bool) -> list[dict[str, Any]]:
    """The budgets (`export.budgets`) of the answers of one of the two ensembles, as far as the version has any.

    Beside a graph of a lower precision TorchScript answers in fp32, and what was proven of the one says nothing of the
    other.
    """
    of = manifest.get("torchscript", manifest) if torchscript else manifest
    budgets: list[dict[str, Any]] = of.get("budgets", [])
    return budgets


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
