"""Memory levels: 3,000 shapes for the classifier and 10,000 sizes of text take what the largest of them takes, once.

make test-heavy PYTEST="tests/serve/test_memory.py -s"
"""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

import serve
from serve.leftovers import SHARED_MEMORY, marked_processes

pytestmark = pytest.mark.heavy

SHAPES, SIZES = 3_000, 10_000
LONGEST, MOST_ROWS = 512, 16  # ids of a row, rows of a request
LARGEST = 60_000  # bytes of text; 64 KiB are refused
# Of the second half over the first, and MiB beside. ONNX Runtime's plans for each shape (`enable_mem_pattern`) are 9 %.
GROWTH, SLACK = 1.03, 2
REGION_MIB = 8  # of shared memory for an instance, as serve/embedded.py states the need


def taken(server: serve.Server) -> dict[str, int]:
    """MiB of each process' own memory, and of each region of shared memory."""
    own = {str(pid): psutil.Process(pid).memory_full_info().uss >> 20 for pid in marked_processes(server.token)}
    return own | {region.name: region.stat().st_size >> 20 for region in SHARED_MEMORY.glob(f"bet_{server.token}_*")}


def levels(server: serve.Server, send: Callable[[int], None], count: int) -> list[dict[str, int]]:
    """What is taken after the first half and at the end; each half sends the same kinds in another order."""
    seen = []
    for half in range(2):
        for index in range(half * count // 2, (half + 1) * count // 2):
            send(index)
        seen.append(taken(server))
    print(*seen, sep="\n")
    return seen


def assert_level(seen: list[dict[str, int]]) -> None:
    first, last = seen
    assert first.keys() == last.keys(), "the same processes and regions"
    for name, before in first.items():
        assert last[name] <= before * GROWTH + SLACK, (name, first, last)


@pytest.fixture
def post(server: serve.Server) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    connection = http.client.HTTPConnection(server.http_url, timeout=60)

    def ask(model: str, tensor: dict[str, Any]) -> None:
        asked = {"inputs": [tensor], "outputs": [{"name": "probabilities" if model == "bet" else "total"}]}
        connection.request("POST", f"/v2/models/{model}/infer", json.dumps(asked))
        response = connection.getresponse()
        text = response.read()
        assert response.status == 200, text

    yield ask
    connection.close()


def test_3000_shapes_take_no_more_memory_than_the_first_half(
    server: serve.Server, post: Callable[[str, dict[str, Any]], None]
) -> None:  # triton-inference-server/onnxruntime_backend#102, microsoft/onnxruntime#11627
    rng = random.Random(3)

    def send(_: int) -> None:
        rows, length = rng.randrange(1, MOST_ROWS + 1), rng.randrange(1, LONGEST + 1)
        ids = [rng.randrange(1, 900) for _ in range(rows * length)]
        post("bet_classifier", {"name": "input_ids", "shape": [rows, length], "datatype": "INT64", "data": ids})

    assert_level(levels(server, send, SHAPES))


def test_10000_sizes_of_text_take_no_more_memory_than_the_first_half(
    server: serve.Server, post: Callable[[str, dict[str, Any]], None]
) -> None:  # triton-inference-server/server#7481, #3678
    rng = random.Random(4)

    def send(_: int) -> None:
        size = int(LARGEST ** rng.random())
        text = ("word " * (size // 5 + 1))[:size]
        post("bet", {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]})

    seen = levels(server, send, SIZES)
    assert_level(seen)
    assert all(mib <= REGION_MIB for name, mib in seen[1].items() if name.startswith("bet_"))
