"""What a text gets, the same by all four ways: sync and async, over gRPC and HTTP."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest
from bet_client import BetClientError, Diagnostics, InvalidInputError, NgramEvidence, Prediction

REQUIRED = ("label", "probabilities")
OPTIONAL = ("total", "aleatoric", "epistemic", "review", "reason", "prediction_set", "tokens", "truncated")
DIAGNOSTICS = ("concentration", "order_dispersion", "evidence_budget", "evidence_ngrams", "evidence_nats")

Ask = Callable[..., Any]


def expected_probabilities(text: str) -> Any:
    """What the stand-in model answers."""
    positive = (zlib.crc32(text.encode()) % 999 + 0.5) / 1000
    return {"negative": pytest.approx(1 - positive, abs=1e-6), "positive": pytest.approx(positive, abs=1e-6)}


def test_every_field_of_the_contract_arrives(ask: Ask) -> None:
    answer = ask().predict("unsure about this one")
    assert isinstance(answer, Prediction)
    assert answer.probabilities == expected_probabilities("unsure about this one")
    assert answer.label == max(answer.probabilities, key=answer.probabilities.__getitem__)
    assert answer.probability == max(answer.probabilities.values())
    assert (answer.total, answer.aleatoric, answer.epistemic) == (0.5, 0.375, 0.125)
    assert answer.review is True
    assert answer.reason == "uncertain"
    assert answer.prediction_set == ("negative", "positive")
    assert answer.tokens == len("unsure about this one")
    assert answer.truncated is False
    assert answer.diagnostics is None


def test_diagnostics_come_on_demand(ask: Ask) -> None:
    answer = ask().predict("hello", diagnostics=True)
    scaled: Any = {label: pytest.approx(10 * p, rel=1e-5) for label, p in answer.probabilities.items()}
    evidence = (NgramEvidence("très good", 1.5), NgramEvidence("##bad", -0.25))
    assert answer.diagnostics == Diagnostics(scaled, 0.25, zlib.crc32(b"hello") & 0x7FFF, evidence)


def test_only_needed_outputs_are_asked_for(ask: Ask) -> None:
    client = ask()
    # The stand-in spells out in `reason` what was asked of it.
    without = client.predict("outputs?").reason.split()
    assert without == [
        "label",
        "probabilities",
        "total",
        "aleatoric",
        "epistemic",
        "review",
        "reason",
        "prediction_set",
        "tokens",
        "truncated",
    ]
    asked = client.predict("outputs?", diagnostics=True).reason.split()
    assert asked == [*without, *DIAGNOSTICS]


def test_outputs_that_the_model_does_not_declare_are_none(ask: Ask) -> None:
    answer = ask(model="plain").predict("hello", diagnostics=True)
    assert answer.probabilities == expected_probabilities("hello")
    assert (answer.total, answer.tokens) == (0.5, 5)
    assert answer.aleatoric is answer.epistemic is answer.review is answer.reason is answer.prediction_set is None
    assert answer.diagnostics == Diagnostics(None, None, None, None)


def test_labels_come_from_the_model_in_class_order(ask: Ask) -> None:
    assert ask().labels == ("negative", "positive")


@pytest.mark.parametrize(
    "text",
    [
        "abc\0\0",
        "good\0bad",
        "\0",
        "👩‍👩‍👧‍👦",
        "e\u0301",
        "\u00e9",
        "\u202eabc",
        "[SEP] [UNK]",
        "a\r\nb",
        " x ",
        "\ufeffx",
    ],
)
def test_every_byte_of_a_text_arrives(ask: Ask, text: str) -> None:
    answer = ask().predict(text)
    assert answer.tokens == len(text.encode())  # the stand-in counts bytes
    assert answer.probabilities == expected_probabilities(text)


@pytest.mark.parametrize("size", [0, 1, 2, 33, 1000])
def test_a_list_gets_as_many_answers_in_its_order(ask: Ask, size: int) -> None:
    texts = [f"review number {number}" for number in range(size)]
    answers = ask().predict_many(texts)
    assert [answer.probabilities for answer in answers] == [expected_probabilities(text) for text in texts]


def test_any_iterable_of_texts_will_do(ask: Ask) -> None:
    assert len(ask().predict_many(text for text in ("a", "b"))) == 2


def test_a_bare_string_is_no_list(ask: Ask) -> None:
    with pytest.raises(TypeError, match="for one text call predict"):
        ask().predict_many("a text")


def rows_per_request(answers: list[Any]) -> list[int]:
    """With how many rows each answered text travelled; the stand-in says so in `reason`."""
    return [int(answer.reason or 0) for answer in answers if isinstance(answer, Prediction)]


@pytest.mark.parametrize(
    ("model", "max_rows", "requests"),
    [("bet", 32, [32, 32, 32, 4]), ("bet", 50, [50, 50]), ("bet", 1000, [64, 36]), ("narrow", 32, [4] * 25)],
)
def test_rows_travel_together_up_to_the_lower_limit(ask: Ask, model: str, max_rows: int, requests: list[int]) -> None:
    answers = ask(model=model, max_rows=max_rows).predict_many([f"rows? {number}" for number in range(100)])
    assert rows_per_request(answers) == [rows for rows in requests for _ in range(rows)]


def test_long_texts_travel_in_several_requests(ask: Ask) -> None:
    texts = ["rows? " + "x" * 3_000_000, "rows? " + "y" * 3_000_000, "rows? z"]
    answers = ask(model="unlimited").predict_many(texts)
    assert [answer.tokens for answer in answers] == [len(text) for text in texts]
    assert rows_per_request(answers) == [1, 2, 2]


def test_each_bad_item_is_its_own_error_and_neighbours_are_answered(ask: Ask) -> None:
    texts: list[Any] = ["a", "", "b", "boom", " \n", "c", None, "\ud800", "boom", "d", b"bytes", "y" * 65_537]
    answers = ask().predict_many(texts)
    bad = {place: answer for place, answer in enumerate(answers) if isinstance(answer, BetClientError)}
    assert {type(error) for error in bad.values()} == {InvalidInputError}
    assert {place: str(error) for place, error in bad.items()} == {
        1: "text is empty",
        3: "text 'boom' is refused",
        4: "text is blank",
        6: "text is a NoneType, not a str",
        7: "text has a lone surrogate, '\\ud800' at position 0, that UTF-8 cannot carry; decode the source with its "
        "right encoding",
        8: "text 'boom' is refused",
        10: "text is a bytes, not a str",
        11: "text has 65,537 bytes in UTF-8, and model 'bet' takes at most 65,536; send a part of it",
    }
    for place in (0, 2, 5, 9):
        assert answers[place].probabilities == expected_probabilities(texts[place])


def test_only_the_request_with_a_bad_row_falls_apart(ask: Ask) -> None:
    answers = ask(max_rows=10).predict_many([*(f"rows? {number}" for number in range(19)), "boom"])
    assert isinstance(answers[-1], InvalidInputError)
    assert rows_per_request(answers) == [10] * 10 + [1] * 9


def test_a_bad_text_alone_is_raised(ask: Ask) -> None:
    client = ask()
    for text in ("", " \t", "boom", "\udfff"):
        with pytest.raises(InvalidInputError):
            client.predict(text)
    assert client.predict("and the next is answered").label in client.labels


@pytest.mark.parametrize("size", [3_900_000, 4_100_000, 4_300_000, 65_000_000])
def test_the_request_limit_is_the_same_by_every_way_and_harms_nobody(ask: Ask, size: int) -> None:
    client = ask(model="unlimited")
    text = "x" * size
    if size <= 4 * 2**20:
        assert client.predict(text).tokens == size
    else:
        with pytest.raises(InvalidInputError, match=r"bytes in UTF-8, and model 'unlimited' takes at most 4,194,304"):
            client.predict(text)
    assert client.predict("still there").tokens == 11


def test_ready_where_the_model_is(ask: Ask) -> None:
    assert ask().is_ready() is True
    assert ask(model="nobody").is_ready() is False
