"""A call's remaining time travels with it, so that Triton does not begin work whose caller has gone."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bet_client import BetClientError, Client, DeadlineExceededError, Prediction
from bet_client import transport as sync_transport
from bet_client import transport_aio as async_transport
from bet_client.deadline import Deadline
from bet_client.settings import check_settings
from bet_client.wire import HEADER_LENGTH, Infer, http_request

import serve
from tests.clients.conftest import Protocol

MODEL = "expiring"


@pytest.fixture
def held(tmp_path: Path, triton: serve.Server) -> Iterator[Callable[[], None]]:
    """The model's one instance, busy until the fixture's value is called."""
    for name in ("entered", "released"):
        os.mkfifo(tmp_path / name)
    answers: list[Prediction] = []

    def occupy() -> None:
        with Client(triton.grpc_url, model=MODEL, timeout=60) as client:
            answers.append(client.predict(f"held {tmp_path}"))

    occupant = threading.Thread(target=occupy)
    occupant.start()
    (tmp_path / "entered").open("rb").close()  # opens once the model is inside

    def release() -> None:
        if occupant.is_alive():
            (tmp_path / "released").open("wb").close()
            occupant.join(30)
            assert answers

    yield release
    release()


def counts(triton: serve.Server) -> tuple[int, int]:
    """Executions so far, and requests that failed."""
    with urllib.request.urlopen(f"http://{triton.http_url}/v2/models/{MODEL}/stats", timeout=10) as answer:
        statistics = json.load(answer)["model_stats"][0]
    return statistics["execution_count"], statistics["inference_stats"]["fail"]["count"]


def test_what_expired_in_the_queue_is_not_executed(
    connect: Any, url: str, triton: serve.Server, held: Callable[[], None]
) -> None:
    client = connect(url, model=MODEL)
    client.labels  # noqa: B018 - so that the next call is the inference alone
    before, failed = counts(triton)
    with pytest.raises(DeadlineExceededError):
        client.predict("nobody waits for this", timeout=0.2)
    held()
    assert isinstance(client.predict("and this one is waited for"), Prediction)
    # The one that was held, and the last: by then the batcher has decided about what lay between them.
    assert counts(triton) == (before + 2, failed + 1)


def waiting(triton: serve.Server) -> bool:
    """Whether a request lies in the model's queue."""
    with urllib.request.urlopen(f"http://{triton.metrics_url}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    found = re.search(rf'^nv_inference_pending_request_count{{model="{MODEL}",[^}}]*}} (\d+)', metrics, re.MULTILINE)
    assert found, metrics
    return int(found[1]) > 0


class Impatient(Deadline):
    """Tells the server less time than the caller will wait, so that it is the server which answers first."""

    def microseconds(self) -> int:
        return 1


@pytest.mark.parametrize("face", ["sync", "async"])
def test_the_servers_word_for_expired_work_is_an_exceeded_deadline(
    protocol: Protocol, url: str, triton: serve.Server, held: Callable[[], None], face: str
) -> None:
    [address] = check_settings(url, protocol, MODEL, 60, 32).addresses
    call, deadline = Infer(MODEL, (b"hello",), ("label",)), Impatient(60, url)

    async def send() -> None:
        transport = async_transport.open_transport(protocol, address)
        try:
            await transport.send(call, deadline)
        finally:
            await transport.close()

    outcomes: list[BetClientError] = []

    def work() -> None:
        try:
            if face == "async":
                asyncio.run(send())
            else:
                sync_transport.open_transport(protocol, address).send(call, deadline)
        except BetClientError as error:
            outcomes.append(error)

    caller = threading.Thread(target=work)
    caller.start()
    while not waiting(triton):
        assert caller.is_alive()
    held()
    caller.join(30)
    assert [type(outcome) for outcome in outcomes] == [DeadlineExceededError]


def test_the_time_left_is_told_in_microseconds_and_never_as_none() -> None:
    now = [100.0]
    deadline = Deadline(2.5, "somewhere", lambda: now[0])
    assert deadline.microseconds() == 2_500_000
    now[0] += 2.5 - 1e-9
    assert deadline.microseconds() == 1
    now[0] += 1
    with pytest.raises(DeadlineExceededError):
        deadline.microseconds()
    request = http_request(Infer("bet", (b"x",), ("label",)), 2_500_000)
    assert request.body is not None
    assert json.loads(request.body[: int(request.headers[HEADER_LENGTH])])["parameters"]["timeout"] == 2_500_000
