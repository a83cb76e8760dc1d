"""`export add`: a checkpoint becomes a version, or is refused with the numbers that say why.

checkpoint → decision → graphs in a folder beside the repository → gate in process → that folder served by the real
Triton → gate on its answers → manifest → moved in whole and pinned. Nothing enters the repository before the last step.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import serve
from export import served, versions
from export.calibrations import summary
from export.checkpoints import gate_texts, load_checkpoint
from export.errors import GateError, RepositoryError
from export.onnx_format import open_session
from export.parity import Parity, onnx_executor, tolerances_of, torch_executor, torchscript_executor
from export.repository import DEFAULT_NAME, Names, classifier_config, parameters
from export.rows import RowFiles
from export.staged import StagedVersion
from export.texts import GateText
from export.torchscript import open_torchscript
from train.calibration import Calibration
from train.decision import Decision, rows_to_prove
from verdict import Report

GATE_TEXTS = 504  # 72 in each of seven length buckets
PADDED_GATE_TEXTS = 35  # 5 in each: joined, nearly every text is padded to the limit; 63 took more than four minutes
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AddOptions:
    """What `export add` was asked for."""

    checkpoint: Path
    name: str = DEFAULT_NAME
    repository: Path = Path("model_repository")
    files: RowFiles = field(default_factory=RowFiles)
    max_error: float = 0.05
    confidence: float = 0.95
    gate_texts: int | None = None  # by default as many as the kind of checkpoint allows in reasonable time
    max_tokens: int | None = None


@dataclass(frozen=True)
class Added:
    """What came of it: `version` is None where the gate did not hold."""

    report: Report
    version: int | None


@dataclass
class _Timer:
    """Seconds of each stage, for the report."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, message: str) -> Iterator[None]:
        _log.info("%s", message)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def add(options: AddOptions) -> Added:
    """Export a checkpoint into the repository.

    Raises:
        ExportError, TrainError: for what cannot be exported; a gate that does not hold is in the report instead.
    """
    names = Names(checked_name(options.name))
    timer = _Timer()
    with timer.stage("load", f"loading {options.checkpoint}"):
        least = rows_to_prove(options.max_error, options.confidence)
        checkpoint = load_checkpoint(options.checkpoint, options.max_tokens)
        versions.require_same_answers(options.repository, names, checkpoint.label_names, checkpoint.kind)
    with timer.stage("calibration", "deciding on calibration rows"):
        calibration = checkpoint.calibrate(options.files, least)
        decision = calibration.decide(options.max_error, options.confidence)
        if isinstance(calibration, Calibration) and isinstance(decision, Decision):
            decision = clear_of_rows(decision, calibration.true_probability)
    if decision.message:
        _log.warning("%s", decision.message)
    with timer.stage("texts", "choosing the texts of the gate"):
        count = options.gate_texts or (PADDED_GATE_TEXTS if checkpoint.kind.padded else GATE_TEXTS)
        texts = gate_texts(checkpoint, options.files, count)
    report = Report("add")
    report.details["decision"] = decision.as_dict()
    with versions.staging_folder(options.repository) as staging:
        staged = StagedVersion(staging, names, checkpoint, decision, options.files)
        with timer.stage("graphs", "writing ONNX and TorchScript"):
            staged.write()
        with timer.stage("parity", f"comparing both with PyTorch on {len(texts)} texts, alone and joined"):
            parity = in_process_parity(staged, texts)
        if _holds(parity):
            with timer.stage("served", "comparing the live Triton with PyTorch"):
                try:
                    served_parity(staged, parity, report, texts)
                except GateError as error:
                    _log.error("%s", error)
                    report.add("served_texts", 0, "texts", f"== {len(texts)}")
                    report.details["served_error"] = str(error)
        parity.add_to(report)
        for stage, seconds in timer.seconds.items():
            report.add(f"seconds_{stage}", seconds, "s")
        for said in summary(calibration, decision):
            report.add(*said)
        if not report.holds:
            return Added(report, None)
        number = staged.install(options.repository, report)
    return Added(report, number)


def in_process_parity(staged: StagedVersion, texts: Sequence[GateText]) -> Parity:
    """Compare joined PyTorch, TorchScript and ONNX Runtime with the model on each text alone."""
    checkpoint = staged.checkpoint
    labels, kind = checkpoint.label_names, checkpoint.kind
    # A padded model is large enough to gain from every core; how many there are changes no answer.
    options = {} if kind.padded else parameters(classifier_config(staged.names, len(labels)))
    with _threads(None if kind.padded else 1):
        reference = checkpoint.answers(staged.decision, [text.ids for text in texts])
        parity = Parity(reference, texts, tolerances_of(kind, len(labels)))
        parity.check("joined", torch_executor(staged.classifier, kind, labels))
        parity.check("torchscript", torchscript_executor(open_torchscript(staged.torchscript), kind))
        parity.check("onnx", onnx_executor(open_session(staged.onnx, options)))
    return parity


def served_parity(staged: StagedVersion, parity: Parity, report: Report, texts: Sequence[GateText]) -> None:
    """Serve the staged repository on free ports and compare both ensembles' answers.

    Raises:
        GateError: if the server does not come up or does not answer.
    """
    limit = staged.checkpoint.encoder.max_length
    try:
        with serve.start(staged.folder, timeout=180) as server:
            # Side by side: two models, each with counters of its own, and a text alone keeps one core busy.
            with ThreadPoolExecutor(2) as pool:
                asked = [
                    pool.submit(served.ask, server.grpc_url, staged.names, "grpc", texts, limit, torchscript=script)
                    for script in (False, True)
                ]
            onnx, scripted = (answers.result() for answers in asked)
    except serve.ServeError as error:
        raise GateError(f"the staged version could not be served: {error}") from error
    parity.add("served", onnx.answers)
    parity.add("served_torchscript", scripted.answers)
    report.add("served_texts", len(texts), "texts", f"== {len(texts)}")
    report.add("token_count_flips", onnx.miscounted + scripted.miscounted, "answers", "== 0")
    # On a CPU a padded model executes requests one by one; see the reasons in its configuration.
    joined = "<= 1" if staged.checkpoint.kind.padded else "> 1"
    report.add("mean_batch_size", onnx.joined_rows / max(onnx.joined_executions, 1), "rows", joined)


def clear_of_rows(decision: Decision, true_probability: Sequence[float]) -> Decision:
    """Move the conformal threshold half-way to the next row's score.

    It is the score of one row, which another runtime rounds to either side. No calibration row is decided differently.
    """
    above = [score for p in true_probability if (score := 1 - p) > decision.conformal_threshold]
    if decision.conformal_threshold >= 1 or not above:
        return decision
    return replace(decision, conformal_threshold=(decision.conformal_threshold + min(above)) / 2)


def checked_name(name: str) -> str:
    """A name that can be a folder, a model and part of a URL.

    Raises:
        RepositoryError: otherwise.
    """
    if not name or not all(c.isascii() and (c.isalnum() or c in "_-") for c in name):
        raise RepositoryError(f"--name {name!r} must consist of letters, digits, '_' and '-'")
    return name


def _holds(parity: Parity) -> bool:
    trial = Report("add")
    parity.add_to(trial)
    return trial.holds


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Threads for PyTorch; BET's many small operators only wait for each other with more than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
