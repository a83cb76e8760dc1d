"""The model configurations: typed, generated, and what is committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export.errors import RepositoryError
from export.outputs import CLASSIFIER_OUTPUTS, TOKENIZER_OUTPUTS
from export.repository import (
    DEFAULT_LABELS,
    DEFAULT_NAME,
    GPU,
    GRAPH_LEVELS,
    Names,
    Pins,
    classifier_config,
    ensemble_config,
    ensemble_files,
    level_of,
    parameters,
    read_config,
    replace_text,
    step_files,
    torchscript_config,
    write_configurations,
)

ROOT = Path(__file__).parent.parent.parent
COMMITTED = ROOT / "model_repository"
GENERATED = {
    **step_files(Names(DEFAULT_NAME), len(DEFAULT_LABELS)),
    **ensemble_files(Names(DEFAULT_NAME), DEFAULT_LABELS, Pins(1)),
}


def committed(relative: Path) -> str:
    text = (COMMITTED / relative).read_text(encoding="utf-8")
    fresh = ensemble_files(Names(DEFAULT_NAME), DEFAULT_LABELS, Pins(1))
    if relative in fresh:
        # An export on this machine pins its own version here; everything else must be as generated.
        config = text_format.Parse(text, pb.ModelConfig())
        previous = parameters(config).get("previous_version")
        pins = Pins(config.ensemble_scheduling.step[0].model_version, int(previous) if previous else None)
        budgets = json.loads(parameters(config).get("budgets", "[]"))
        exported = ensemble_files(
            Names(DEFAULT_NAME), DEFAULT_LABELS, pins, budgets=budgets, torchscript_budgets=budgets
        )
        return fresh[relative] if text == exported[relative] else text
    return text


@pytest.mark.parametrize("relative", sorted(GENERATED), ids=str)
def test_the_committed_configuration_is_what_the_generator_writes(relative: Path) -> None:
    assert committed(relative) == GENERATED[relative], "run `python -m export.repository`"


def test_no_configuration_is_committed_that_the_generator_does_not_write() -> None:
    there = {path.relative_to(COMMITTED) for path in COMMITTED.glob("bet*/**/*.pbtxt")}
    assert there == set(GENERATED)


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_every_ensemble_output_is_given_by_a_step_with_the_same_type_and_shape(classes: int) -> None:
    names = Names("other")
    labels = tuple(f"class {i}" for i in range(classes))
    for torchscript in (False, True):
        classifier = torchscript_config(names, classes) if torchscript else classifier_config(names, classes)
        step = {output.name: output for output in classifier.output}
        config = ensemble_config(names, labels, Pins(3), torchscript=torchscript)
        assert [o.name for o in config.output] == [o.name for o in (*CLASSIFIER_OUTPUTS, *TOKENIZER_OUTPUTS)]
        for output in config.output:
            if output.name in step:
                assert (output.data_type, list(output.dims)) == (
                    step[output.name].data_type,
                    list(step[output.name].dims),
                )
        assert {s.model_version for s in config.ensemble_scheduling.step} == {3}
        assert {s.model_name for s in config.ensemble_scheduling.step} <= set(names.versioned)


def test_budgets_are_written_for_clients_where_there_are_any() -> None:
    names, labels = Names("other"), ("no", "yes")
    assert "budgets" not in ensemble_config(names, labels, Pins(1)).parameters
    files = ensemble_files(
        names, labels, Pins(1), budgets=[{"max_error": 0.05, "message": "größer"}], torchscript_budgets=[]
    )
    texts = {path.parent.name: text_format.Parse(text, pb.ModelConfig()) for path, text in files.items()}
    assert json.loads(parameters(texts["other"])["budgets"]) == [{"max_error": 0.05, "message": "größer"}]
    assert "budgets" not in parameters(texts["other_torchscript"])


def test_outputs_of_torchscript_stand_in_the_order_of_its_tuple() -> None:
    assert [o.name for o in torchscript_config(Names("bet"), 2).output] == [o.name for o in CLASSIFIER_OUTPUTS]


def test_torchscript_is_never_joined_across_requests_since_its_backend_would_mix_the_labels() -> None:
    for device in ("cpu", GPU):
        config = torchscript_config(Names("bet"), 2, device)
        assert not config.HasField("dynamic_batching")
        strings = [o for o in config.output if o.data_type == pb.TYPE_STRING]
        assert all(o.HasField("reshape") and not o.reshape.shape for o in strings)


def test_the_gpu_configuration_asks_for_a_gpu_and_keeps_the_tensors() -> None:
    for build in (classifier_config, torchscript_config):
        cpu, gpu = build(Names("bet"), 2), build(Names("bet"), 2, GPU)
        assert [group.kind for group in gpu.instance_group] == [pb.ModelInstanceGroup.KIND_GPU]
        assert (list(cpu.input), list(cpu.output), list(cpu.batch_input)) == (
            list(gpu.input),
            list(gpu.output),
            list(gpu.batch_input),
        )


def test_tensorrt_is_a_configuration_of_its_own_with_the_same_tensors(tmp_path: Path) -> None:
    write_configurations(tmp_path, Names("bet"), ("no", "yes"), Pins(1))
    cpu = read_config(tmp_path / "bet_classifier" / "config.pbtxt")
    plain = read_config(tmp_path / "bet_classifier" / "configs" / "gpu.pbtxt")
    tensorrt = read_config(tmp_path / "bet_classifier" / "configs" / "gpu_tensorrt.pbtxt")
    assert (list(cpu.input), list(cpu.output), list(cpu.batch_input)) == (
        list(tensorrt.input),
        list(tensorrt.output),
        list(tensorrt.batch_input),
    )
    (accelerator,) = tensorrt.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    # The names that onnxruntime_backend's src/onnxruntime.cc knows; it refuses any other.
    assert set(accelerator.parameters) == {
        "precision_mode", "max_workspace_size_bytes", "trt_engine_cache_enable", "trt_engine_cache_path",
    }  # fmt: skip
    tensorrt.ClearField("optimization")
    assert tensorrt == plain


@pytest.mark.parametrize("level", GRAPH_LEVELS)
def test_a_level_is_written_for_every_device_and_read_back(level: str) -> None:
    for device in ("cpu", GPU):
        assert level_of(classifier_config(Names("bet"), 2, device, level=level)) == level


def test_a_level_that_no_export_chooses_is_said() -> None:
    config = classifier_config(Names("bet"), 2)
    config.optimization.graph.level = 2
    with pytest.raises(RepositoryError, match="graph level 2; write -1, 1, 0"):
        level_of(config)


def test_labels_in_any_script_survive_the_file(tmp_path: Path) -> None:
    labels = ('say "no"', "mäßig", "極好\n")
    write_configurations(tmp_path, Names("three"), labels, Pins(1))
    config = read_config(tmp_path / "three" / "config.pbtxt")
    assert config == ensemble_config(Names("three"), labels, Pins(1))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.pbtxt"
    replace_text(path, "old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        replace_text(path, "new")
    assert path.read_text() == "old"
