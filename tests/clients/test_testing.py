"""The fake transport: an application's tests run real clients, without a server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import bet_client
import pytest
from bet_client import (
    AsyncClient,
    BetClientError,
    Budget,
    Client,
    ClientStateError,
    ConnectionFailedError,
    DeadlineExceededError,
    Diagnostics,
    InvalidInputError,
    Prediction,
    UnavailableError,
)
from bet_client.testing import INSTANTLY, AsyncFakeTransport, FakeTransport, prediction

from tests.clients.conftest import Blocking

GOOD, BAD, UNSURE = prediction("positive", 0.9), prediction("negative", 0.75), prediction("positive", 0.5, review=True)
ERRORS = [getattr(bet_client, name) for name in bet_client.__all__ if name.endswith("Error")]


@pytest.fixture(params=["sync", "async"])
def fake(request: pytest.FixtureRequest) -> Callable[..., tuple[Any, Blocking]]:
    """A fake transport and a client that asks it."""

    def make(answers: Any, *, retries: int = 2, max_rows: int = 32, **options: Any) -> tuple[Any, Blocking]:
        common: dict[str, Any] = {"timing": INSTANTLY, "retries": retries, "max_rows": max_rows}
        if request.param == "sync":
            transport = FakeTransport(answers, **options)
            client: Any = Client(transport=transport, **common)
        else:
            transport = AsyncFakeTransport(answers, **options)  # type: ignore[assignment]
            client = AsyncClient(transport=transport, **common)  # type: ignore[arg-type]
        return transport, Blocking(client)

    return make


def test_a_function_answers_each_text(fake: Any) -> None:
    transport, client = fake(lambda text: GOOD if "love" in text else BAD)
    assert client.predict("I love it") == GOOD
    assert client.predict_many(["dull", "lovely"]) == [BAD, GOOD]
    assert transport.texts == ["I love it", "dull", "lovely"]
    client.close()
    with pytest.raises(ClientStateError):
        client.predict("closed")


def test_a_list_is_answered_from_front_to_back(fake: Any) -> None:
    _, client = fake([GOOD, BAD, UNSURE])
    assert client.predict("a") == GOOD
    assert client.predict_many(["b", "c"]) == [BAD, UNSURE]
    with pytest.raises(LookupError, match="asked for 1 answers and has 0 left"):
        client.predict("d")


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("given", [lambda error: [error], lambda error: lambda text: error])
def test_every_error_of_the_tree_can_be_raised(fake: Any, error: type[BetClientError], given: Any) -> None:
    _, client = fake(given(error("as a test wants it")))
    with pytest.raises(BetClientError, match="as a test wants it") as caught:
        client.predict("hello")
    assert type(caught.value) is error


@pytest.mark.parametrize("error", [UnavailableError("full"), ConnectionFailedError("broken")])
def test_what_is_sent_again_takes_the_next_answer(fake: Any, error: BetClientError) -> None:
    transport, client = fake([error, error, GOOD, BAD])
    assert client.predict_many(["a", "b"]) == [GOOD, BAD]
    assert transport.texts == ["a", "b"] * 3
    _, client = fake([error, GOOD], retries=0)
    with pytest.raises(type(error)):
        client.predict("a")
    assert client.predict("a") == GOOD


def test_in_a_list_a_refused_text_is_alone_and_any_other_error_is_the_whole_requests(fake: Any) -> None:
    refused, late = InvalidInputError("refused"), DeadlineExceededError("late")
    _, client = fake([GOOD, refused, BAD])
    assert client.predict_many(["a", "b", "c"]) == [GOOD, refused, BAD]
    _, client = fake(lambda text: refused if text == "b" else GOOD)
    assert client.predict_many(["a", "b", "", "c"])[1::2] == [refused, GOOD]
    _, client = fake([GOOD, late])
    assert client.predict_many(["a", "b"]) == [late, late]
    _, client = fake([GOOD, late], max_rows=1)
    assert client.predict_many(["a", "b"]) == [GOOD, late]


def test_what_a_model_tells_of_itself(fake: Any) -> None:
    budget = Budget(0.05, 0.95, 0.3, 0.1, 1000, 0.8, 0.02, 0.04, "")
    _, client = fake([], labels=("no", "maybe", "yes"), budgets=[budget], ready=False)
    assert client.labels == ("no", "maybe", "yes")
    assert client.budgets() == [budget]
    assert client.is_ready() is False


def test_diagnostics_come_on_demand(fake: Any) -> None:
    explained = replace(GOOD, diagnostics=Diagnostics(None, 0.5, 3))
    _, client = fake(lambda text: explained)
    assert client.predict("hello") == GOOD
    assert client.predict("hello", diagnostics=True) == explained


def test_an_answer_in_short() -> None:
    three = prediction("yes", 0.5, labels=("no", "maybe", "yes"))
    assert three.probabilities == {"no": 0.25, "maybe": 0.25, "yes": 0.5}
    assert (UNSURE.review, UNSURE.reason, GOOD.review, GOOD.reason) == (True, "uncertain", False, "")
    for label, probability in (("none", 0.9), ("positive", 0.4), ("positive", 1.1), ("positive", float("nan"))):
        with pytest.raises(ValueError, match="is no answer"):
            prediction(label, probability)
    assert isinstance(prediction("only", 1.0, labels=["only"]), Prediction)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_transport_takes_the_place_of_an_address(kind: Any) -> None:
    with pytest.raises(ValueError, match="beside a transport"):
        kind("localhost:8001", transport=FakeTransport([]))


def test_the_production_code_does_not_load_the_fake() -> None:
    script = "import bet_client, sys; sys.exit('bet_client.testing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
