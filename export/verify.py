"""`export verify`: does the running server answer as the version that the repository pins?

The truth is computed here, from the checkpoint that the manifest names where it is still there and unchanged, else from
the exported graph in this process. Texts are the checkpoint's own corpus, a file, or the manifest's golden texts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http
from tritonclient.utils import InferenceServerException

from export import served, versions
from export.answers import Answers
from export.checkpoints import Exportable, gate_texts, load_checkpoint
from export.decisions import decision_of
from export.encoder import TextEncoder
from export.errors import ExportError, GateError, RepositoryError
from export.manifest import encoder_of, kind_of
from export.onnx_format import open_session
from export.parity import Parity, onnx_executor, run, tolerances_of
from export.precision import FP32
from export.repository import Names, level_of, parameters, read_config
from export.rows import RowFiles, texts_of
from export.served import Protocol
from export.texts import GateText, choose_texts
from serve.cpu import other_processor
from train.checkpoint import sha256_of
from train.errors import TrainError
from train.tokenizer import load_tokenizer
from verdict import Report

VERIFY_TEXTS, PADDED_VERIFY_TEXTS = 126, 42
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerifyOptions:
    """What `export verify` was asked for."""

    name: str
    repository: Path = Path("model_repository")
    url: str = "localhost:8001"
    protocol: Protocol = "grpc"
    files: RowFiles = field(default_factory=RowFiles)
    texts: int | None = None  # by default as many as the kind of checkpoint allows in reasonable time


def verify(options: VerifyOptions) -> Report:
    """Compare the live answers with the pinned version's.

    Raises:
        ExportError: if there is no such version, or the server does not answer.
    """
    names = Names(options.name)
    manifest = versions.pinned_manifest(options.repository, names)
    if manifest is None:
        raise RepositoryError(
            f"{options.repository} holds no version of {options.name!r}; `python -m export add CHECKPOINT` makes one"
        )
    number = int(manifest["version"])
    faults = versions.faults_of(options.repository, names, number)
    if faults:
        raise RepositoryError(f"version {number} is not whole: {'; '.join(faults)}; export it again")
    report = Report("verify")
    report.add("version_mismatch", float(_served_versions(options, names) != {number}), "", "== 0")
    if warning := other_processor(manifest):
        _log.warning("%s", warning)
    checkpoint = checkpoint_of(manifest)
    texts = _texts(options, names, number, manifest, checkpoint)
    precision = manifest.get("precision", FP32.name)
    if checkpoint is not None and precision == FP32.name:
        truth = f"PyTorch, from {checkpoint.path}"
        answers = checkpoint.answers(
            decision_of(checkpoint.kind, manifest["calibration"]), [text.ids for text in texts]
        )
        reference = answers.only(output.name for output in kind_of(manifest).outputs)
    else:
        why = "the checkpoint of the manifest is not there" if checkpoint is None else f"it is in {precision}"
        truth = f"the exported graph, by ONNX Runtime in this process ({why})"
        reference = graph_answers(options.repository, names, number, manifest, texts)
    _log.info("truth: %s", truth)
    padded = kind_of(manifest).padded
    limit = manifest["tokenizer"]["max_length"]
    live = served.ask(options.url, names, options.protocol, texts, limit, padded=padded)
    parity = Parity(reference, texts, tolerances_of(kind_of(manifest), len(manifest["labels"])), padded=padded)
    parity.add("served", live.answers)
    parity.add_to(report)
    report.add("token_count_flips", live.miscounted, "answers", "== 0")
    report.details.update(
        {"name": options.name, "version": number, "url": options.url, "protocol": options.protocol, "truth": truth}
    )
    return report


def _served_versions(options: VerifyOptions, names: Names) -> set[int]:
    """The versions that the running ensemble pins, as the server says."""
    try:
        if options.protocol == "grpc":
            with triton_grpc.InferenceServerClient(options.url) as client:
                config = client.get_model_config(names.ensemble, as_json=True)["config"]
        else:
            with triton_http.InferenceServerClient(options.url) as client:
                config = client.get_model_config(names.ensemble)
    except (InferenceServerException, OSError) as error:
        raise GateError(
            f"no answer about {names.ensemble!r} from {options.url} by {options.protocol}: {error}; start a server "
            "with `python -m serve`, and check --url and --protocol"
        ) from error
    return {int(step["model_version"]) for step in config["ensemble_scheduling"]["step"]}


def checkpoint_of(manifest: dict[str, Any]) -> Exportable | None:
    """The checkpoint that the version was made of, if it is still there and the same."""
    limit = manifest["tokenizer"]["max_length"] if kind_of(manifest).padded else None
    try:
        checkpoint = load_checkpoint(Path(manifest["checkpoint"]["path"]), limit)
    except (TrainError, ExportError) as error:
        _log.info("%s", error)
        return None
    return checkpoint if checkpoint.identity == manifest["checkpoint"]["sha256"] else None


def files_of(files: RowFiles, manifest: dict[str, Any]) -> RowFiles:
    """The files given, or else the rows that the version was calibrated on, if they are still there and the same."""
    data = manifest["data"] or {}
    if files.texts is not None or "calibration" not in data:
        return files
    path = Path(data["calibration"])
    if not path.is_file() or sha256_of(path) != data["sha256"]:
        return files
    return RowFiles(calibration=path, text_column=data["text_column"], label_column=data["label_column"])


def _texts(
    options: VerifyOptions, names: Names, number: int, manifest: dict[str, Any], checkpoint: Exportable | None
) -> list[GateText]:
    count = options.texts or (PADDED_VERIFY_TEXTS if kind_of(manifest).padded else VERIFY_TEXTS)
    if checkpoint is not None:
        try:
            return gate_texts(checkpoint, files_of(options.files, manifest), count)
        except GateError as error:
            _log.info("%s; the manifest's golden texts are compared", error)
    encoder = encoder_of(load_tokenizer(options.repository / names.tokenizer / str(number)), manifest["tokenizer"])
    if options.files.texts is not None:
        texts = texts_of(options.files.texts, options.files.text_column)
        return choose_texts(encoder, texts, None, count=count)
    return texts_as_they_stand(encoder, [case["text"] for case in manifest["tokenizer"]["golden"]])


def texts_as_they_stand(encoder: TextEncoder, texts: list[str]) -> list[GateText]:
    """Texts as they stand, not chosen by length."""
    rows = zip(texts, encoder.encode(texts), encoder.count(texts), strict=True)
    return [GateText(text, ids, tokens, "golden", None) for text, ids, tokens in rows]


def graph_answers(
    repository: Path, names: Names, number: int, manifest: dict[str, Any], texts: Sequence[GateText]
) -> Answers:
    """What a version's ONNX graph says in this process, each text alone, with the session options that are served."""
    config = read_config(repository / names.classifier / "config.pbtxt")
    graph = repository / names.classifier / str(number) / "model.onnx"
    session = open_session(graph, parameters(config), level_of(config))
    return run(onnx_executor(session), [text.ids for text in texts], [([i], False) for i in range(len(texts))])
