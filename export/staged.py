"""A version in the making: a whole repository in a folder beside the real one, with one version in it.

It can be served as it stands, which the live part of the gate does, and its folders are then moved in by rename.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export import versions
from export.checkpoints import Exportable
from export.decisions import AnyDecision
from export.graph import ServedClassifier
from export.manifest import MANIFEST, PARITY, PROBE_TEXT, describe, probe_record, tokenizer_record, write_manifest
from export.onnx_format import write_onnx
from export.padded import PaddedClassifier
from export.repository import DEFAULT_NAME, Names, Pins, write_configurations
from export.rows import RowFiles
from export.torchscript import write_torchscript
from train.fit import git_commit
from verdict import Report

TOKENIZER_STEP = Path(__file__).parent.parent / "model_repository" / f"{DEFAULT_NAME}_tokenizer" / "model.py"
_VERSION = 1  # the number in the staging folder; the repository gives the final one


@dataclass
class StagedVersion:
    """One version of one name, in a folder laid out as the model repository."""

    folder: Path
    names: Names
    checkpoint: Exportable
    decision: AnyDecision
    files: RowFiles = field(default_factory=RowFiles)
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def onnx(self) -> Path:
        """The ONNX graph."""
        return self.folder / self.names.classifier / str(_VERSION) / "model.onnx"

    @property
    def torchscript(self) -> Path:
        """The TorchScript file."""
        return self.folder / self.names.torchscript_classifier / str(_VERSION) / "model.pt"

    @property
    def classifier(self) -> ServedClassifier | PaddedClassifier:
        """What is exported."""
        return self.checkpoint.classifier(self.decision)

    def write(self) -> None:
        """Write configurations, graphs, the tokenizer step, and a manifest good enough to be served from."""
        labels = self.checkpoint.label_names
        write_configurations(self.folder, self.names, labels, Pins(_VERSION), self.checkpoint.kind)
        for model in self.names.versioned:
            (self.folder / model / str(_VERSION)).mkdir(parents=True)
        tokenizer = self.folder / self.names.tokenizer / str(_VERSION)
        (tokenizer / "tokenizer.json").write_bytes(self.checkpoint.tokenizer_file)
        shutil.copyfile(TOKENIZER_STEP, tokenizer / "model.py")
        notes = {"checkpoint": self.checkpoint.identity, "decision": json.dumps(self.decision.as_dict())}
        write_onnx(self.classifier, labels, self.onnx, notes)
        write_torchscript(self.classifier, labels, self.torchscript)
        self.manifest = describe(
            name=self.names.ensemble,
            version=_VERSION,
            kind=self.checkpoint.kind,
            labels=labels,
            decision=self.decision,
            checkpoint={"path": str(self.checkpoint.path.resolve()), "sha256": self.checkpoint.identity},
            record=self.checkpoint.record(self.files),
            tokenizer=tokenizer_record(self.checkpoint.encoder, tokenizer / "tokenizer.json"),
            probe=self._probe(),
            git_commit=git_commit(),
        )
        for model in self.names.versioned:
            write_manifest(self.folder / model / str(_VERSION) / MANIFEST, self.manifest)

    def install(self, repository: Path, report: Report) -> int:
        """Seal the version with the gate's report and move it in."""
        report_file = self.folder / self.names.classifier / str(_VERSION) / PARITY
        report_file.write_text(json.dumps(report.as_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        self.manifest["parity"] = {check.name: check.value for check in report.checks if check.target is not None}
        if not (repository / self.names.tokenizer / "model.py").exists():
            (repository / self.names.tokenizer).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(TOKENIZER_STEP, repository / self.names.tokenizer / "model.py")
        return versions.install(repository, self.names, self.folder, _VERSION, self.manifest)

    def _probe(self) -> dict[str, Any]:
        answer = self.checkpoint.answers(self.decision, self.checkpoint.encoder.encode([PROBE_TEXT]))
        return probe_record(answer, self.decision)
