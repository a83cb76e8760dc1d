"""Instances that share one copy of the weights: mapped by each, the same answers, nothing left, no answer lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_repository import write_model
from triton_http import infer

import serve
from serve.backends.shared_weights import FOLDER, SharedWeights
from serve.cache import servers_folder
from serve.leftovers import marked_processes

SIZE = 256
INSTANCES = 3
CONFIG = f"""
name: "product"
backend: "onnxruntime"
max_batch_size: 8
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ {SIZE} ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ {SIZE} ] }} ]
instance_group [ {{ count: {INSTANCES} kind: KIND_CPU }} ]
parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}
parameters {{ key: "share_session_between_instances" value {{ string_value: "1" }} }}
"""


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(SIZE, SIZE)).astype(np.float32)


def product(seed: int = 0) -> bytes:
    """`y = x W`, which ONNX Runtime lays out anew for the processor."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", SIZE])],
        [numpy_helper.from_array(weights(seed), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def ask(server: serve.Server, x: np.ndarray) -> np.ndarray:
    status, answer = infer(server.http_url, "product", x.tolist(), name="x", datatype="FP32")
    assert status == 200, answer
    assert isinstance(answer, dict)
    return np.array(answer["y"], np.float32)


def mapped(server: serve.Server) -> list[Path]:
    """The file of weights that each process of the server maps."""
    found = []
    for process in marked_processes(server.token):
        lines = Path(f"/proc/{process}/maps").read_text(encoding="utf-8").splitlines()
        found += sorted({Path(line.split()[-1]) for line in lines if line.endswith("/weights")})
    return found


def test_every_instance_maps_the_same_file_and_answers_as_one_with_its_own(tmp_path: Path) -> None:
    write_model(tmp_path, "product", CONFIG, {"model.onnx": product()})
    x = np.linspace(-1, 1, SIZE, dtype=np.float32)
    own = ort.InferenceSession(product()).run(None, {"x": x[None]})[0][0]
    with serve.start(tmp_path, models=["product"]) as server:
        files = mapped(server)
        assert len(files) == INSTANCES
        assert len(set(files)) == 1
        assert files[0].stat().st_size >= weights(0).nbytes
        assert files[0].is_relative_to(servers_folder() / f"{server.token}.weights")
        assert files[0].parent.stat().st_mode & 0o077 == 0
        for _ in range(2 * INSTANCES):
            assert (ask(server, x) == own).all()
        token = server.token
    assert not list(servers_folder().glob(f"{token}*"))


def test_what_is_served_is_told_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime keeps what it is about to send below the home folder, with an identity of the machine."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    write_model(tmp_path / "models", "product", CONFIG, {"model.onnx": product()})
    with serve.start(tmp_path / "models", models=["product"]) as server:
        ask(server, np.ones(SIZE, np.float32))
    assert not list(tmp_path.glob("home/**/*onnxruntime*"))


def test_a_folder_that_cannot_be_written_costs_memory_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, "product", CONFIG, {"model.onnx": product()})
    token = "feedfacecafe"
    monkeypatch.setattr("serve.server.secrets.token_hex", lambda _: token)
    (servers_folder() / f"{token}.weights").write_bytes(b"in the way")
    x = np.ones(SIZE, np.float32)
    with serve.start(tmp_path, models=["product"]) as server:
        assert mapped(server) == []
        assert "each instance has its own weights" in server.log_path.read_text(encoding="utf-8")
        assert ask(server, x) == pytest.approx(x @ weights(0), abs=1e-4)


def test_a_graph_that_was_exchanged_is_not_answered_by_the_weights_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "shared"))
    graph, x = tmp_path / "model.onnx", np.ones((1, SIZE), np.float32)
    for seed in (1, 2):
        (tmp_path / "new").write_bytes(product(seed))
        (tmp_path / "new").replace(graph)
        for _ in range(2):
            session = SharedWeights(graph, ort.SessionOptions, "").session(["CPUExecutionProvider"])
            assert session.run(None, {"x": x})[0] == pytest.approx(x @ weights(seed), abs=1e-4)


def test_open_sessions_outlive_the_files_and_a_new_one_writes_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "shared"))
    graph, x = tmp_path / "model.onnx", np.ones((1, SIZE), np.float32)
    graph.write_bytes(product())
    shared = SharedWeights(graph, ort.SessionOptions, "")
    first = shared.session(["CPUExecutionProvider"])
    shared.drop()
    assert not list((tmp_path / "shared").rglob("weights"))
    second = shared.session(["CPUExecutionProvider"])
    assert (first.run(None, {"x": x})[0] == second.run(None, {"x": x})[0]).all()
