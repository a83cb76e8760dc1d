"""What is counted outside the generator's own list: sockets by the kernel, executions by Triton."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import tritonclient.grpc

import serve
from benchmarks.connections import established
from benchmarks.errors import ServerError
from benchmarks.settings import Protocol
from benchmarks.triton_statistics import ModelCounts, StatisticsReader


def test_only_this_process_own_established_connections_to_the_port_are_counted() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        assert established(port) == 0
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        accepted = [stack.enter_context(listener.accept()[0]) for _ in range(3)]
        assert len(accepted) == 3
        program = (
            f"import socket; s = socket.create_connection(('127.0.0.1', {port})); print('in', flush=True); input()"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with other:
            assert other.stdout is not None
            assert other.stdout.readline() == "in\n"
            stack.enter_context(listener.accept()[0])
            assert established(port) == 3
            other.communicate("\n")


def test_connections_over_ipv6_count_too() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("::1", port)):
            assert established(port) == 1


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_100_calls_of_batch_4_are_100_requests_and_400_inferences(triton: serve.Server, protocol: Protocol) -> None:
    reader = StatisticsReader(triton.grpc_url if protocol == "grpc" else triton.http_url, protocol, "bet")
    before = reader.snapshot()
    client = tritonclient.grpc.InferenceServerClient(triton.grpc_url)
    texts = tritonclient.grpc.InferInput("text", [4, 1], "BYTES")
    texts.set_data_from_numpy(np.array([[b"one"], [b"two"], [b"three"], [b"four"]], dtype=np.object_))
    for _ in range(100):
        client.infer("bet", [texts])
    client.close()
    counted = reader.snapshot().since(before)
    reader.close()
    assert (counted.asked.requests, counted.asked.inferences) == (100, 400)
    assert list(counted.steps) == ["bet_tokenizer", "bet_classifier"]
    # One call after the other: nothing to join, four rows each.
    assert counted.classifier == ModelCounts(requests=100, failures=0, inferences=400, executions=100)
    assert counted.classifier.mean_batch_size == 4


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_unknown_model_and_a_missing_server_are_said(triton: serve.Server, protocol: Protocol) -> None:
    url = triton.grpc_url if protocol == "grpc" else triton.http_url
    with pytest.raises(ServerError, match="bert"):
        StatisticsReader(url, protocol, "bert").snapshot()
    with pytest.raises(ServerError, match="cannot read the statistics"):
        StatisticsReader(f"127.0.0.1:{serve.free_port()}", protocol, "bet").snapshot()


def test_without_executions_there_is_no_batch_size() -> None:
    assert ModelCounts(0, 0, 0, 0).mean_batch_size is None
