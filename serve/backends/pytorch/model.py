"""Stand-in for Triton's compiled PyTorch backend, as a Python-based backend: it executes the same `model.pt`.

Follows github.com/triton-inference-server/pytorch_backend: inputs go to the arguments of `forward` by name, else by
`<name>__<index>`, else in the configuration's order, batch inputs after the others; outputs by `<name>__<index>`, else
in the configuration's order; strings only as `List[str]` with one dimension, rows included, which is why such an output
is configured with `reshape { shape: [ ] }`. Parameters are named as in its README.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from serve.backends.ragged_batch import Arrays, ModelConfig, answer, read_config
    from serve.backends.stops import in_time
    from serve.backends.thread_budget import thread_budget
else:  # in the backend directory these lie beside Triton's own module for stubs
    from ragged_batch import answer, read_config
    from stops import in_time
    from thread_budget import thread_budget

INDEXED = re.compile(r".*__(\d+)")


class TritonPythonModel:
    """One instance: one TorchScript module."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the module and hold it against the configuration.

        Raises:
            ValueError: if inputs do not fit `forward`, a string output is one that the compiled backend refuses, or
                the device is not there.
        """
        self.config = read_config(args)
        self.parameters = {key.upper(): value.lower() for key, value in self.config.parameters.items()}
        path = Path(args["model_repository"]) / args["model_version"] / (self.config.filename or "model.pt")
        self.device = torch.device("cpu")
        if args["model_instance_kind"] == "GPU":
            if not torch.cuda.is_available():
                raise ValueError(f"model {self.config.name!r} wants a GPU; this torch sees none")
            self.device = torch.device("cuda", int(args["model_instance_device_id"]))
        self._set_execution()
        self.module = torch.jit.load(str(path), map_location=self.device).eval()
        arguments = [argument.name for argument in self.module.forward.schema.arguments[1:]]
        self.positions = input_positions(self.config, arguments)
        self.indices = output_indices(self.config)

    @in_time
    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer one batch of requests."""
        return answer(requests, self.config, self.run)

    def run(self, inputs: Arrays, names: list[str]) -> Arrays:
        """One execution of the module; it computes all outputs, of which the wanted ones are returned."""
        ordered = sorted(inputs, key=lambda name: self.positions[name])
        # Triton's buffers cannot be written to, which torch warns about for each tensor; a copy of some ids is cheap.
        tensors = [torch.from_numpy(np.array(inputs[name])).to(self.device) for name in ordered]
        optimised = self.parameters.get("DISABLE_OPTIMIZED_EXECUTION") != "true"
        with (
            torch.no_grad(),
            torch.inference_mode(self.parameters.get("INFERENCE_MODE") == "true"),
            torch.jit.optimized_execution(optimised),  # type: ignore[attr-defined]
        ):
            result = self.module(*tensors)
        strings_alone = isinstance(result, list) and all(isinstance(item, str) for item in result)
        outputs = [result] if isinstance(result, torch.Tensor) or strings_alone else list(result)
        return {name: _as_numpy(outputs[self.indices[name]]) for name in names}

    def _set_execution(self) -> None:
        torch.set_num_threads(int(self.parameters.get("INTRA_OP_THREAD_COUNT", "0")) or thread_budget())
        torch.set_num_interop_threads(int(self.parameters.get("INTER_OP_THREAD_COUNT", "0")) or thread_budget())
        for parameter, setting in (
            ("ENABLE_JIT_EXECUTOR", torch._C._jit_set_profiling_executor),
            ("ENABLE_JIT_PROFILING", torch._C._jit_set_profiling_mode),
            ("ENABLE_TENSOR_FUSER", torch._C._jit_set_texpr_fuser_enabled),
        ):
            if parameter in self.parameters:
                setting(self.parameters[parameter] == "true")


def input_positions(config: ModelConfig, arguments: list[str]) -> dict[str, int]:
    """The position in `forward` of each input.

    Raises:
        ValueError: if the number of inputs is not that of the arguments.
    """
    names = list(config.model_inputs)
    if len(names) != len(arguments):
        raise ValueError(f"the configuration has the inputs {names}, forward takes {arguments}")
    if set(names) == set(arguments):
        return {name: arguments.index(name) for name in names}
    return _indices(names)


def output_indices(config: ModelConfig) -> dict[str, int]:
    """The place of each output in what `forward` returns.

    Raises:
        ValueError: for a string output with more than one dimension, rows included.
    """
    for output in config.outputs:
        if output.data_type == "TYPE_STRING" and len(output.dims) + config.batching > 1:
            raise ValueError(
                f"output {output.name!r} of model {config.name!r} has strings in more than one dimension, which the "
                "compiled PyTorch backend refuses; write dims: [ 1 ] with reshape { shape: [ ] }"
            )
    return _indices([output.name for output in config.outputs])


def _indices(names: list[str]) -> dict[str, int]:
    matches = [INDEXED.fullmatch(name) for name in names]
    if all(matches):
        return {name: int(match[1]) for name, match in zip(names, matches, strict=True) if match}
    return {name: index for index, name in enumerate(names)}


def _as_numpy(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.cpu().numpy()
    return np.array([text.encode("utf-8") for text in output], dtype=np.object_)
