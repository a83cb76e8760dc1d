"""Triton's HTTP protocol in as few lines as the tests need: a client library's faults are not taken for ours."""

from __future__ import annotations

import http.client
import json
from typing import Any


def call(url: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Status and parsed JSON of one request."""
    connection = http.client.HTTPConnection(url, timeout=20)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    return response.status, json.loads(text) if text else {}


def infer(
    url: str,
    model: str,
    data: list[Any],
    *,
    name: str = "text",
    datatype: str = "BYTES",
    shape: list[int] | None = None,
    outputs: list[str] | None = None,
) -> tuple[int, Any]:
    """One inference; returns its status and the outputs by name, or the error's text."""
    request: dict[str, Any] = {
        "inputs": [{"name": name, "shape": shape or [1, len(data)], "datatype": datatype, "data": data}]
    }
    if outputs is not None:
        request["outputs"] = [{"name": output} for output in outputs]
    status, content = call(url, "POST", f"/v2/models/{model}/infer", request)
    if status != 200:
        return status, content["error"]
    return status, {output["name"]: output["data"] for output in content["outputs"]}


def counters(url: str, model: str) -> tuple[int, int]:
    """(requests that succeeded, executions) of one model, by Triton's own statistics."""
    _, content = call(url, "GET", f"/v2/models/{model}/stats")
    statistics = content["model_stats"][0]
    return statistics["inference_stats"]["success"]["count"], statistics["execution_count"]


def metrics(url: str) -> str:
    """The metrics in Prometheus' text form."""
    connection = http.client.HTTPConnection(url, timeout=20)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()
