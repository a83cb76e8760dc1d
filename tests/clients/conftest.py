"""A real Triton with stand-in models, and both clients over both protocols behind one blocking face."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from bet_client import AsyncClient, Client
from google.protobuf import text_format

import serve
from export.repository import Names, tokenizer_config

MODEL_SOURCE = Path(__file__).with_name("stand_in_model.py")

Protocol = Literal["grpc", "http"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

OUTPUTS = {
    "label": ("TYPE_STRING", 1),
    "probabilities": ("TYPE_FP32", 2),
    "total": ("TYPE_FP32", 1),
    "aleatoric": ("TYPE_FP32", 1),
    "epistemic": ("TYPE_FP32", 1),
    "review": ("TYPE_BOOL", 1),
    "reason": ("TYPE_STRING", 1),
    "prediction_set": ("TYPE_BOOL", 2),
    "tokens": ("TYPE_INT32", 1),
    "truncated": ("TYPE_BOOL", 1),
    "concentration": ("TYPE_FP32", 2),
    "order_dispersion": ("TYPE_FP32", 1),
    "evidence_budget": ("TYPE_INT32", 1),
    "evidence_ngrams": ("TYPE_STRING", 6),
    "evidence_nats": ("TYPE_FP32", 3),
}
FEW_OUTPUTS = ("label", "probabilities", "total", "tokens", "truncated")


def model_config(
    name: str,
    outputs: tuple[str, ...] = tuple(OUTPUTS),
    *,
    rows: int = 64,
    labels: tuple[str, ...] = ("negative", "positive"),
    max_text_bytes: int | None = 65536,
    budgets: str | None = None,
    extra: str = "",
) -> str:
    """A `config.pbtxt` with the ensemble's input, a choice of its outputs, and its parameters."""
    declared = "\n".join(
        f'output {{ name: "{output}" data_type: {OUTPUTS[output][0]} dims: [ {OUTPUTS[output][1]} ] }}'
        for output in outputs
    )
    parameters = {"labels": json.dumps(labels)}
    if max_text_bytes is not None:
        parameters["max_text_bytes"] = str(max_text_bytes)
    if budgets is not None:
        parameters["budgets"] = budgets
    written = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}'
        for key, value in parameters.items()
    )
    return f"""name: "{name}"
backend: "python"
max_batch_size: {rows}
input {{ name: "text" data_type: TYPE_STRING dims: [ 1 ] }}
{declared}
{written}
{extra}
"""


def write_model(repository: Path, name: str, config: str) -> None:
    """Put the stand-in under `name` into a repository."""
    (repository / name / "1").mkdir(parents=True, exist_ok=True)
    (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")
    shutil.copy(MODEL_SOURCE, repository / name / "1" / "model.py")


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    one_at_a_time = (
        "instance_group [ { count: 1 kind: KIND_CPU } ]\n"
        "dynamic_batching { default_queue_policy { max_queue_size: 1 } }"
    )
    # The queue of the exported models, before a single instance.
    queue = text_format.MessageToString(tokenizer_config(Names("bet")).dynamic_batching)
    expiring = f"instance_group [ {{ count: 1 kind: KIND_CPU }} ]\ndynamic_batching {{ {queue} }}"
    configs = {
        "bet": model_config("bet", extra="instance_group [ { count: 2 kind: KIND_CPU } ]"),
        "plain": model_config("plain", FEW_OUTPUTS),
        "narrow": model_config("narrow", rows=4),
        "unlimited": model_config("unlimited", max_text_bytes=None),
        "busy": model_config("busy", rows=1, extra=one_at_a_time),
        "expiring": model_config("expiring", rows=1, extra=expiring),
        "mislabelled": model_config("mislabelled", labels=("good", "bad")),
        "unlabelled": model_config("unlabelled", ("tokens",), labels=()),
        "changing": model_config("changing"),
    }
    for name, config in configs.items():
        write_model(folder, name, config)
    return folder


def load_again(triton: serve.Server, model: str) -> None:
    """Have the server read a model's folder anew, as a promotion does."""
    request = urllib.request.Request(f"http://{triton.http_url}/v2/repository/models/{model}/load", data=b"{}")
    with urllib.request.urlopen(request, timeout=10):
        pass


@pytest.fixture(scope="session")
def triton(stand_ins: Path) -> Iterator[serve.Server]:
    with serve.start(stand_ins, models=[folder.name for folder in stand_ins.iterdir()]) as server:
        yield server
        assert server.is_running()


class Blocking:
    """`Client`, or `AsyncClient` driven by an event loop of its own: the same methods, each waiting for its result."""

    def __init__(self, client: Client | AsyncClient) -> None:
        self.client = client
        self._runner = asyncio.Runner() if isinstance(client, AsyncClient) else None

    def predict(self, *arguments: Any, **options: Any) -> Any:
        return self._wait(lambda: self.client.predict(*arguments, **options))

    def predict_many(self, *arguments: Any, **options: Any) -> Any:
        return self._wait(lambda: self.client.predict_many(*arguments, **options))

    def is_ready(self) -> Any:
        return self._wait(self.client.is_ready)

    def budgets(self, **options: Any) -> Any:
        return self._wait(lambda: self.client.budgets(**options))

    @property
    def labels(self) -> Any:
        return self._wait(lambda: self.client.labels)

    def close(self) -> None:
        self._wait(self.client.close)

    def stop(self) -> None:
        """Close the client and its event loop."""
        self.close()
        if self._runner is not None:
            self._runner.close()

    def _wait(self, call: Callable[[], Any]) -> Any:
        if self._runner is None:
            return call()

        async def awaited() -> Any:
            result = call()
            return await result if inspect.isawaitable(result) else result

        return self._runner.run(awaited(), context=contextvars.copy_context())  # else that of the first call


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> Protocol:
    chosen: Protocol = request.param
    return chosen


@pytest.fixture
def url(protocol: Protocol, triton: serve.Server) -> str:
    return triton.http_url if protocol == "http" else triton.grpc_url


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest, protocol: Protocol) -> Iterator[Callable[..., Blocking]]:
    """Make clients of one kind and protocol for any address; each is closed after the test."""
    kind = Client if request.param == "sync" else AsyncClient
    made: list[Blocking] = []

    def make(url: str, **options: Any) -> Blocking:
        made.append(Blocking(kind(url, protocol=protocol, **options)))
        return made[-1]

    yield make
    for blocking in made:
        blocking.stop()


@pytest.fixture
def ask(connect: Callable[..., Blocking], url: str) -> Callable[..., Blocking]:
    """Make clients of the tests' Triton."""
    return lambda **options: connect(url, **options)
