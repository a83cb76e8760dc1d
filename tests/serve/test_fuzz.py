"""12,000 generated requests over both protocols, and a neighbour who is answered rightly all the while.

    make test-heavy PYTEST="tests/serve/test_fuzz.py -s"

Each request comes from its own seed, which a failure names. Two kinds are not generated because each of them ends
Triton 2.51, as test_requests.py pins: `classification` of a text output, and numbers as JSON under a shape that no
memory holds.
"""

from __future__ import annotations

import gzip
import http.client
import json
import math
import random
import re
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from triton_http import infer
from tritonclient.grpc import service_pb2, service_pb2_grpc

import serve
from serve.leftovers import marked_processes

pytestmark = pytest.mark.heavy

REQUESTS = 6_000  # for each protocol
SECONDS = 30.0  # for one request

# What Triton's own front end answers with 500 though the caller is at fault: JSON that is none, or of another form.
FRONT_END = re.compile(r"(Unable|[Ff]ailed) to parse |attempt to (access|get) ")
UNSUPPORTED_COMPRESSION = 501
# What the whole batch is told where one request's binary texts have other lengths than they say (test_requests.py).
LYING_LENGTHS = re.compile("incomplete string|string elements")

TYPES = ("BYTES", "INT64", "INT32", "FP32", "FP16", "BF16", "BOOL", "UINT8", "TEXT", "")
MODELS = ("bet_tokenizer", "bet_classifier", "nothing")
NAMES = ("input_ids", "", "Text", "lengths")
OUTPUTS = ("label", "probabilities", "total", "tokens", "prediction_set", "input_ids", "verdict", "")
TEXTS = ("", " ", "ä漢🎬", "good\0bad", "a" * 1_000, "word " * 20_000, "\ud800", "[SEP]", "%s%n")
JUNK: tuple[Any, ...] = (None, True, -1, 0, 2**31, 2**63, 2**64, 1.5, 1e308, "", "x", [], [[]], {}, {"a": [1]})
MOST_NUMBERS = 2**24  # of a tensor whose numbers are sent as JSON


def mostly(rng: random.Random, usual: Any, *others: Any) -> Any:
    """The usual, one time in six something else, so that a good part of the requests is answered."""
    return usual if rng.random() < 5 / 6 else rng.choice(others)


def shape(rng: random.Random, rows: int) -> list[int]:
    odd = [rng.choice((0, 1, 1, 2, 3, 64, 65, -1, 2**31, 2**62, 2**63 - 1)) for _ in range(rng.randrange(5))]
    return mostly(rng, [rows, 1], odd)  # type: ignore[no-any-return]


def texts(rng: random.Random) -> list[str]:
    return [mostly(rng, "a fine film", *TEXTS) for _ in range(mostly(rng, 1, 0, 2, 3, 64, 65))]


def request(rng: random.Random) -> dict[str, Any]:
    """A request that is mostly right."""
    data = texts(rng)
    numbers = [rng.randrange(-3, 2**40) for _ in data]
    tensor: dict[str, Any] = {
        "name": mostly(rng, "text", *NAMES),
        "shape": shape(rng, len(data)),
        "datatype": mostly(rng, "BYTES", *TYPES),
        "data": mostly(rng, data, [[text] for text in data], numbers),
    }
    if rng.random() < 0.1:  # for the classifier alone
        tensor |= {"name": "input_ids", "shape": [1, len(data)], "datatype": "INT64", "data": numbers}
    asked: dict[str, Any] = {"inputs": [tensor] * mostly(rng, 1, 0, 2)}
    if rng.random() < 0.4:
        asked["outputs"] = [{"name": mostly(rng, "label", *OUTPUTS)} for _ in range(rng.randrange(4))]
    if rng.random() < 0.1:
        key = rng.choice(("timeout", "priority", "sequence_id", "sequence_end", "binary_data_output", "triton_x", "y"))
        asked["parameters"] = {key: rng.choice(JUNK)}
    if rng.random() < 0.1:
        key = rng.choice(("binary_data_size", "shared_memory_region", "shared_memory_byte_size", "content_type"))
        tensor["parameters"] = {key: rng.choice(JUNK)}
    return asked


def ends_triton(asked: Any) -> bool:
    """Whether the request is of the kind for which Triton allocates its shape's numbers before it looks at it."""
    tensors = asked.get("inputs") if isinstance(asked, dict) else None
    for given in tensors if isinstance(tensors, list) else []:
        sizes = given.get("shape") if isinstance(given, dict) and given.get("datatype") != "BYTES" else None
        numbers = [size for size in sizes if isinstance(size, int)] if isinstance(sizes, list) else []
        if math.prod(numbers) > MOST_NUMBERS:
            return True
    return False


def spoil(rng: random.Random, content: Any) -> Any:
    """The same tree with one value, anywhere, replaced by junk or left out."""
    if isinstance(content, dict) and content and rng.random() < 0.8:
        key = rng.choice(list(content))
        if rng.random() < 0.2:
            return {k: v for k, v in content.items() if k != key}
        return {**content, key: spoil(rng, content[key])}
    if isinstance(content, list) and content and rng.random() < 0.8:
        place = rng.randrange(len(content))
        return [*content[:place], spoil(rng, content[place]), *content[place + 1 :]]
    return rng.choice(JUNK)


def over_http(rng: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """Path, body and headers."""
    asked: Any = request(rng)
    headers: dict[str, str] = {}
    model = mostly(rng, "bet", *MODELS)
    path = f"/v2/models/{model}/{mostly(rng, 'infer', 'versions/1/infer', 'versions/x/infer')}"
    if rng.random() < 0.15:
        path = f"/v2/models/{model}/{rng.choice(('generate', 'generate_stream'))}"
        asked = {"text": mostly(rng, "a fine film", *TEXTS, texts(rng), *JUNK)}
        asked |= mostly(rng, {}, *({key: rng.choice(JUNK)} for key in ("id", "parameters", "x")))
    if rng.random() < 0.3:
        asked = spoil(rng, asked)
    while ends_triton(asked):
        asked = request(rng)
    kind = rng.randrange(10)
    if kind == 0 and isinstance(asked, dict):  # binary data behind the JSON
        rows, noise = texts(rng), rng.randbytes(rng.randrange(64))
        content = mostly(rng, raw(rows), noise, raw(rows) + noise)
        size = mostly(rng, len(content), 0, 1, len(content) + 1, 2**31, 2**63)
        parameters = {"binary_data_size": size}
        asked["inputs"] = [
            {"name": "text", "shape": shape(rng, len(rows)), "datatype": "BYTES", "parameters": parameters}
        ]
        head = json.dumps(asked).encode()
        length = mostly(rng, len(head), len(head) - 1, len(head) + 1, 0, -1, 2**31, 2**64, "x")
        headers["Inference-Header-Content-Length"] = str(length)
        return path, head + content, headers
    body = json.dumps(asked).encode()
    if kind == 1:
        body = body[: rng.randrange(len(body) + 1)]
    elif kind == 2:
        flipped = bytearray(body)
        for _ in range(rng.randrange(1, 9)):
            flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        body = bytes(flipped)
    elif kind == 3:
        encoding = rng.choice(("gzip", "deflate", "br"))
        headers["Content-Encoding"] = encoding
        compress = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)
        encoded = mostly(rng, compress, bytes)(body)
        body = encoded[: rng.choice((len(encoded), len(encoded), rng.randrange(len(encoded) + 1)))]
    elif kind == 4 and rng.random() < 0.3:
        body = rng.choice((rng.randbytes(200), b"[" * 50_000, b'{"inputs":' * 5_000, b"\0" * 1_000, b""))
    return path, body, headers


def raw(rows: list[str]) -> bytes:
    """Texts as Triton's binary form has them: each after its length."""
    encoded = [row.encode("utf-8", "replace") for row in rows]
    return b"".join(len(row).to_bytes(4, "little") + row for row in encoded)


def over_grpc(rng: random.Random) -> Any:
    """A `ModelInferRequest`."""
    asked = service_pb2.ModelInferRequest(
        model_name=mostly(rng, "bet", *MODELS),
        model_version=mostly(rng, "", "1", "9", "x"),
        id=mostly(rng, "", "a", "\0"),
    )
    for _ in range(mostly(rng, 1, 0, 2)):
        rows = texts(rng)
        tensor = asked.inputs.add(name=mostly(rng, "text", *NAMES), datatype=mostly(rng, "BYTES", *TYPES))
        tensor.shape.extend(shape(rng, len(rows)))
        kind = rng.randrange(6)
        if kind < 2:
            asked.raw_input_contents.append(mostly(rng, raw(rows), raw(rows)[: rng.randrange(99)]))
        elif kind < 4:
            tensor.contents.bytes_contents.extend(row.encode("utf-8", "replace") for row in rows)
        elif kind == 4:
            tensor.contents.int64_contents.extend(rng.randrange(-3, 2**40) for _ in rows)
        else:
            asked.raw_input_contents.append(rng.randbytes(rng.randrange(40)))
        if rng.random() < 0.05:
            tensor.parameters["shared_memory_region"].string_param = "x"
    for _ in range(mostly(rng, 0, 1, 3)):
        asked.outputs.add(name=mostly(rng, "label", *OUTPUTS))
    if rng.random() < 0.1:
        key = rng.choice(("timeout", "priority", "sequence_id", "sequence_end", "triton_x", "y"))
        if rng.random() < 0.5:
            asked.parameters[key].int64_param = rng.choice((-1, 0, 1, 2**62))
        else:
            asked.parameters[key].string_param = rng.choice(("", "x", "-1"))
    return asked


def fuzz_http(server: serve.Server, seeds: range) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in seeds:
        path, body, headers = over_http(random.Random(seed))
        connection = http.client.HTTPConnection(server.http_url, timeout=SECONDS)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            status, text = response.status, response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise AssertionError(
                f"HTTP seed {seed} got no answer ({error!r}): {path} {headers} {body[:300]!r}"
            ) from error
        finally:
            connection.close()
        excused = (status == 500 and FRONT_END.search(text)) or status == UNSUPPORTED_COMPRESSION
        if status >= 500 and status != 503 and not excused:
            raise AssertionError(f"HTTP seed {seed} got {status} {text[:300]}: {path} {headers} {body[:300]!r}")
        seen[f"HTTP {status}{' from the front end' if excused else ''}"] += 1
    return seen


CALLERS_FAULT = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE", "UNIMPLEMENTED", "ALREADY_EXISTS"}


def fuzz_grpc(server: serve.Server, seeds: range) -> Counter[str]:
    seen: Counter[str] = Counter()
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for seed in seeds:
            asked = over_grpc(random.Random(seed))
            try:
                stub.ModelInfer(asked, timeout=SECONDS)
                code, details = "OK", ""
            except grpc.RpcError as error:
                code, details = error.code().name, error.details()
            if code not in CALLERS_FAULT or "Socket closed" in details:
                raise AssertionError(f"gRPC seed {seed} got {code} {details}: {str(asked)[:300]}")
            seen[f"gRPC {code}"] += 1
    return seen


def test_generated_requests_crash_nothing_and_a_neighbour_is_answered_rightly_all_the_while(
    server: serve.Server,
) -> None:
    processes = marked_processes(server.token)
    neighbours = ["a fine film", "a dull and endless film", "good " * 50, "I do not know what to say about it"]
    wanted = ["label", "probabilities"]
    right = {text: infer(server.http_url, "bet", [text], outputs=wanted)[1] for text in neighbours}
    over = threading.Event()
    joined: list[str] = []

    def neighbour() -> int:
        answered = 0
        while not over.is_set():
            text = neighbours[answered % len(neighbours)]
            status, answer = infer(server.http_url, "bet", [text], outputs=wanted)
            if status == 400 and LYING_LENGTHS.search(answer):
                joined.append(answer)
                continue
            assert status == 200, answer
            assert answer["label"] == right[text]["label"]
            assert answer["probabilities"] == pytest.approx(right[text]["probabilities"], abs=1e-4)
            answered += 1
        return answered

    kinds: list[tuple[Callable[[serve.Server, range], Counter[str]], range]] = [
        (fuzz_http, range(REQUESTS)),
        (fuzz_grpc, range(REQUESTS)),
    ]
    with ThreadPoolExecutor(3) as pool:
        beside = pool.submit(neighbour)
        try:
            seen = sum((future.result() for future in [pool.submit(f, server, seeds) for f, seeds in kinds]), Counter())
        finally:
            over.set()
        assert beside.result(timeout=60) > 100
    print(*(f"{count:6} {what}" for what, count in sorted(seen.items())), sep="\n")
    print(f"{len(joined):6} of the neighbour's were refused for the fault of one that they were joined with")
    assert marked_processes(server.token) == processes
    assert seen["HTTP 200"] > REQUESTS / 20 < seen["gRPC OK"], "else all were refused at the door"
    server.check()
