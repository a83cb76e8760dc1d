"""A version in the making: a whole repository in a folder beside the real one, with one version in it.

It can be served as it stands, which the live part of the gate does, and its folders are then moved in by rename.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export import versions
from export.answers import Answers
from export.budgets import Budget, record
from export.candidates import Choice
from export.checkpoints import Exportable
from export.decisions import AnyDecision
from export.encoder import Ids
from export.graph import ServedClassifier
from export.manifest import MANIFEST, PARITY, PROBE_TEXT, describe, probe_record, tokenizer_record, write_manifest
from export.onnx_format import write_onnx
from export.padded import PaddedClassifier
from export.precision import FP32, Lowered
from export.repository import DEFAULT_NAME, Names, Pins, write_configurations
from export.rows import RowFiles
from export.torchscript import write_torchscript
from serve.cpu import cpu_flags
from train.fit import git_commit
from verdict import Report

TOKENIZER_STEP = Path(__file__).parent.parent / "model_repository" / f"{DEFAULT_NAME}_tokenizer" / "model.py"
_VERSION = 1  # the number in the staging folder; the repository gives the final one


@dataclass
class StagedVersion:
    """One version of one name, in a folder laid out as the model repository.

    `decision` is the one that is served, fitted on the logits of the served precision.
    """

    folder: Path
    names: Names
    checkpoint: Exportable
    decision: AnyDecision
    files: RowFiles = field(default_factory=RowFiles)
    lowered: Lowered | None = None
    budgets: Sequence[Budget] = ()
    level: str = "all"
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
        """What is exported in fp32."""
        return self.checkpoint.classifier(self.full_decision)

    @property
    def full_decision(self) -> AnyDecision:
        """The decision that fp32 answers with."""
        return self.decision if self.lowered is None else self.lowered.full_decision

    def truth(self, documents: Sequence[Ids]) -> Answers:
        """What the ONNX graph has to answer: the checkpoint's answers in the served precision, each text alone."""
        return (self.lowered.checkpoint if self.lowered else self.checkpoint).answers(self.decision, documents)

    def write(self) -> None:
        """Write configurations, graphs, the tokenizer step, and a manifest good enough to be served from."""
        labels = self.checkpoint.label_names
        write_configurations(self.folder, self.names, labels, Pins(_VERSION), self.checkpoint.kind, self.level)
        for model in self.names.versioned:
            (self.folder / model / str(_VERSION)).mkdir(parents=True)
        tokenizer = self.folder / self.names.tokenizer / str(_VERSION)
        (tokenizer / "tokenizer.json").write_bytes(self.checkpoint.tokenizer_file)
        shutil.copyfile(TOKENIZER_STEP, tokenizer / "model.py")
        notes = {"checkpoint": self.checkpoint.identity, "decision": json.dumps(self.decision.as_dict())}
        if self.lowered is None:
            write_onnx(self.classifier, labels, self.onnx, notes)
        else:
            low = self.lowered.checkpoint
            write_onnx(low.classifier(self.decision), labels, self.onnx, notes, low.lower)
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
            probe=probe_record(self.truth(self.checkpoint.encoder.encode([PROBE_TEXT])), self.decision),
            git_commit=git_commit(),
        )
        self.manifest |= {"precision": FP32.name, "graph_level": self.level, "cpu_flags": cpu_flags()}
        self.manifest["budgets"] = record(self.budgets)
        if self.lowered is not None:
            full = self.checkpoint.answers(self.full_decision, self.checkpoint.encoder.encode([PROBE_TEXT]))
            self.manifest |= {
                "precision": self.lowered.precision.name,
                "torchscript": {
                    "precision": FP32.name,
                    "calibration": self.full_decision.as_dict(),
                    "budgets": record(self.lowered.full_budgets),
                },
                "probe_torchscript": probe_record(full, self.full_decision),
            }
            self.manifest["training"] = {**self.manifest["training"], "served": self.lowered.precision.name}
        self._write_manifest()

    def take(self, choice: Choice) -> None:
        """Serve the chosen form of the graph, and record the numbers of all."""
        if choice.served.graph != self.onnx:
            shutil.copyfile(choice.served.graph, self.onnx)
        if choice.served.level != self.level:
            self.level = choice.served.level
            labels, kind = self.checkpoint.label_names, self.checkpoint.kind
            write_configurations(self.folder, self.names, labels, Pins(_VERSION), kind, self.level)
        self.manifest |= {"graph_level": self.level, "speed": choice.as_dict()}
        self._write_manifest()

    def _write_manifest(self) -> None:
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
