"""What callers may send and take back: every subset of outputs, and bodies that are no requests at all."""

from __future__ import annotations

import gzip
import http.client
import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from test_lifecycle import traces, wait_until
from tiny_repository import WORDS_MODEL, right_answer, write_repository
from triton_http import call, counters, infer, metrics
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

import serve
from serve.leftovers import SHARED_MEMORY, marked_processes
from serve.plan import Plan, Ports, triton_arguments

OUTPUTS = ("label", "probabilities", "total", "even")
SUBSETS = [subset for n in range(len(OUTPUTS) + 1) for subset in itertools.combinations(OUTPUTS, n)]
TEXT = "words of different lengths"
RIGHT = right_answer([len(word) for word in TEXT.split()])


def assert_right(answer: dict[str, Any], asked: tuple[str, ...]) -> None:
    assert set(answer) == set(asked or OUTPUTS), "none asked for are all"
    for name, values in answer.items():
        right = RIGHT[name] if name == "probabilities" else [RIGHT[name]]
        assert values == (pytest.approx(right, abs=1e-6) if name == "probabilities" else right)


def text_of(*rows: bytes) -> grpc.InferInput:
    text = grpc.InferInput("text", [len(rows), 1], "BYTES")
    text.set_data_from_numpy(np.array([[row] for row in rows], dtype=np.object_))
    return text


@pytest.fixture(scope="module")
def over_grpc(joining: serve.Server) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(joining.grpc_url) as client:
        yield client


@pytest.mark.parametrize("asked", SUBSETS, ids=lambda names: "+".join(names) or "none")
def test_every_subset_of_outputs_has_its_values_over_both_protocols(
    joining: serve.Server, over_grpc: grpc.InferenceServerClient, asked: tuple[str, ...]
) -> None:  # triton-inference-server/server#7482, #7280, #7701
    status, answer = infer(joining.http_url, "tiny", [TEXT], outputs=list(asked))
    assert status == 200, answer
    assert_right(answer, asked)
    outputs = [grpc.InferRequestedOutput(name) for name in asked]
    result = over_grpc.infer("tiny", [text_of(TEXT.encode())], outputs=outputs, client_timeout=20)
    answer = {o.name: result.as_numpy(o.name)[0].tolist() for o in result.get_response().outputs}
    if "label" in answer:
        answer["label"] = [label.decode() for label in answer["label"]]
    assert_right(answer, asked)


def test_an_unknown_output_is_refused_over_both_protocols(
    joining: serve.Server, over_grpc: grpc.InferenceServerClient
) -> None:
    status, error = infer(joining.http_url, "tiny", [TEXT], outputs=["label", "verdict"])
    assert (status, "'verdict'" in error) == (400, True)
    outputs = [grpc.InferRequestedOutput(name) for name in ("label", "verdict")]
    with pytest.raises(InferenceServerException, match="'verdict'") as caught:
        over_grpc.infer("tiny", [text_of(b"a")], outputs=outputs, client_timeout=20)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def body(inputs: Any = None, **more: Any) -> bytes:
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}
    return json.dumps({"inputs": [tensor] if inputs is None else inputs, **more}).encode()


def tensor(**changes: Any) -> list[dict[str, Any]]:
    """The right input with other values; None leaves a key out."""
    given = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a"], **changes}
    return [{key: value for key, value in given.items() if value is not None}]


def binary(content: bytes, size: int) -> tuple[int, bytes, dict[str, str]]:
    head = body(tensor(data=None, parameters={"binary_data_size": size}))
    return 400, head + content, {"Inference-Header-Content-Length": str(len(head))}


# Status, body, headers. Triton's front end calls JSON of the wrong form its own fault (500): a gateway is to map it,
# and whoever counts 5xx must know it.
HOSTILE: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "not JSON": (500, b"not JSON", {}),
    "100,000 brackets": (500, b"[" * 100_000, {}),
    "no inputs": (500, b"{}", {}),
    "a list": (500, b"[]", {}),
    "inputs are a string": (500, body("x"), {}),
    "data is a string": (500, body(tensor(data="text")), {}),
    "data are numbers": (500, body(tensor(data=[7])), {}),
    "data are null": (500, body(tensor(data=[None])), {}),
    "half a surrogate pair": (500, body(tensor(data=["\ud800"])), {}),
    "no shape": (500, body(tensor(shape=None)), {}),
    "a negative shape": (500, body(tensor(shape=[-1, 1])), {}),
    "a broken shape": (500, body(tensor(shape=[1.5, 1])), {}),
    "a negative timeout": (500, body(parameters={"timeout": -1}), {}),
    "outputs are a string": (500, body(outputs="label"), {}),
    "no body": (400, b"", {}),
    "no data": (400, body(tensor(data=None)), {}),
    "an unknown type": (400, body(tensor(datatype="TEXT")), {}),
    "a shape beyond 64 bits": (400, body(tensor(shape=[2**62, 4])), {}),
    "65 rows": (400, body(tensor(shape=[65, 1], data=["a"] * 65)), {}),
    "more data than its shape": (400, body(tensor(data=["a", "b"])), {}),
    "less data than its shape": (400, body(tensor(shape=[2, 1])), {}),
    "an input twice": (400, body(tensor() * 2), {}),
    "a reserved parameter": (400, body(parameters={"triton_x": 1}), {}),
    "a header longer than the body": (400, b"{}", {"Inference-Header-Content-Length": "1000"}),
    "a header of length -1": (400, b"{}", {"Inference-Header-Content-Length": "-1"}),
    "binary data cut short": binary(b"\1\0", 5),
    "binary data that promise 2 GB": binary(b"\xff\xff\xff\x7fa", 5),
    "binary data left over": binary(b"\1\0\0\0abcdef", 5),
    "gzip that is none": (400, b"xx", {"Content-Encoding": "gzip"}),
    "an unknown region of shared memory": (
        404,
        body(tensor(data=None, parameters={"shared_memory_region": "x", "shared_memory_byte_size": 5})),
        {},
    ),
    "an unknown compression": (501, body(), {"Content-Encoding": "br"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_gets_its_status_and_harms_nothing(joining: serve.Server, name: str) -> None:
    # triton-inference-server/server#1649, #5664, #5649
    before = traces(joining)
    status, content, headers = HOSTILE[name]
    connection = http.client.HTTPConnection(joining.http_url, timeout=20)
    connection.request("POST", "/v2/models/tiny/infer", content, headers)
    response = connection.getresponse()
    assert (response.status, "error" in json.loads(response.read())) == (status, True)
    connection.close()
    assert traces(joining) == before
    joining.check()


def test_compressed_bodies_are_read(joining: serve.Server) -> None:
    connection = http.client.HTTPConnection(joining.http_url, timeout=20)
    connection.request("POST", "/v2/models/tiny/infer", gzip.compress(body()), {"Content-Encoding": "gzip"})
    assert connection.getresponse().status == 200
    connection.close()


def changed(repository: Path, *changes: tuple[str, str], config: str = "") -> Path:
    """The tiny repository with another first step."""
    write_repository(repository)
    model = WORDS_MODEL
    for old, new in changes:
        assert old in model
        model = model.replace(old, new)
    (repository / "tiny_words" / "1" / "model.py").write_text(f"import time\n{model}", encoding="utf-8")
    with (repository / "tiny_words" / "config.pbtxt").open("a", encoding="utf-8") as file:
        file.write(config)
    return repository


def test_a_tokenizer_step_that_emits_another_type_than_it_says_is_not_served(tmp_path: Path) -> None:
    # triton-inference-server/server#3219
    repository = changed(tmp_path / "models", ("np.int64", "np.int32"))
    with pytest.raises(serve.ProbeError, match=r"'input_ids' data-type is 'INT32', but .*'tiny_classifier'.* 'INT64'"):
        serve.start(repository)
    config = repository / "tiny_words" / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace("INT64", "INT32"), encoding="utf-8")
    with pytest.raises(serve.StartupError, match=r"TYPE_INT32 is inferred from model tiny_words while TYPE_INT64"):
        serve.start(repository)


SLOW = ("        return [self.answer", "        time.sleep(0.3)\n        return [self.answer")  # seconds a batch
ONE_BY_ONE = ("        return [self.answer", "        time.sleep(0.15 * len(requests))\n        return [self.answer")


def test_a_binary_text_that_is_shorter_than_it_says_takes_those_along_that_it_is_joined_with(tmp_path: Path) -> None:
    """Triton 2.51 reads the texts of a whole batch before the step sees any, and fails them all for one. A step without
    `dynamic_batching` would keep them apart. JSON, and what tritonclient packs, cannot lie so."""
    joined = "dynamic_batching { max_queue_delay_microseconds: 500000 }"
    with serve.start(changed(tmp_path / "models", config=joined)) as server, ThreadPoolExecutor(2) as pool:
        neighbour = pool.submit(infer, server.http_url, "tiny", ["aaa"], outputs=["total"])
        wait_until(lambda: any(pending(server)))
        _, content, headers = HOSTILE["binary data that promise 2 GB"]
        connection = http.client.HTTPConnection(server.http_url, timeout=20)
        connection.request("POST", "/v2/models/tiny/infer", content, headers)
        assert connection.getresponse().status == 400
        connection.close()
        status, error = neighbour.result(timeout=20)
        assert (status, "incomplete string data" in error) == (400, True)
        assert infer(server.http_url, "tiny", ["aaa"], outputs=["total"]) == (200, {"total": [3]})
        server.stop(drain_seconds=0)  # it keeps such a request for one in flight and would wait for it, for 30 s


def test_a_stub_that_is_killed_in_a_batch_gives_its_callers_an_error_and_nobody_an_answer(tmp_path: Path) -> None:
    # triton-inference-server/server#6763. INTERNAL, as for a model's own fault: Triton has no status of its own for it.
    with serve.start(changed(tmp_path / "models", SLOW)) as server:
        (stub,) = [
            pid
            for pid in marked_processes(server.token)
            if pid != server.pid and b"tiny_words_0_0" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        _, executed = counters(server.http_url, "tiny_words")
        with grpc.InferenceServerClient(server.grpc_url) as client, ThreadPoolExecutor(6) as pool:

            def over_http(words: int) -> tuple[int, Any]:
                return infer(server.http_url, "tiny", ["a " * words], outputs=["total"])

            def over_grpc(words: int) -> tuple[str, str]:
                with pytest.raises(InferenceServerException) as caught:
                    client.infer("tiny", [text_of(b"a " * words)], client_timeout=20)
                return str(caught.value.status()), str(caught.value)

            first = pool.submit(over_http, 1)
            wait_until(lambda: counters(server.http_url, "tiny_words")[1] > executed)
            assert first.result(timeout=20) == (200, {"total": [1]})
            asked = [pool.submit(over_http, words) for words in (2, 3)]
            asked_grpc = [pool.submit(over_grpc, words) for words in (4, 5)]
            threading.Event().wait(0.1)  # into the batch
            os.kill(stub, signal.SIGKILL)
            for future in asked:
                status, error = future.result(timeout=30)
                assert (status, "is not healthy" in error) == (500, True)
            for future_grpc in asked_grpc:
                code, error = future_grpc.result(timeout=30)
                assert (code, "is not healthy" in error) == ("StatusCode.INTERNAL", True)
        server.stop(drain_seconds=0)


def pending(server: serve.Server) -> list[float]:
    """The gauge of waiting requests, a value for each model."""
    lines = metrics(server.metrics_url).splitlines()
    return [float(line.rpartition(" ")[2]) for line in lines if line.startswith("nv_inference_pending_request_count{")]


def test_requests_cancelled_in_an_ensembles_queue_still_cost_its_first_step_and_spare_the_others(
    tmp_path: Path,
) -> None:  # triton-inference-server/server#6739, #8030
    repository = changed(tmp_path / "models", ONE_BY_ONE)
    with serve.start(repository) as server, grpc.InferenceServerClient(server.grpc_url) as client:
        words, classifier = (counters(server.http_url, name)[0] for name in ("tiny_words", "tiny_classifier"))
        ended: list[tuple[int, str]] = []
        calls = [
            client.async_infer(
                "tiny",
                [text_of(b"a " * (n + 1))],
                lambda result, error, n=n: ended.append(
                    (n, str(error.status()) if error else str(result.as_numpy("total")[0, 0]))
                ),
            )
            for n in range(30)
        ]
        wait_until(lambda: sum(pending(server)) > 20)
        for waiting in calls[10:]:
            waiting.cancel()
        wait_until(lambda: len(ended) == 30 and not any(pending(server)))
        wait_until(lambda: counters(server.http_url, "tiny_words")[0] - words == 30)
        assert sorted(ended) == [(n, str(float(n + 1)) if n < 10 else "StatusCode.CANCELLED") for n in range(30)]
        # One request may be with the first step, or between the steps, while the others are cancelled.
        assert 10 <= counters(server.http_url, "tiny_classifier")[0] - classifier <= 12


def test_the_gauge_of_waiting_requests_returns_to_0_after_rejections(tmp_path: Path) -> None:
    # triton-inference-server/server#6494, core#286: the dashboard's panel is built on it
    queue = "dynamic_batching { default_queue_policy { max_queue_size: 2 } }"
    with serve.start(changed(tmp_path / "models", SLOW, config=queue)) as server, ThreadPoolExecutor(20) as pool:
        asked = list(pool.map(lambda _: infer(server.http_url, "tiny", ["aaa"], outputs=["total"]), range(100)))
        assert [answer for status, answer in asked if status == 200] == [{"total": [3]}] * sum(
            status == 200 for status, _ in asked
        )
        assert {status for status, _ in asked} == {200, 503}
        wait_until(lambda: not any(pending(server)))
        assert len(pending(server)) == 3


def test_no_response_is_cached(joining: serve.Server) -> None:
    # triton-inference-server/server#4379, core#142: the old version's answer would outlive its replacement
    plan = Plan("token", joining.repository, ("tiny",), "cpu", "127.0.0.1", Ports(1, 2, 3))
    assert not [a for a in triton_arguments(plan, Path("/models"), plan.host, plan.ports) if "cache" in a]
    status, content = call(joining.http_url, "GET", "/v2/models/tiny/config")
    assert (status, content.get("response_cache", {}).get("enable", False)) == (200, False)


ENDS_TRITON = {
    "the classes of a text output": body(outputs=[{"name": "label", "parameters": {"classification": 1}}]),
    # It allocates the shape before it compares name, type and shape with the model's.
    "numbers under a shape of 8 TB": body(tensor(shape=[1, 2**40], datatype="INT64", data=[1])),
}


@pytest.mark.parametrize("what", ENDS_TRITON)
def test_one_request_ends_triton(tiny: Path, what: str) -> None:
    """Faults of Triton 2.51 that no flag turns off: who may send these to a server may end it. The supervisor heals it,
    and where callers are not trusted something in front must refuse them. Where this fails, Triton was mended."""
    with serve.start(tiny) as server:
        with pytest.raises((OSError, http.client.HTTPException)):
            call(server.http_url, "POST", "/v2/models/tiny/infer", json.loads(ENDS_TRITON[what]))
        wait_until(lambda: not server.is_running())


@pytest.mark.heavy  # 1.3 GB of memory and 300 MB of shared memory
def test_300_mb_of_text_are_refused_and_take_the_same_memory_the_second_time(tmp_path: Path) -> None:
    # triton-inference-server/server#1649, #7481
    limit = (
        "        rows = [[",
        '        if len(texts[0, 0]) > 65536:\n            error = pb_utils.TritonError("the text is too long", '
        "pb_utils.TritonError.INVALID_ARG)\n            return pb_utils.InferenceResponse(output_tensors=[], "
        "error=error)\n        rows = [[",
    )
    with serve.start(changed(tmp_path / "models", limit)) as server:
        processes = marked_processes(server.token)
        before, _, after = body().partition(b'["a"]')
        megabyte, total = b"a" * 2**20, 300

        def send() -> tuple[int, str]:
            connection = http.client.HTTPConnection(server.http_url, timeout=120)
            content = itertools.chain([before, b'["'], itertools.repeat(megabyte, total), [b'"]', after])
            length = len(before) + len(after) + 4 + total * len(megabyte)
            connection.request("POST", "/v2/models/tiny/infer", content, {"Content-Length": str(length)})
            response = connection.getresponse()
            error = json.loads(response.read())["error"]
            connection.close()
            return response.status, error

        def taken() -> tuple[int, int]:
            """Bytes of the processes, each with what it shares, and of the regions of shared memory."""
            regions = SHARED_MEMORY.glob(f"bet_{server.token}_*")
            return sum(psutil.Process(pid).memory_info().rss for pid in processes), sum(
                r.stat().st_size for r in regions
            )

        seen = []
        for _ in range(4):
            status, error = send()
            assert (status, "the text is too long" in error) == (400, True)
            seen.append(taken())
            server.check()
        assert marked_processes(server.token) == processes
        for first, last in zip(seen[1], seen[3], strict=True):
            assert last <= first * 1.1
