"""What goes wrong is the same class by all four ways, at once or by the deadline, and says what to do."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bet_client import (
    AsyncClient,
    BetClientError,
    Client,
    ClientStateError,
    ConnectionFailedError,
    DeadlineExceededError,
    IncompatibleModelError,
    InvalidInputError,
    ModelNotFoundError,
    Prediction,
    ServerError,
    TransportError,
    UnavailableError,
    transport,
    transport_aio,
)

import serve
from tests.clients.conftest import Blocking, Protocol, load_again, model_config, write_model
from tests.clients.wire_servers import Relay, always, http_answer, once, read_request, serving, silent, trickle

Ask = Callable[..., Any]


def kinds(answers: list[Any]) -> list[type]:
    return [type(answer) for answer in answers]


def test_the_tree_is_as_drawn() -> None:
    for kind in (InvalidInputError, TransportError, ServerError, ClientStateError):
        assert kind.__bases__ == (BetClientError,)
    for kind in (ConnectionFailedError, DeadlineExceededError):
        assert kind.__bases__ == (TransportError,)
    for kind in (UnavailableError, ModelNotFoundError, IncompatibleModelError):
        assert kind.__bases__ == (ServerError,)


def test_an_unknown_model_is_named(ask: Ask) -> None:
    client = ask(model="nobody")
    with pytest.raises(ModelNotFoundError, match="nobody"):
        client.predict("hello")
    with pytest.raises(ModelNotFoundError):
        client.labels  # noqa: B018 - reading it is the call
    assert kinds(client.predict_many(["a", "", "b"])) == [ModelNotFoundError, InvalidInputError, ModelNotFoundError]


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "no-such-host.invalid:8001"])
def test_nobody_there_is_said_at_once(connect: Ask, address: str) -> None:
    url = address.format(port=serve.free_port())
    client = connect(url)
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError, match=url):
        client.predict("hello")
    assert kinds(client.predict_many(["a", "b"])) == [ConnectionFailedError] * 2
    assert client.is_ready() is False
    assert time.monotonic() - started < 5


def test_the_other_protocols_port_is_recognised(connect: Ask, protocol: Protocol, triton: serve.Server) -> None:
    wrong = triton.grpc_url if protocol == "http" else triton.http_url
    with pytest.raises(ConnectionFailedError, match="8001 for gRPC, 8000 for HTTP"):
        connect(wrong).predict("hello")


def test_a_connection_that_breaks_is_a_failed_connection(connect: Ask) -> None:
    with serving(lambda connection: None) as url, pytest.raises(ConnectionFailedError):
        connect(url).predict("hello")


def test_the_caller_is_free_at_its_deadline(ask: Ask) -> None:
    client = ask(timeout=30)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"within 0\.2 s"):
        client.predict("slow 1", timeout=0.2)
    assert time.monotonic() - started < 0.8
    assert isinstance(client.predict("and on it goes"), Prediction)


def test_a_silent_server_costs_no_more_than_the_timeout(connect: Ask) -> None:
    with serving(silent) as url:
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            connect(url, timeout=0.3).predict("hello")
        assert connect(url, timeout=0.3).is_ready() is False
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_trickling_http_server_costs_no_more_than_the_timeout(kind: str) -> None:
    with serving(trickle) as url:
        client = Blocking((Client if kind == "sync" else AsyncClient)(url, protocol="http", timeout=0.3))
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            client.predict("hello")
        assert time.monotonic() - started < 1
        client.stop()


def test_one_deadline_covers_a_whole_list_and_keeps_what_was_answered(ask: Ask) -> None:
    client = ask(max_rows=1)
    client.predict("warm")
    started = time.monotonic()
    answers = client.predict_many(["first", *(f"slow 0.2 {number}" for number in range(8))], timeout=0.5)
    assert time.monotonic() - started < 1.2
    assert kinds(answers[:2]) == [Prediction, Prediction]
    assert kinds(answers[-5:]) == [DeadlineExceededError] * 5


def test_a_full_queue_is_unavailable_at_once(ask: Ask, triton: serve.Server) -> None:
    client = ask(model="busy", retries=0)
    _until(lambda: _fault(client, "free?"), Prediction)
    seen_enough = threading.Event()
    occupants = [
        threading.Thread(target=_occupy, args=(triton.grpc_url, f"slow 0.7 {number}", seen_enough))
        for number in range(4)
    ]
    for occupant in occupants:
        occupant.start()
    try:
        assert "queue" in str(_until(lambda: _fault(client, "quick"), UnavailableError))
        assert "queue" in str(_until(lambda: client.predict_many(["quick"], timeout=0.15)[0], UnavailableError))
    finally:
        seen_enough.set()
        for occupant in occupants:
            occupant.join()


def _occupy(url: str, text: str, seen_enough: threading.Event) -> None:
    """Keep a place of the queue for as long as it takes: a busy machine may need longer than one request."""
    with Client(url, model="busy") as client:
        while not seen_enough.is_set():
            client.predict_many([text])


def _fault(client: Any, text: str) -> Any:
    try:
        return client.predict(text, timeout=0.15)  # much less than the queue takes
    except (UnavailableError, DeadlineExceededError) as error:
        return error


def _until(look: Callable[[], Any], kind: type) -> Any:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        seen = look()
        if isinstance(seen, kind):
            return seen
    raise AssertionError(f"no {kind.__name__} was seen within 5 s")


def test_a_model_that_breaks_is_a_server_error_with_its_words(ask: Ask) -> None:
    client = ask(max_rows=1)
    with pytest.raises(ServerError, match="the model broke") as caught:
        client.predict("broken")
    assert type(caught.value) is ServerError
    assert kinds(client.predict_many(["a", "broken", "b"])) == [Prediction, ServerError, Prediction]


def test_labels_that_do_not_fit_the_answers_are_noticed(ask: Ask) -> None:
    client = ask(model="mislabelled")
    assert client.labels == ("good", "bad")
    with pytest.raises(IncompatibleModelError, match="'labels' does not fit"):
        client.predict("hello")


def test_a_model_of_another_kind_is_refused_with_its_faults(ask: Ask) -> None:
    with pytest.raises(IncompatibleModelError, match="no output 'label' and no output 'probabilities'; its parameter"):
        ask(model="unlabelled").predict("hello")


def test_a_replaced_model_is_looked_at_again(ask: Ask, triton: serve.Server, stand_ins: Path) -> None:
    client = ask(model="changing")
    assert client.predict("hello").review is False
    outputs = ("label", "probabilities", "total")
    write_model(stand_ins, "changing", model_config("changing", outputs))
    load_again(triton, "changing")
    try:
        replaced = client.predict("hello")
        assert (replaced.review, replaced.total) == (None, 0.5)
    finally:
        write_model(stand_ins, "changing", model_config("changing"))
        load_again(triton, "changing")


def test_a_closed_client_says_so(ask: Ask) -> None:
    client = ask()
    client.predict("hello")
    client.close()
    client.close()
    for call in (lambda: client.predict("hello"), lambda: client.predict_many([]), client.is_ready):
        with pytest.raises(ClientStateError, match="closed"):
            call()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "5"])
def test_a_timeout_is_a_positive_finite_number(ask: Ask, timeout: Any) -> None:
    with pytest.raises(ValueError, match="positive, finite number of seconds"):
        ask().predict("hello", timeout=timeout)


@pytest.mark.parametrize("face", ["sync", "async"])
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (http_answer(b"<html>nginx</html>"), ServerError),
        (http_answer(b"<html>gone</html>", "502 Bad Gateway"), ServerError),
        (http_answer(b"", "500 Internal Server Error"), ServerError),
        (http_answer(b"slow down", "429 Too Many Requests"), UnavailableError),
        (http_answer(b"upstream timeout", "504 Gateway Timeout"), DeadlineExceededError),
        (http_answer(b"", "413 Payload Too Large"), InvalidInputError),
        (http_answer(b'{"error": "Request for unknown model: \'bet\'"}', "400 Bad Request"), ModelNotFoundError),
        (http_answer(b'{"input": 3}'), IncompatibleModelError),
        (b"220 mail.example ESMTP\r\n", ConnectionFailedError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", ConnectionFailedError),
    ],
)
def test_what_stands_between_client_and_triton_is_told_by_its_status(answer: bytes, kind: type, face: str) -> None:
    with serving(once(answer)) as url:
        client = Blocking((Client if face == "sync" else AsyncClient)(url, protocol="http", timeout=2))
        with pytest.raises(kind) as caught:
            client.predict("hello")
        assert type(caught.value) is kind
        client.stop()


@pytest.mark.parametrize(
    "body",
    [
        b'{"outputs": [{"name": "label"}]}',
        b'{"outputs": [{"name": "label", "datatype": "BYTES", "shape": [5, 1], "data": ["a"]}]}',
        b"[]",
        b"<html>",
    ],
)
def test_an_inference_answer_that_is_not_tritons_is_a_server_error(body: bytes) -> None:
    config = {
        "input": [{"name": "text"}],
        "output": [{"name": "label"}, {"name": "probabilities"}],
        "max_batch_size": 8,
        "parameters": {"labels": {"string_value": '["a", "b"]'}},
    }

    def answer(connection: socket.socket) -> None:
        while request := read_request(connection):
            connection.sendall(http_answer(json.dumps(config).encode() if request.startswith(b"GET") else body))

    refused = pytest.raises(ServerError, match="not Triton's")
    with serving(answer) as url, Client(url, protocol="http") as client, refused:
        client.predict("hello")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_grpc_connection_that_died_silently_is_noticed_and_the_call_made_on_another(
    kind: Any, triton: serve.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KEEPALIVE_SECONDS", "KEEPALIVE_TIMEOUT"):
        monkeypatch.setattr(transport, name, 0.2)
    relay = Relay(triton.grpc_url)
    with relay.serving() as url:
        client = Blocking(kind(url, timeout=20))
        assert isinstance(client.predict("alive"), Prediction)
        relay.freeze()
        assert isinstance(client.predict("the connection is dead"), Prediction)
        client.stop()


def test_triton_bears_the_pings_of_calls_that_take_long(triton: serve.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "KEEPALIVE_SECONDS", 0.1)  # a call of a second is then as one of five minutes
    with Client(triton.grpc_url, retries=0) as client:
        assert [type(client.predict(f"slow 1 {number}")) for number in range(3)] == [Prediction] * 3


def test_a_connection_that_the_server_closed_meanwhile_is_not_used_again() -> None:
    closed = threading.Semaphore(0)

    def answer(connection: socket.socket) -> None:
        once(http_answer(b""))(connection)
        connection.shutdown(socket.SHUT_RDWR)
        closed.release()

    with serving(answer) as url, Client(url, protocol="http", timeout=2) as client:
        for _ in range(5):
            assert client.is_ready()
            assert closed.acquire(timeout=5)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(("idle_seconds", "opened"), [(60.0, 1), (1e-9, 5)])
def test_a_connection_is_kept_between_calls_but_not_for_long(
    kind: Any, idle_seconds: float, opened: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (transport, transport_aio):
        monkeypatch.setattr(module, "IDLE_SECONDS", idle_seconds)
    connections = []

    def answer(connection: Any) -> None:
        connections.append(connection)
        always(http_answer(b""))(connection)

    with serving(answer) as url:
        client = Blocking(kind(url, protocol="http", timeout=2))
        assert [client.is_ready() for _ in range(5)] == [True] * 5
        client.stop()
    assert len(connections) == opened
