"""The model repository as Triton reads it: every `config.pbtxt`, generated from the protobuf message.

For a name such as `bet` there are five models: the tokenizer step, the classifier as ONNX and as TorchScript, and an
ensemble over each. Configurations are typed objects printed as text, with the reason for each number at the top of its
file. The committed files are what `python -m export.repository` writes for `bet`; a test holds them equal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export.errors import RepositoryError
from export.outputs import BET, TOKENIZER_OUTPUTS, Kind, Output

DEFAULT_NAME = "bet"
DEFAULT_LABELS = ("negative", "positive")
MAX_ROWS = 64
MAX_TEXT_BYTES = 65_536
MAX_QUEUE = 512
LONGEST_WAIT = 3_600_000_000
"""Microseconds, an hour: longer than any caller waits, and there because Triton lets a request's own timeout replace
only a longer default; beside the default of 0, which is none, it is ignored (seen on 2.51)."""
TENSORRT_CACHE = "/var/cache/tensorrt"
CPU, GPU = "cpu", "gpu"
CHALLENGER_OF = "challenger_of"  # parameter of an ensemble that is there for a comparison only: the one it challenges
GPU_TENSORRT = "gpu_tensorrt"
GRAPH_LEVELS = {"basic": -1, "extended": 1, "all": 0}
"""ONNX Runtime's optimisation levels, as `optimization { graph { level } }` means them to onnxruntime_backend."""

_BATCHING_REASONS = (
    f"max_batch_size {MAX_ROWS}: rows of one execution, and so of one request; the clients send at most 32 at once.",
    "Queue delay 0: on CPU a delay is paid once per step and cut throughput by 2-3 times; requests that wait for a",
    "free instance are joined anyway.",
    f"max_queue_size {MAX_QUEUE}: what two cores answer in about half a second, the p99 target; who would wait longer",
    "is told UNAVAILABLE at once. A request's own timeout is honoured, so that expired work is not executed; it",
    "counts only where it is shorter than the default, so the default is an hour rather than none.",
)
_ROW_BY_ROW_REASONS = (
    "preferred_batch_size 1: requests are executed one by one. Joined rows are padded to the longest, and on a CPU",
    "eight mixed ones took 2.4 times as long as one after the other. A batcher stands here for its queue alone:",
    *_BATCHING_REASONS[3:],
)
_CLASSIFIER_REASONS = (
    "input_ids is ragged: rows of different lengths are joined end to end instead of never, and the batcher adds each",
    "row's length. Rows of one request are filled up with -1 by the tokenizer step; the graph ignores them.",
    "version_policy all: a new version is loaded beside the old one, and the ensemble's pin decides which answers.",
)
_CPU_CLASSIFIER_REASONS = (
    "2 instances on 2 cores, each one thread: the packed graph has small operators that gain nothing from more, and",
    "two instances that join beat one by 15-20 % (requests/s, 2 cores). One thread has no pool that could spin.",
    "Warm-up: the first run of a shape allocates; a short row and a full batch of the longest are run before the",
    "first request.",
)
_PADDED_CPU_REASONS = (
    "2 instances on 2 cores, each one thread. One thread has no pool that could spin. Warm-up: one short row and one",
    "of the longest, since the first run of a shape allocates.",
)
_ROW_BY_ROW_CPU_REASONS = (
    "4 instances on 2 cores, each one thread: while an instance hands its answer over, another computes. Beside 2 they",
    "answered 13 % more requests of 16 tokens and 6 % more of 128. A full warm-up: one short row, one of the longest.",
    "share_session_between_instances: one copy of the weights for all. Instances with copies of their own spent 13 %",
    "more processor time on a row of 16 tokens, nothing at 128 (MiniLM, 22 M weights, 2 cores that share a cache). The",
    "embedded engine does it; a compiled backend without pull request 343 gives each its own, 90 MB here.",
)
_LEVEL_REASONS = (
    "No optimization.graph.level is level all; another is here where `export add` measured it to be faster, and",
    "compared at it. Every version of the name runs at it.",
)
_MEMORY_REASONS = (
    "enable_mem_pattern 0: ONNX Runtime otherwise keeps a plan of its memory for each shape that it meets, for ever,",
    "and texts bring new shapes without end: each instance grew by 11 kB a shape (a classifier of two layers), by",
    "nothing without, and was no slower.",
)
_TENSORRT_REASONS = (
    "For NVIDIA GPUs: tritonserver --model-config-name=gpu_tensorrt. `unrun`: it parses, and no GPU has executed it.",
    "Beside gpu.pbtxt and not in its place, since it is the riskier one. Widths and rows are computed from the data,",
    "so TensorRT takes the encoder alone and builds an engine anew whenever a shape leaves the ranges it has seen:",
    "the first requests of a shape wait for seconds to minutes. Warm up with the widest batches before any traffic.",
    "precision_mode FP32: an engine in half precision has other answers than those that were compared; export with",
    "--precision fp16 for that. The engines are kept, since they are bound to the GPU and to TensorRT's version:",
    "give every replica a volume of its own there, and empty it with every new image.",
    "One instance: a GPU executes one batch at a time. Queue delay 500 microseconds: a GPU gains from larger batches.",
)
_GPU_REASONS = (
    "For NVIDIA GPUs: tritonserver --model-config-name=gpu. `unrun`: it parses, and no GPU has executed it yet.",
    "One instance: a GPU executes one batch at a time.",
)


@dataclass(frozen=True)
class Names:
    """The five models of one served name."""

    ensemble: str

    @property
    def tokenizer(self) -> str:
        """The Python step that turns texts into ids."""
        return f"{self.ensemble}_tokenizer"

    @property
    def classifier(self) -> str:
        """The ONNX graph."""
        return f"{self.ensemble}_classifier"

    @property
    def torchscript_ensemble(self) -> str:
        """The ensemble over the TorchScript classifier; same inputs and outputs."""
        return f"{self.ensemble}_torchscript"

    @property
    def torchscript_classifier(self) -> str:
        """The TorchScript graph."""
        return f"{self.ensemble}_classifier_torchscript"

    @property
    def versioned(self) -> tuple[str, str, str]:
        """Models that hold exported versions, in the order in which a new one is moved in."""
        return (self.tokenizer, self.torchscript_classifier, self.classifier)

    @property
    def ensembles(self) -> tuple[str, str]:
        """Models that pin a version, in the order in which the pins are written: the main one last."""
        return (self.torchscript_ensemble, self.ensemble)

    def classifier_of(self, ensemble: str) -> str:
        """The classifier that one of the two ensembles stands over."""
        return self.torchscript_classifier if ensemble == self.torchscript_ensemble else self.classifier

    def challenger(self, ensemble: str) -> str:
        """The ensemble under which another version is asked beside `ensemble` before it may replace it."""
        return f"{ensemble}_challenger"


@dataclass(frozen=True)
class Pins:
    """What an ensemble's file says about versions."""

    version: int
    previous: int | None = None  # what `rollback` returns to


def tokenizer_config(names: Names) -> pb.ModelConfig:
    """The Python-backend step: text -> input_ids, tokens, truncated."""
    config = pb.ModelConfig(name=names.tokenizer, backend="python", max_batch_size=MAX_ROWS)
    config.input.add(name="text", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="input_ids", data_type=pb.TYPE_INT64, dims=[-1])
    _add_outputs(config, TOKENIZER_OUTPUTS, classes=0)
    config.version_policy.all.SetInParent()
    config.instance_group.add(count=2, kind=pb.ModelInstanceGroup.KIND_CPU)
    _batch_dynamically(config)
    config.parameters["max_text_bytes"].string_value = str(MAX_TEXT_BYTES)
    return config


def classifier_config(
    names: Names, classes: int, device: str = CPU, *, kind: Kind = BET, level: str = "all"
) -> pb.ModelConfig:
    """The ONNX classifier: ragged input_ids -> the answer.

    Args:
        device: CPU, GPU or GPU_TENSORRT.
        level: ONNX Runtime's optimisation level, at which the gate compared; all versions of the name run at it.
    """
    config = _classifier(names.classifier, "onnxruntime", classes, device, kind)
    _batch_dynamically(config, delay_microseconds=0 if device == CPU else 500)
    if kind.padded and device == CPU:
        config.dynamic_batching.preferred_batch_size.append(1)
        config.instance_group[0].count = 4
        config.parameters["share_session_between_instances"].string_value = "1"
    if device == CPU:
        for key in ("intra_op_thread_count", "inter_op_thread_count"):
            config.parameters[key].string_value = "1"
        config.parameters["enable_mem_pattern"].string_value = "0"
    if GRAPH_LEVELS[level]:
        config.optimization.graph.level = GRAPH_LEVELS[level]
    if device == GPU_TENSORRT:
        accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
        accelerator.parameters["precision_mode"] = "FP32"
        accelerator.parameters["max_workspace_size_bytes"] = str(1 << 30)
        accelerator.parameters["trt_engine_cache_enable"] = "1"
        accelerator.parameters["trt_engine_cache_path"] = TENSORRT_CACHE
    return config


def level_of(config: pb.ModelConfig) -> str:
    """The optimisation level that a configuration asks for.

    Raises:
        RepositoryError: if it is none that an export chooses.
    """
    number = config.optimization.graph.level
    for level, known in GRAPH_LEVELS.items():
        if known == number:
            return level
    raise RepositoryError(
        f"{config.name} has the graph level {number}; write {', '.join(map(str, GRAPH_LEVELS.values()))} for "
        f"{', '.join(GRAPH_LEVELS)}, and verify the answers"
    )


def torchscript_config(names: Names, classes: int, device: str = CPU, *, kind: Kind = BET) -> pb.ModelConfig:
    """The TorchScript classifier: as the ONNX one, but executed request by request."""
    config = _classifier(names.torchscript_classifier, "pytorch", classes, device, kind)
    del config.output[:]
    _add_outputs(config, _in_one_dimension(kind.outputs), classes)
    for output in config.output:
        if output.data_type == pb.TYPE_STRING:
            output.reshape.SetInParent()
    config.parameters["INFERENCE_MODE"].string_value = "true"
    if device == CPU:
        for key in ("INTRA_OP_THREAD_COUNT", "INTER_OP_THREAD_COUNT"):
            config.parameters[key].string_value = "1"
    return config


def ensemble_config(
    names: Names,
    labels: Sequence[str],
    pins: Pins,
    *,
    torchscript: bool = False,
    kind: Kind = BET,
    budgets: Sequence[Mapping[str, Any]] = (),
) -> pb.ModelConfig:
    """Tokenizer and classifier, each pinned to one version: text -> the answer.

    Args:
        budgets: the pinned version's, as its manifest holds them.
    """
    name = names.torchscript_ensemble if torchscript else names.ensemble
    classifier = names.torchscript_classifier if torchscript else names.classifier
    config = pb.ModelConfig(name=name, platform="ensemble", max_batch_size=MAX_ROWS)
    config.input.add(name="text", data_type=pb.TYPE_STRING, dims=[1])
    outputs = _in_one_dimension(kind.outputs) if torchscript else kind.outputs
    _add_outputs(config, (*outputs, *TOKENIZER_OUTPUTS), len(labels))
    step = config.ensemble_scheduling.step.add(model_name=names.tokenizer, model_version=pins.version)
    step.input_map["text"] = "text"
    for tensor in ("input_ids", *(output.name for output in TOKENIZER_OUTPUTS)):
        step.output_map[tensor] = tensor
    step = config.ensemble_scheduling.step.add(model_name=classifier, model_version=pins.version)
    step.input_map["input_ids"] = "input_ids"
    for output in kind.outputs:
        step.output_map[output.name] = output.name
    config.parameters["labels"].string_value = json.dumps(list(labels), ensure_ascii=False)
    config.parameters["max_text_bytes"].string_value = str(MAX_TEXT_BYTES)
    if budgets:
        config.parameters["budgets"].string_value = json.dumps(list(budgets), ensure_ascii=False)
    if pins.previous is not None:
        config.parameters["previous_version"].string_value = str(pins.previous)
    return config


def ensemble_files(
    names: Names,
    labels: Sequence[str],
    pins: Pins,
    kind: Kind = BET,
    *,
    budgets: Sequence[Mapping[str, Any]] = (),
    torchscript_budgets: Sequence[Mapping[str, Any]] = (),
) -> dict[Path, str]:
    """The two files that pin a version, by path within the repository."""
    reasons = (
        "Both steps are pinned to the same version; `python -m export promote` and `rollback` write the pins.",
        "labels: class names in the order of probabilities and prediction_set, for clients.",
        "budgets, where there are any: what the pinned version's calibration proves, for callers who need another one.",
    )
    return {
        Path(config.name, "config.pbtxt"): as_text(config, reasons)
        for config in (
            ensemble_config(names, labels, pins, torchscript=True, kind=kind, budgets=torchscript_budgets),
            ensemble_config(names, labels, pins, kind=kind, budgets=budgets),
        )
    }


def challenger_file(names: Names, ensemble: str, labels: Sequence[str], number: int, kind: Kind = BET) -> str:
    """The configuration of the ensemble that challenges `ensemble` with another version."""
    torchscript = ensemble == names.torchscript_ensemble
    config = ensemble_config(names, labels, Pins(number), torchscript=torchscript, kind=kind)
    config.name = names.challenger(ensemble)
    config.parameters[CHALLENGER_OF].string_value = ensemble
    return as_text(config, ("There while `python -m export promote` compares; not loaded at the server's start.",))


def step_files(names: Names, classes: int, kind: Kind = BET, level: str = "all") -> dict[Path, str]:
    """The configurations of the models that hold versions, by path within the repository."""
    torchscript_reasons = (
        "Executed request by request (a request's own rows together), without dynamic batching: Triton's PyTorch",
        "backend writes the first strings of the whole batch into every joined request's answer (SetStringBuffer",
        "starts at element 0 for each response), so joined requests would all be told the first one's label.",
        "`reshape { }` on the strings: that backend takes a list of strings as one-dimensional only, [rows].",
        "Outputs are matched by their order here.",
        "INFERENCE_MODE: no gradients are recorded.",
    )
    tokenizer_reasons = (
        "2 instances, so that a very long text does not hold up everybody else's; for throughput one and two measured",
        "alike (24 callers, 2 cores).",
        f"max_text_bytes {MAX_TEXT_BYTES}: a longer text is refused before it is tokenized; the longest review of IMDB",
        "has 14 kB, and the model reads 512 tokens.",
        *_CLASSIFIER_REASONS[2:],
        *_BATCHING_REASONS,
    )
    cpu_reasons = _ROW_BY_ROW_CPU_REASONS if kind.padded else _CPU_CLASSIFIER_REASONS
    joining_reasons = _ROW_BY_ROW_REASONS if kind.padded else _BATCHING_REASONS
    gpu = f"configs/{GPU}.pbtxt"
    return {
        Path(names.tokenizer, "config.pbtxt"): as_text(tokenizer_config(names), tokenizer_reasons),
        Path(names.classifier, "config.pbtxt"): as_text(
            classifier_config(names, classes, kind=kind, level=level),
            (*_CLASSIFIER_REASONS, *cpu_reasons, *_MEMORY_REASONS, *_LEVEL_REASONS, *joining_reasons),
        ),
        Path(names.classifier, gpu): as_text(
            classifier_config(names, classes, GPU, kind=kind, level=level),
            (
                *_GPU_REASONS,
                "Queue delay 500 microseconds: a GPU gains from larger batches, and half a millisecond is small beside",
                "its launch and copy times.",
                *_CLASSIFIER_REASONS,
                *_BATCHING_REASONS[3:],
            ),
        ),
        Path(names.classifier, f"configs/{GPU_TENSORRT}.pbtxt"): as_text(
            classifier_config(names, classes, GPU_TENSORRT, kind=kind, level=level),
            (*_TENSORRT_REASONS, *_CLASSIFIER_REASONS, *_BATCHING_REASONS[3:]),
        ),
        Path(names.torchscript_classifier, "config.pbtxt"): as_text(
            torchscript_config(names, classes, kind=kind),
            (
                *torchscript_reasons,
                *_CLASSIFIER_REASONS,
                *(_PADDED_CPU_REASONS if kind.padded else _CPU_CLASSIFIER_REASONS),
            ),
        ),
        Path(names.torchscript_classifier, gpu): as_text(
            torchscript_config(names, classes, GPU, kind=kind),
            (*_GPU_REASONS, *torchscript_reasons, *_CLASSIFIER_REASONS),
        ),
    }


def as_text(config: pb.ModelConfig, reasons: Iterable[str]) -> str:
    """Print a configuration with its reasons as comments above it."""
    comments = "".join(
        f"# {line}\n" for line in ("Written by `export`; do not edit a number without its reason.", *reasons)
    )
    return f"{comments}\n{text_format.MessageToString(config, as_utf8=True)}"


def read_config(path: Path) -> pb.ModelConfig:
    """Parse a `config.pbtxt`.

    Raises:
        OSError: if it cannot be read.
        text_format.ParseError: naming line and column.
    """
    return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())


def parameters(config: pb.ModelConfig) -> dict[str, str]:
    """The string parameters of a configuration."""
    return {key: value.string_value for key, value in config.parameters.items()}


def _classifier(name: str, backend: str, classes: int, device: str, kind: Kind) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, backend=backend, max_batch_size=MAX_ROWS)
    config.input.add(name="input_ids", data_type=pb.TYPE_INT64, dims=[-1], allow_ragged_batch=True)
    config.batch_input.add(
        kind=pb.BatchInput.BATCH_ITEM_SHAPE,
        data_type=pb.TYPE_INT32,
        target_name=["lengths"],
        source_input=["input_ids"],
    )
    _add_outputs(config, kind.outputs, classes)
    config.version_policy.all.SetInParent()
    processor = pb.ModelInstanceGroup.KIND_CPU if device == CPU else pb.ModelInstanceGroup.KIND_GPU
    config.instance_group.add(count=2 if device == CPU else 1, kind=processor)
    for label, rows, tokens in (("short", 1, 16), ("full", 1 if kind.padded else MAX_ROWS, 512)):
        warmup = config.model_warmup.add(name=label, batch_size=rows)
        warmup.inputs["input_ids"].data_type = pb.TYPE_INT64
        warmup.inputs["input_ids"].dims.append(tokens)
        warmup.inputs["input_ids"].zero_data = True
    return config


def _add_outputs(config: pb.ModelConfig, outputs: Iterable[Output], classes: int) -> None:
    for output in outputs:
        config.output.add(
            name=output.name,
            data_type=pb.DataType.Value(output.data_type),
            dims=[output.columns(classes)],
        )


def _in_one_dimension(outputs: Iterable[Output]) -> list[Output]:
    """The outputs as TorchScript gives them, whose strings are one of a row."""
    return [replace(output, width=1) if output.data_type == "TYPE_STRING" else output for output in outputs]


def _batch_dynamically(config: pb.ModelConfig, delay_microseconds: int = 0) -> None:
    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = delay_microseconds
    policy = batching.default_queue_policy
    policy.timeout_action = pb.ModelQueuePolicy.REJECT
    policy.allow_timeout_override = True
    policy.default_timeout_microseconds = LONGEST_WAIT
    policy.max_queue_size = MAX_QUEUE


def write_configurations(  # noqa: PLR0917  # what a name's files say, and nothing else
    repository: Path, names: Names, labels: Sequence[str], pins: Pins, kind: Kind = BET, level: str = "all"
) -> list[Path]:
    """Write every configuration of one name into `repository`, each by rename; returns their paths."""
    written = []
    for relative, text in {
        **step_files(names, len(labels), kind, level),
        **ensemble_files(names, labels, pins, kind),
    }.items():
        path = repository / relative
        replace_text(path, text)
        written.append(path)
    for ensemble in names.ensembles:
        (repository / ensemble / "1").mkdir(
            parents=True, exist_ok=True
        )  # Triton wants a version folder of ensembles too
    return written


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


if __name__ == "__main__":
    for path in write_configurations(Path("model_repository"), Names(DEFAULT_NAME), DEFAULT_LABELS, Pins(1)):
        print(path)
