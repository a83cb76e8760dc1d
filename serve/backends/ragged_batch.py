"""Requests to one batch and back, for both stand-ins: what Triton's compiled backends do before and after the model.

Triton hands over the requests that its dynamic batcher joined. An input with `allow_ragged_batch` arrives with another
length in each request; the model takes all elements as one dimension, `[elements]`, and a `batch_input` of kind
BATCH_ITEM_SHAPE tells it the shape of each row, `[rows, dimensions]`. Other inputs are stacked along the first axis.
After one execution for all, each request gets its rows of the outputs that it asked for. Follows
github.com/triton-inference-server/server, docs/user_guide/ragged_batching.md.

A fault in one request is answered as that request's error: where a joined execution fails, each request is tried alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

Arrays = dict[str, npt.NDArray[Any]]

NUMPY_TYPES: dict[str, Any] = {
    "TYPE_BOOL": np.bool_,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}


class RequestError(Exception):
    """A request that cannot be answered; the text is for its sender."""


@dataclass(frozen=True)
class Input:
    """An input of the model configuration."""

    name: str
    data_type: str
    ragged: bool


@dataclass(frozen=True)
class ItemShape:
    """A batch input: the shapes of the rows of `source`, as the model's input `name`."""

    name: str
    data_type: str
    source: str


@dataclass(frozen=True)
class Output:
    """An output of the model configuration; `dims` are those that the model gives (before Triton's own reshape)."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class ModelConfig:
    """What both stand-ins need of a model configuration."""

    name: str
    batching: bool
    inputs: tuple[Input, ...]
    item_shapes: tuple[ItemShape, ...]
    outputs: tuple[Output, ...]
    parameters: dict[str, str]
    graph_level: int  # optimization { graph { level } }
    filename: str

    @property
    def model_inputs(self) -> dict[str, str]:
        """Data types of everything that the model takes, by name, inputs first, as the compiled backends count them."""
        inputs = {item.name: item.data_type for item in self.inputs}
        return inputs | {shape.name: shape.data_type for shape in self.item_shapes}


def read_config(args: dict[str, str]) -> ModelConfig:
    """The configuration in the arguments that Triton gives to `initialize`.

    Raises:
        ValueError: for what the stand-ins do not have: other kinds of batch inputs, batch outputs, types.
    """
    config = json.loads(args["model_config"])
    name = config["name"]
    item_shapes = []
    for entry in config.get("batch_input", []):
        if entry["kind"] != "BATCH_ITEM_SHAPE" or entry["data_type"] != "TYPE_INT32":
            raise ValueError(
                f"model {name!r}: batch_input {entry['target_name']} has {entry['kind']} and {entry['data_type']}, "
                "the embedded engine has BATCH_ITEM_SHAPE with TYPE_INT32"
            )
        item_shapes += [
            ItemShape(target, entry["data_type"], entry["source_input"][0]) for target in entry["target_name"]
        ]
    if config.get("batch_output"):
        raise ValueError(f"model {name!r}: the embedded engine has no batch_output")
    for entry in (*config["input"], *config["output"]):
        if entry["data_type"] not in NUMPY_TYPES:
            raise ValueError(
                f"model {name!r}: {entry['name']} has {entry['data_type']}, which this engine does not have"
            )
    return ModelConfig(
        name=name,
        batching=config["max_batch_size"] > 0,
        inputs=tuple(Input(i["name"], i["data_type"], i.get("allow_ragged_batch", False)) for i in config["input"]),
        item_shapes=tuple(item_shapes),
        outputs=tuple(
            Output(o["name"], o["data_type"], tuple(int(d) for d in o.get("reshape", {}).get("shape", o["dims"])))
            for o in config["output"]
        ),
        parameters={key: value["string_value"] for key, value in config.get("parameters", {}).items()},
        graph_level=int(config.get("optimization", {}).get("graph", {}).get("level", 0)),
        filename=config.get("default_model_filename", ""),
    )


def answer(requests: Sequence[Any], config: ModelConfig, run: Callable[[Arrays, list[str]], Arrays]) -> list[Any]:
    """Answer the requests of one batch by one execution.

    Args:
        run: the model: arrays by input name and the names of the wanted outputs, to arrays by output name.
    """
    responses: dict[int, Any] = {}
    read: dict[int, Arrays] = {}
    for index, request in enumerate(requests):
        try:
            read[index] = _read(request, config)
        except RequestError as error:
            responses[index] = _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
    try:
        responses |= _execute(requests, read, config, run)
    except Exception as error:
        # The boundary to Triton: an exception that passes it reaches the caller as 500 with file paths in it.
        if len(read) == 1:
            responses |= dict.fromkeys(read, _failure(error, config))
        else:
            for index, arrays in read.items():
                try:
                    responses |= _execute(requests, {index: arrays}, config, run)
                except Exception as own:
                    responses[index] = _failure(own, config)
    return [responses[index] for index in range(len(requests))]


def _read(request: Any, config: ModelConfig) -> Arrays:
    arrays = {}
    for item in config.inputs:
        tensor = pb_utils.get_input_tensor_by_name(request, item.name)
        if tensor is None:
            raise RequestError(f"input {item.name!r} is missing; send it as {item.data_type}")
        array = tensor.as_numpy()
        if config.batching and array.size == 0:
            raise RequestError(
                f"input {item.name!r} has shape {list(array.shape)}; each row needs at least one element"
            )
        arrays[item.name] = array
    return arrays


def _execute(
    requests: Sequence[Any], read: dict[int, Arrays], config: ModelConfig, run: Callable[[Arrays, list[str]], Arrays]
) -> dict[int, Any]:
    if not read:
        return {}
    if not config.batching and len(read) > 1:
        raise ValueError("a model without batching gets one request at a time")
    wanted = {index: set(requests[index].requested_output_names()) for index in read}
    names = [output.name for output in config.outputs if any(output.name in asked for asked in wanted.values())]
    outputs = run(_join(list(read.values()), config), names)
    rows = {index: len(next(iter(arrays.values()))) for index, arrays in read.items()}
    for name in names:
        if config.batching and len(outputs[name]) != sum(rows.values()):
            raise ValueError(f"output {name} has {len(outputs[name])} rows for {sum(rows.values())} rows of input")
    responses, first = {}, 0
    for index, count in rows.items():
        part = slice(first, first + count) if config.batching else slice(None)
        tensors = [pb_utils.Tensor(name, outputs[name][part]) for name in names if name in wanted[index]]
        responses[index] = pb_utils.InferenceResponse(output_tensors=tensors)
        first += count
    return responses


def _join(read: list[Arrays], config: ModelConfig) -> Arrays:
    joined: Arrays = {}
    for item in config.inputs:
        arrays = [arrays[item.name] for arrays in read]
        if item.ragged:
            arrays = [array.reshape(-1) for array in arrays]
        joined[item.name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    for shape in config.item_shapes:
        sources = [arrays[shape.source] for arrays in read]
        joined[shape.name] = np.concatenate(
            [np.tile(np.asarray(source.shape[1:], np.int32), (len(source), 1)) for source in sources]
        )
    return joined


def _refusal(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))


def _failure(error: Exception, config: ModelConfig) -> Any:
    pb_utils.Logger.log_error(f"model {config.name!r} failed: {error!r}")
    return _refusal(
        f"model {config.name!r} could not be executed on this request ({type(error).__name__}): see the server's log",
        pb_utils.TritonError.INTERNAL,
    )
