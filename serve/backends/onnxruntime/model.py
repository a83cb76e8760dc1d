"""Stand-in for Triton's compiled ONNX Runtime backend, as a Python-based backend: it executes the same `model.onnx`.

Triton runs this file for each model that says `backend: "onnxruntime"` and lets it find the graph beside the model's
configuration. Options are named as in github.com/triton-inference-server/onnxruntime_backend, README "Model Config
Options" and src/onnxruntime.cc; beyond them, every parameter that begins with `session.` becomes a session
configuration entry (the compiled backend knows one of those; with one intra-op thread the others change nothing).
`share_session_between_instances` is named as in its pull request 343; a build without it ignores the parameter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

if TYPE_CHECKING:
    import triton_python_backend_utils as pb_utils

    from serve.backends.ragged_batch import Arrays, ModelConfig, answer, read_config
    from serve.backends.shared_weights import SharedWeights
    from serve.backends.stops import in_time
    from serve.backends.thread_budget import thread_budget
else:  # in the backend directory these lie beside Triton's own module for stubs
    import triton_python_backend_utils as pb_utils
    from ragged_batch import answer, read_config
    from shared_weights import SharedWeights
    from stops import in_time
    from thread_budget import thread_budget

LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


class TritonPythonModel:
    """One instance: one session, over weights of its own or over those that all instances share."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph and hold it against the configuration.

        Raises:
            ValueError: if names or types differ, or the device is not there.
        """
        self.config = read_config(args)
        path = Path(args["model_repository"]) / args["model_version"] / (self.config.filename or "model.onnx")
        providers: list[Any] = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU":
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                raise ValueError(f"model {self.config.name!r} wants a GPU; this onnxruntime has no CUDA provider")
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]}))
        self.shared: SharedWeights | None = None
        self.session = self._session(path, providers)
        _require_same(
            "inputs", {i.name: i.type for i in self.session.get_inputs()}, self.config.model_inputs, exact=True
        )
        outputs = {output.name: output.data_type for output in self.config.outputs}
        _require_same("outputs", {o.name: o.type for o in self.session.get_outputs()}, outputs, exact=False)

    def finalize(self) -> None:
        """The model is unloaded, all its instances at once."""
        if self.shared is not None:
            self.shared.drop()

    @in_time
    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer one batch of requests."""
        return answer(requests, self.config, self.run)

    def run(self, inputs: Arrays, names: list[str]) -> Arrays:
        """One execution of the graph, for the wanted outputs only."""
        outputs = self.session.run(names, inputs)
        return {
            name: _as_bytes(output) if output.dtype == np.object_ else output
            for name, output in zip(names, outputs, strict=True)
        }

    def _session(self, path: Path, providers: list[Any]) -> ort.InferenceSession:
        asked = self.config.parameters.get("share_session_between_instances", "0") in ("1", "true")
        if asked and providers == ["CPUExecutionProvider"]:
            shared = SharedWeights(path, lambda: session_options(self.config), str(self.config))
            try:
                session = shared.session(providers)
            except Exception as error:
                # Memory and speed are lost, no answer is: a disk without room must not keep a model from being served.
                shared.drop()
                pb_utils.Logger.log_warn(f"model {self.config.name!r}: each instance has its own weights ({error})")
            else:
                self.shared = shared
                return session
        return ort.InferenceSession(str(path), session_options(self.config), providers=providers)


def session_options(config: ModelConfig) -> ort.SessionOptions:
    """The session options that the configuration asks for."""
    parameters = config.parameters
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", "0")) or thread_budget()
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", "0")) or thread_budget()
    if parameters.get("execution_mode", "0") == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.graph_optimization_level = LEVELS[config.graph_level]
    options.enable_cpu_mem_arena = parameters.get("enable_mem_arena", "1") in ("1", "true")
    options.enable_mem_pattern = parameters.get("enable_mem_pattern", "1") in ("1", "true")
    for key, value in parameters.items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    return options


def _require_same(what: str, graph: dict[str, str], configured: dict[str, str], *, exact: bool) -> None:
    found = {name: TRITON_TYPES.get(kind, kind) for name, kind in graph.items()}
    wrong = {name: kind for name, kind in configured.items() if found.get(name) != kind}
    if wrong or (exact and found.keys() != configured.keys()):
        raise ValueError(f"the configuration has the {what} {configured}, the graph has {found}")


def _as_bytes(strings: Any) -> Any:
    flat = [text.encode("utf-8") for text in strings.reshape(-1)]
    return np.array(flat, dtype=np.object_).reshape(strings.shape)
