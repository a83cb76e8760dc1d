"""`export add`: a checkpoint becomes a version, or is refused with the numbers that say why.

checkpoint → decision → graphs in a folder beside the repository → gate in process → that folder served by the real
Triton → gate on its answers → manifest → moved in whole and pinned. Nothing enters the repository before the last step.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import serve
from export import served, versions
from export.budgets import Budget, budgets_of, record, table
from export.calibrations import AnyCalibration, summary
from export.candidates import Candidate, candidates, choose
from export.checkpoints import gate_texts, load_checkpoint
from export.decisions import AnyDecision
from export.errors import GateError, RepositoryError
from export.onnx_format import open_session, write_onnx
from export.parity import Parity, onnx_executor, tolerances_of, torch_executor, torchscript_executor
from export.precision import FP32, Lowered, Precision, compare_precisions, lowered, provider_of, require_possible
from export.repository import CPU, DEFAULT_NAME, Names, classifier_config, parameters
from export.rows import RowFiles
from export.staged import StagedVersion
from export.texts import GateText
from export.torchscript import open_torchscript
from serve.server import Device
from train.calibration import Calibration
from train.decision import Decision, rows_to_prove
from verdict import Report

GATE_TEXTS = 504  # 63 in each of eight length buckets
PADDED_GATE_TEXTS = 32  # 4 in each: three of the eight hold texts at the limit, which take a tenth of a second each
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
    precision: Precision = FP32
    device: Device = "cpu"


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
    started = time.perf_counter()
    with timer.stage("load", f"loading {options.checkpoint}"):
        least = rows_to_prove(options.max_error, options.confidence)
        checkpoint = load_checkpoint(options.checkpoint, options.max_tokens)
        versions.require_same_answers(options.repository, names, checkpoint.label_names, checkpoint.kind)
        require_possible(checkpoint, options.precision, options.device)
    with timer.stage("calibration", "deciding on calibration rows"):
        calibration = checkpoint.calibrate(options.files, least)
        decision = _decide(calibration, options)
    report = Report("add")
    low: Lowered | None = None
    if options.precision is not FP32:
        with timer.stage("precision", f"deciding on calibration rows in {options.precision.name}"):
            low = Lowered(
                options.precision,
                lowered(checkpoint, options.precision, options.device),
                decision,
                _budgets(calibration, options),
            )
            calibration = low.checkpoint.calibrate(options.files, least)
            decision = _decide(calibration, options)
            compare_precisions(checkpoint, low, decision, options.files, report)
        if not report.holds:
            _add_seconds(report, timer, started)
            return Added(report, None)
    if decision.message:
        _log.warning("%s", decision.message)
    with timer.stage("texts", "choosing the texts of the gate"):
        count = options.gate_texts or (PADDED_GATE_TEXTS if checkpoint.kind.padded else GATE_TEXTS)
        texts = gate_texts(checkpoint, options.files, count)
    budgets = _budgets(calibration, options)
    _say_what_is_decided(decision, budgets, options, report)
    with versions.staging_folder(options.repository) as staging:
        staged = StagedVersion(staging, names, checkpoint, decision, options.files, low, budgets)
        with timer.stage("graphs", "writing ONNX and TorchScript"):
            staged.write()
        with timer.stage("candidates", "timing forms of the graph against the plain one"):
            _choose(staged, texts, options, report)
        with timer.stage("parity", f"comparing both with PyTorch on {len(texts)} texts, alone and joined"):
            parity = in_process_parity(staged, texts, options.device)
        if _holds(report, parity):
            with timer.stage("served", "comparing the live Triton with PyTorch"):
                try:
                    served_parity(staged, parity, report, texts, options.device)
                except GateError as error:
                    _log.error("%s", error)
                    report.add("served_texts", 0, "texts", f"== {len(texts)}")
                    report.details["served_error"] = str(error)
        parity.add_to(report)
        _add_seconds(report, timer, started)
        for said in summary(calibration, decision):
            report.add(*said)
        if not report.holds:
            return Added(report, None)
        number = staged.install(options.repository, report)
    return Added(report, number)


def _add_seconds(report: Report, timer: _Timer, started: float) -> None:
    for stage, seconds in timer.seconds.items():
        report.add(f"seconds_{stage}", seconds, "s")
    report.add("seconds_total", time.perf_counter() - started, "s")


def _choose(staged: StagedVersion, texts: Sequence[GateText], options: AddOptions, report: Report) -> None:
    """Time the forms of the written graph, and take the fastest that answers as it should."""
    checkpoint = staged.checkpoint
    config = classifier_config(staged.names, len(checkpoint.label_names), options.device, kind=checkpoint.kind)
    with tempfile.TemporaryDirectory() as folder:
        forms = candidates(
            staged.onnx,
            Path(folder),
            checkpoint.record(options.files)["config"],
            device=options.device,
            level=versions.level_of_others(options.repository, staged.names),
            fuse=staged.lowered is None,
        )
        truth = staged.truth([text.ids for text in texts])
        baseline = None
        if staged.lowered is not None:
            baseline = Candidate(FP32.name, Path(folder) / "fp32.onnx", "all", provider_of(options.device))
            write_onnx(staged.classifier, checkpoint.label_names, baseline.graph, {})
        tolerances = tolerances_of(checkpoint.kind, len(checkpoint.label_names))
        choice = choose(forms, parameters(config), texts, truth, tolerances, baseline)
        staged.take(choice)
    report.details["speed"] = choice.as_dict()
    served = next(m for m in choice.measured if m.name == choice.served.name)
    report.add("seconds_over_plain_fp32", served.ratio, f"({served.name}; {served.low:.2f}-{served.high:.2f})")
    if served.ratio > 1 and baseline is not None:
        _log.warning("%s takes %.2f times as long as fp32 on this machine", options.precision.name, served.ratio)


def in_process_parity(staged: StagedVersion, texts: Sequence[GateText], device: str = CPU) -> Parity:
    """Compare joined PyTorch, TorchScript and ONNX Runtime with the model on each text alone."""
    checkpoint = staged.checkpoint
    labels, kind = checkpoint.label_names, checkpoint.kind
    # A padded model is large enough to gain from every core; how many there are changes no answer.
    options = {} if kind.padded else parameters(classifier_config(staged.names, len(labels)))
    with _threads(None if kind.padded else 1):
        documents = [text.ids for text in texts]
        reference = checkpoint.answers(staged.full_decision, documents)
        parity = Parity(reference, texts, tolerances_of(kind, len(labels)), padded=kind.padded)
        parity.check("joined", torch_executor(staged.classifier, kind, labels))
        parity.check("torchscript", torchscript_executor(open_torchscript(staged.torchscript), kind))
        session = open_session(staged.onnx, options, staged.level, provider_of(device))
        parity.check("onnx", onnx_executor(session), staged.truth(documents))
    return parity


def served_parity(
    staged: StagedVersion, parity: Parity, report: Report, texts: Sequence[GateText], device: Device = "cpu"
) -> None:
    """Serve the staged repository on free ports and compare both ensembles' answers.

    Raises:
        GateError: if the server does not come up or does not answer.
    """
    limit = staged.checkpoint.encoder.max_length
    try:
        with serve.start(staged.folder, timeout=180, device=device) as server:
            # Side by side: two models, each with counters of its own, and a text alone keeps one core busy.
            with ThreadPoolExecutor(2) as pool:
                asked = [
                    pool.submit(
                        served.ask,
                        *(server.grpc_url, staged.names, "grpc", texts, limit),
                        torchscript=script,
                        padded=staged.checkpoint.kind.padded,
                    )
                    for script in (False, True)
                ]
            onnx, scripted = (answers.result() for answers in asked)
    except serve.ServeError as error:
        raise GateError(f"the staged version could not be served: {error}") from error
    parity.add("served", onnx.answers, staged.truth([text.ids for text in texts]))
    parity.add("served_torchscript", scripted.answers)
    report.add("served_texts", len(texts), "texts", f"== {len(texts)}")
    report.add("token_count_flips", onnx.miscounted + scripted.miscounted, "answers", "== 0")
    # On a CPU a padded model executes requests one by one; see the reasons in its configuration.
    joined = "<= 1" if staged.checkpoint.kind.padded and device == CPU else "> 1"
    report.add("mean_batch_size", onnx.joined_rows / max(onnx.joined_executions, 1), "rows", joined)


def _decide(calibration: AnyCalibration, options: AddOptions) -> AnyDecision:
    decision = calibration.decide(options.max_error, options.confidence)
    if isinstance(calibration, Calibration) and isinstance(decision, Decision):
        return clear_of_rows(decision, calibration.true_probability)
    return decision


def _budgets(calibration: AnyCalibration, options: AddOptions) -> list[Budget]:
    """What the usual budgets come to; only an answer that is one label is right or wrong as a whole."""
    if not isinstance(calibration, Calibration):
        return []
    return budgets_of(calibration, options.max_error, options.confidence)


def _say_what_is_decided(decision: AnyDecision, budgets: Sequence[Budget], options: AddOptions, report: Report) -> None:
    if budgets:
        _log.info("error budgets, at %.0f %% confidence:\n%s", 100 * options.confidence, table(budgets))
    report.details |= {
        "decision": decision.as_dict(),
        "budgets": record(budgets),
        "precision": options.precision.name,
    }


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


def _holds(report: Report, parity: Parity) -> bool:
    """Whether all that was measured so far holds; else a server need not be started."""
    trial = Report("add", list(report.checks))
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
