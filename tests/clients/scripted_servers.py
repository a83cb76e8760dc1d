"""Small servers of one model on real sockets, over either protocol, whose inferences fail as a test has scripted.

For what a real Triton does not do on demand: be unavailable for exactly so many requests, hint when to come back, break
a connection, die and return on its port.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.clients.wire_servers import http_answer, read_request, serving

LARGEST_MESSAGE = 1_000_000  # bytes over gRPC, as a proxy may have it

CONFIG = {
    "name": "bet",
    "max_batch_size": 64,
    "input": [{"name": "text"}],
    "output": [{"name": "label"}, {"name": "probabilities"}],
    "parameters": {"labels": {"string_value": '["negative", "positive"]'}},
}


@dataclass(frozen=True)
class Busy:
    """The server is unavailable, and may say when to come back."""

    hint: Mapping[str, str] = field(default_factory=dict)


class Broken:
    """The connection breaks before the answer."""


Fault = Busy | Broken


class Script:
    """What a server's next inferences meet, and what came with those that it got."""

    def __init__(self, faults: Iterable[Fault] = (), *, always: Fault | None = None) -> None:
        self._faults = deque(faults)
        self._always = always
        self.inferences: list[dict[str, str]] = []

    def next(self, metadata: Mapping[str, str]) -> Fault | None:
        """The fault of an inference that came with these headers, None if it is answered."""
        self.inferences.append({key.lower(): value for key, value in metadata.items()})
        return self._faults.popleft() if self._faults else self._always


def answered(rows: int) -> list[tuple[str, str, list[int], bytes]]:
    """Name, type, shape and bytes of each tensor of an answer."""
    label = b"positive"
    return [
        ("label", "BYTES", [rows, 1], (len(label).to_bytes(4, "little") + label) * rows),
        ("probabilities", "FP32", [rows, 2], np.array([[0.25, 0.75]] * rows, np.float32).tobytes()),
    ]


def scripted(protocol: str, script: Script, port: int = 0) -> AbstractContextManager[str]:
    """A server that follows a script on a port, by default a free one; gives its address."""
    return _over_grpc(script, port) if protocol == "grpc" else _over_http(script, port)


def _over_http(script: Script, port: int) -> AbstractContextManager[str]:
    def infer(headers: Mapping[str, str], body: bytes) -> bytes | None:
        fault = script.next(headers)
        if isinstance(fault, Broken):
            return None
        if isinstance(fault, Busy):
            return http_answer(b'{"error": "exceeds maximum queue size"}', "503 Service Unavailable", fault.hint)
        request = json.loads(body[: int(headers["Inference-Header-Content-Length"])])
        rows = request["inputs"][0]["shape"][0]
        tensors = answered(rows)
        outputs = [
            {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
            for name, kind, shape, raw in tensors
        ]
        header = json.dumps({"outputs": outputs}).encode()
        body = header + b"".join(raw for *_, raw in tensors)
        return http_answer(body, headers={"Inference-Header-Content-Length": str(len(header))})

    def handle(connection: socket.socket) -> None:
        while received := read_request(connection):
            head, _, body = received.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            while len(body) < int(headers.get("Content-Length", 0)):
                body += connection.recv(65536)
            answer = infer(headers, body) if first.startswith("POST") else http_answer(json.dumps(CONFIG).encode())
            if answer is None:
                return
            connection.sendall(answer)

    return serving(handle, port)


class _Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc] # generated without types
    def __init__(self, script: Script) -> None:
        self._script = script

    def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelConfig(self, request: Any, context: Any) -> Any:
        answer = service_pb2.ModelConfigResponse()
        answer.config.name, answer.config.max_batch_size = "bet", 64
        answer.config.input.add(name="text")
        for name in ("label", "probabilities"):
            answer.config.output.add(name=name)
        answer.config.parameters["labels"].string_value = CONFIG["parameters"]["labels"]["string_value"]  # type: ignore[index]
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:
        fault = self._script.next(dict(context.invocation_metadata()))
        if isinstance(fault, Broken):
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")  # gRPC's own words for it
        if isinstance(fault, Busy):
            context.set_trailing_metadata(tuple(fault.hint.items()))
            context.abort(grpc.StatusCode.UNAVAILABLE, "exceeds maximum queue size")
        answer = service_pb2.ModelInferResponse()
        for name, kind, shape, raw in answered(request.inputs[0].shape[0]):
            answer.outputs.add(name=name, datatype=kind, shape=shape)
            answer.raw_output_contents.append(raw)
        return answer


@contextlib.contextmanager
def _over_grpc(script: Script, port: int) -> Iterator[str]:
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", LARGEST_MESSAGE)]
    server = grpc.server(ThreadPoolExecutor(4), options=options)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(script), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        server.stop(None).wait(10)
