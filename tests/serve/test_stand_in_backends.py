"""The stand-ins answer as the compiled backends do: joined by ragged batching, split by rows, faults kept apart."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_repository import CLASSIFIER, TinyClassifier, onnx_model, right_answer, write_model
from triton_http import call, counters, infer

import serve
from serve.backends.thread_budget import thread_budget

CLASSIFIERS = ["tiny_classifier", "tiny_classifier_torchscript"]


def ask(server: serve.Server, model: str, ids: list[int], **options: object) -> tuple[int, object]:
    return infer(server.http_url, model, ids, name="input_ids", datatype="INT64", **options)  # type: ignore[arg-type]


def together(calls: list[Callable[[], tuple[int, object]]]) -> list[tuple[int, object]]:
    """Make all calls at the same moment, as far as threads can."""
    barrier = threading.Barrier(len(calls))

    def one(function: Callable[[], tuple[int, object]]) -> tuple[int, object]:
        barrier.wait(timeout=20)
        return function()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def assert_right(answer: object, ids: list[int]) -> None:
    right = right_answer(ids)
    assert isinstance(answer, dict)
    assert answer["label"] == [right["label"]]
    assert answer["probabilities"] == pytest.approx(right["probabilities"], abs=1e-6)
    assert answer["total"] == [right["total"]]
    assert answer["even"] == [right["even"]]


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_sixteen_requests_of_sixteen_lengths_are_executed_together_and_answered_as_alone(
    joining: serve.Server, model: str
) -> None:
    random_ids = random.Random(7)
    rows = [[random_ids.randrange(9) for _ in range(length)] for length in range(1, 17)]
    requests, executions = counters(joining.http_url, model)
    answers = together([lambda row=row: ask(joining, model, row) for row in rows])
    for (status, answer), row in zip(answers, rows, strict=True):
        assert status == 200, answer
        assert_right(answer, row)
    requests_after, executions_after = counters(joining.http_url, model)
    assert requests_after - requests == 16
    assert executions_after - executions < 8


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_requests_of_several_rows_join_with_single_ones(joining: serve.Server, model: str) -> None:
    three_rows = [4, 5, 6, 1, 1, -1, 9, -1, -1]
    several, single = together(
        [
            lambda: ask(joining, model, three_rows, shape=[3, 3]),
            lambda: ask(joining, model, [3, 8, 8, 8, 8]),
        ]
    )
    assert several[0] == 200, several
    assert several[1]["total"] == [15, 2, 9]  # type: ignore[index]
    assert_right(single[1], [3, 8, 8, 8, 8])


@pytest.mark.parametrize("model", [*CLASSIFIERS, "tiny", "tiny_torchscript"])
@pytest.mark.parametrize("outputs", [["label"], ["even", "total"], ["probabilities", "label", "even"]])
def test_a_request_gets_the_outputs_that_it_asks_for_and_no_others(
    joining: serve.Server, model: str, outputs: list[str]
) -> None:
    if model in CLASSIFIERS:
        status, answer = ask(joining, model, [2, 3], outputs=outputs)
    else:
        status, answer = infer(joining.http_url, model, ["aa bbb"], outputs=outputs)
    assert status == 200
    assert set(answer) == set(outputs)  # type: ignore[call-overload]


def test_joined_requests_may_ask_for_different_outputs(joining: serve.Server) -> None:
    label, total = together(
        [
            lambda: ask(joining, "tiny_classifier", [1, 2], outputs=["label"]),
            lambda: ask(joining, "tiny_classifier", [40, 2, 1], outputs=["total"]),
        ]
    )
    assert label == (200, {"label": ["short"]})
    assert total == (200, {"total": [43]})


@pytest.mark.parametrize("model", CLASSIFIERS)
@pytest.mark.parametrize("shape", [[0, 1], [1, 0]])
def test_a_shape_without_elements_is_refused_and_its_neighbour_answered(
    joining: serve.Server, model: str, shape: list[int]
) -> None:
    pids = stubs(joining)
    empty, full = together(
        [
            lambda: ask(joining, model, [], shape=shape),
            lambda: ask(joining, model, [5, 5, 5]),
        ]
    )
    assert empty[0] == 400, empty
    assert_right(full[1], [5, 5, 5])
    assert stubs(joining) == pids


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        ([{"name": "ids", "shape": [1, 1], "datatype": "INT64", "data": [1]}], "ids"),
        ([{"name": "input_ids", "shape": [1, 1], "datatype": "INT32", "data": [1]}], "INT64"),
        ([{"name": "input_ids", "shape": [1, 1, 1], "datatype": "INT64", "data": [1]}], "shape"),
        ([], "input"),
    ],
    ids=["wrong name", "wrong type", "wrong shape", "no input"],
)
def test_wrong_inputs_are_the_callers_fault_and_harm_nothing(
    joining: serve.Server, inputs: list[dict[str, object]], word: str
) -> None:
    pids = stubs(joining)
    for model in CLASSIFIERS:
        status, content = call(joining.http_url, "POST", f"/v2/models/{model}/infer", {"inputs": inputs})
        assert 400 <= status < 500, content
        assert word in content["error"]
        assert "/" not in content["error"].replace("[request id: <id_unknown>]", "")
    assert stubs(joining) == pids


def test_an_unknown_output_is_refused(joining: serve.Server) -> None:
    answers = [ask(joining, model, [1], outputs=["verdict"]) for model in CLASSIFIERS]
    answers.append(infer(joining.http_url, "tiny", ["a"], outputs=["verdict"]))
    for status, error in answers:
        assert status == 400
        assert "verdict" in str(error)


def test_an_execution_that_fails_is_one_sentence_without_paths_and_spares_its_neighbours(tmp_path: Path) -> None:
    """The ids are looked up in a table of ten: an id beyond it fails inside ONNX Runtime."""
    import numpy as np  # noqa: PLC0415
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["value"])],
        "table",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows", 1])],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["rows", 1])],
        [numpy_helper.from_array(np.arange(10, dtype=np.float32), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    config = """
        name: "table" backend: "onnxruntime" max_batch_size: 8
        input [ { name: "ids" data_type: TYPE_INT64 dims: [ 1 ] } ]
        output [ { name: "value" data_type: TYPE_FP32 dims: [ 1 ] } ]
        instance_group [ { count: 1 kind: KIND_CPU } ]
        dynamic_batching { max_queue_delay_microseconds: 300000 }
    """
    write_model(tmp_path, "table", config, {"model.onnx": model.SerializeToString()})
    with serve.start(tmp_path, models=["table"]) as server:
        good, bad = together(
            [
                lambda: infer(server.http_url, "table", [3], name="ids", datatype="INT64"),
                lambda: infer(server.http_url, "table", [99], name="ids", datatype="INT64"),
            ]
        )
        assert good == (200, {"value": [3]})
        assert bad[0] == 500
        assert str(bad[1]).startswith("model 'table' could not be executed on this request (")
        assert "/" not in str(bad[1])
        assert "indices element out of data bounds" in server.log_path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("TYPE_FP32 dims: [ 2 ]", "TYPE_FP64 dims: [ 2 ]"), "the graph has"),
        (('name: "total"', 'name: "sum"'), "the graph has"),
        (("BATCH_ITEM_SHAPE", "BATCH_ELEMENT_COUNT"), "BATCH_ITEM_SHAPE"),
        (('default_model_filename: "model.onnx"', 'default_model_filename: "other.onnx"'), "other.onnx"),
    ],
    ids=["type", "name", "batch input", "file"],
)
def test_a_configuration_that_does_not_fit_the_graph_is_not_loaded(
    tmp_path: Path, change: tuple[str, str], reason: str
) -> None:
    config = CLASSIFIER.format(name="tiny_classifier", backend="onnxruntime", reshape="", delay=0)
    config += 'default_model_filename: "model.onnx"\n'
    assert change[0] in config
    write_model(tmp_path, "tiny_classifier", config.replace(*change), {"model.onnx": onnx_model().SerializeToString()})
    with pytest.raises(serve.StartupError, match="tiny_classifier") as caught:
        serve.start(tmp_path, models=["tiny_classifier"])
    assert reason in str(caught.value)


def test_strings_that_the_compiled_pytorch_backend_refuses_are_refused_here_too(tmp_path: Path) -> None:
    import torch  # noqa: PLC0415

    config = CLASSIFIER.format(name="script", backend="pytorch", reshape="", delay=0)
    version = write_model(tmp_path, "script", config, {})
    torch.jit.script(TinyClassifier()).save(str(version / "model.pt"))
    with pytest.raises(serve.StartupError, match="reshape"):
        serve.start(tmp_path, models=["script"])


@pytest.mark.parametrize(
    ("files", "budget"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({}, None),
    ],
)
def test_threads_are_budgeted_by_affinity_and_quota_not_by_the_hosts_size(
    tmp_path: Path, files: dict[str, str], budget: int | None
) -> None:
    import os  # noqa: PLC0415

    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="ascii")
    affinity = os.sched_getaffinity(0)
    assert thread_budget(tmp_path) == (budget or len(affinity))
    os.sched_setaffinity(0, {min(affinity)})
    try:
        assert thread_budget(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, affinity)


def stubs(server: serve.Server) -> list[int]:
    from serve.leftovers import marked_processes  # noqa: PLC0415

    return sorted(marked_processes(server.token))
