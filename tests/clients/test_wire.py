"""The pure parts: how lists are cut, what a configuration must say, which answers are believed."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from bet_client import IncompatibleModelError, InvalidInputError, NgramEvidence, Prediction
from bet_client.contract import ModelContract, read_contract
from bet_client.wire import Infer, encode_text, http_request, read_predictions, split_rows
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.binary(max_size=30)), st.integers(1, 7), st.integers(1, 60))
def test_cutting_keeps_all_rows_in_order_within_the_limits_and_no_smaller_than_need_be(
    texts: list[bytes], max_rows: int, max_bytes: int
) -> None:
    rows = list(enumerate(texts))
    chunks = list(split_rows(rows, max_rows, max_bytes))
    assert [row for chunk in chunks for row in chunk] == rows
    for chunk in chunks:
        assert 1 <= len(chunk) <= max_rows
        assert len(chunk) == 1 or sum(len(raw) for _, raw in chunk) <= max_bytes
    for chunk, following in itertools.pairwise(chunks):
        joined = [*chunk, following[0]]
        assert len(joined) > max_rows or sum(len(raw) for _, raw in joined) > max_bytes


@given(st.text())
def test_a_text_is_encoded_whole_or_refused_for_being_blank(text: str) -> None:
    try:
        assert encode_text(text).decode("utf-8") == text
        assert text.strip()
    except InvalidInputError:
        assert not text.strip() or any("\ud800" <= character <= "\udfff" for character in text)


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1))
def test_a_model_name_stays_inside_its_place_in_the_path(model: str) -> None:
    path = http_request(Infer(model, (b"x",), ("label",))).path
    assert path.split("/")[:3] == ["", "v2", "models"]
    assert len(path.split("/")) == 5
    assert path.isascii()
    assert "?" not in path
    assert "#" not in path


def config(**changes: Any) -> dict[str, Any]:
    """A configuration as Triton gives it, with some keys replaced."""
    base: dict[str, Any] = {
        "max_batch_size": 64,
        "input": [{"name": "text"}],
        "output": [{"name": "label"}, {"name": "probabilities"}],
        "parameters": {"labels": {"string_value": '["a", "b"]'}, "max_text_bytes": {"string_value": "100"}},
    }
    return base | changes


def parameters(labels: str) -> dict[str, Any]:
    return {"labels": {"string_value": labels}}


def test_a_configuration_tells_labels_and_limits() -> None:
    assert read_contract("bet", config()) == ModelContract(
        "bet", ("a", "b"), frozenset({"label", "probabilities"}), 64, 100
    )


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"input": [{"name": "input_ids"}]}, r"its inputs are \['input_ids'\]"),
        ({"output": [{"name": "label"}]}, "it has no output 'probabilities'"),
        ({"max_batch_size": 0}, "it takes no batches"),
        ({"parameters": {}}, "its parameter 'labels' is None"),
        ({"parameters": parameters('{"a": 1}')}, "not a JSON list of names"),
        ({"parameters": parameters("[]")}, "not a JSON list of names"),
        ({"parameters": parameters("[1, 2]")}, "not a JSON list of names"),
        ({"parameters": parameters("[")}, "cannot be read"),
        ({"input": None}, "cannot be read"),
    ],
)
def test_a_model_of_another_kind_is_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(IncompatibleModelError, match=fault):
        read_contract("bet", config(**changes))


@pytest.mark.parametrize(
    ("label", "probabilities"),
    [
        ([[b"a"]], [[0.2, 0.8]]),  # not the most probable class under these names
        ([[b"c"]], [[0.8, 0.2]]),  # no class of the model
        ([[b"a"]], [[0.8, 0.1, 0.1]]),  # another number of classes
        ([[b"a"], [b"a"]], [[0.8, 0.2]]),  # another number of rows
        ([[b"a"]], [[0.8, float("nan")]]),
        ([[b"a"]], [[float("nan"), 0.2]]),
        (None, [[0.8, 0.2]]),
    ],
)
def test_answers_that_do_not_fit_the_model_are_not_believed(label: Any, probabilities: Any) -> None:
    answers = {"probabilities": np.array(probabilities, np.float32)}
    if label is not None:
        answers["label"] = np.array(label, np.object_)
    contract = read_contract("bet", config())
    with pytest.raises(IncompatibleModelError):
        read_predictions(answers, contract, rows=1, outputs=("label", "probabilities"), diagnostics=False)


def test_equally_probable_classes_are_no_contradiction() -> None:
    answers: dict[str, Any] = {"label": np.array([[b"b"]], np.object_), "probabilities": np.array([[0.5, 0.5]])}
    [answer] = read_predictions(
        answers, read_contract("bet", config()), rows=1, outputs=("label", "probabilities"), diagnostics=False
    )
    assert answer.label == "b"
    assert answer.probability == 0.5
    assert json.dumps(answer.probabilities) == '{"a": 0.5, "b": 0.5}'


SEVERAL = {"output": [{"name": name} for name in ("probabilities", "assigned", "total", "undecided", "review")]}
NUMBER = {"output": [{"name": "value"}, {"name": "prediction_interval"}]}


def read(declared: dict[str, Any], **answers: Any) -> Prediction:
    contract = read_contract("bet", config(**declared))
    given = {name: np.array([value]) for name, value in answers.items()}
    [prediction] = read_predictions(given, contract, rows=1, outputs=tuple(given), diagnostics=False)
    return prediction


ONE_LABEL = {"output": [{"name": name} for name in ("label", "probabilities", "evidence_ngrams", "evidence_nats")]}


def read_evidence(ngrams: list[bytes], nats: list[float]) -> Any:
    contract = read_contract("bet", config(**ONE_LABEL))
    answers = {
        "label": np.array([[b"a"]], np.object_),
        "probabilities": np.array([[0.75, 0.25]]),
        "evidence_ngrams": np.array([ngrams], np.object_),
        "evidence_nats": np.array([nats]),
    }
    [answer] = read_predictions(answers, contract, rows=1, outputs=tuple(answers), diagnostics=True)
    assert answer.diagnostics is not None
    return answer.diagnostics.evidence


@pytest.mark.parametrize("ngrams", [[b"a", b"", b"b", b" c", b"", b""], [b"a\nb c\n"]])
def test_ngrams_come_in_pieces_or_a_line_each_and_what_is_empty_is_left_out(ngrams: list[bytes]) -> None:
    assert read_evidence(ngrams, [0.5, -0.25, 0.0]) == (NgramEvidence("a", 0.5), NgramEvidence("b c", -0.25))
    assert read_evidence([b"", b"", b""], [0.0, 0.0, 0.0]) == ()


@pytest.mark.parametrize(
    ("ngrams", "nats"), [([b"a", b"b"], [0.5, 0.25, 0.125]), ([b"a\nb"], [0.5, 0.25, 0.125]), ([b"a"], []), ([], [0.5])]
)
def test_ngrams_that_do_not_fit_their_numbers_are_not_believed(ngrams: list[bytes], nats: list[float]) -> None:
    with pytest.raises(IncompatibleModelError):
        read_evidence(ngrams, nats)


def test_any_number_of_labels() -> None:
    answer = read(
        SEVERAL, probabilities=[0.9, 0.5], assigned=[True, True], total=[0.6], undecided=[False, True], review=[True]
    )
    assert (answer.labels, answer.undecided, answer.review) == (("a", "b"), ("b",), True)
    assert answer.probabilities == {"a": 0.9, "b": 0.5}
    assert answer.label is answer.value is answer.prediction_set is None
    with pytest.raises(AttributeError, match=r"any number of labels; read `labels` and `probabilities`"):
        _ = answer.probability
    assert read(SEVERAL, probabilities=[0.1, 0.2], assigned=[False, False]).labels == ()


def test_a_number_and_its_interval() -> None:
    answer = read(NUMBER, value=[2.5], prediction_interval=[1.5, 3.5])
    assert (answer.value, answer.prediction_interval) == (2.5, (1.5, 3.5))
    assert answer.label is answer.probabilities is answer.labels is answer.review is None
    with pytest.raises(AttributeError, match=r"a number; read `value`"):
        _ = answer.probability


@pytest.mark.parametrize(
    ("declared", "answers"),
    [
        (SEVERAL, {"probabilities": [0.9, 0.4], "assigned": [True, True]}),  # not what the probabilities say
        (SEVERAL, {"probabilities": [float("nan"), 0.4], "assigned": [False, False]}),
        (SEVERAL, {"probabilities": [0.9, 0.4, 0.1], "assigned": [True, False, False]}),  # another number of labels
        (NUMBER, {"value": [float("inf")], "prediction_interval": [0.0, 1.0]}),
        (NUMBER, {"value": [0.5], "prediction_interval": [float("nan"), 1.0]}),
        (NUMBER, {"value": [0.5], "prediction_interval": [0.0, 0.5, 1.0]}),
    ],
)
def test_answers_of_the_other_shapes_that_contradict_themselves_are_not_believed(
    declared: dict[str, Any], answers: dict[str, Any]
) -> None:
    with pytest.raises(IncompatibleModelError):
        read(declared, **answers)


def test_the_outputs_asked_for_are_those_of_the_shape_each_once() -> None:
    several, number = (read_contract("bet", config(**declared)) for declared in (SEVERAL, NUMBER))
    assert several.wanted(diagnostics=True) == ("probabilities", "assigned", "total", "review", "undecided")
    assert number.wanted(diagnostics=True) == ("value", "prediction_interval")


@pytest.mark.parametrize(
    ("outputs", "fault"),
    [
        (("assigned",), "it has no output 'probabilities'"),
        (("prediction_interval",), "it has no output 'label' and no output 'probabilities'"),
    ],
)
def test_what_is_missing_of_the_nearest_shape_is_named(outputs: tuple[str, ...], fault: str) -> None:
    with pytest.raises(IncompatibleModelError, match=fault):
        read_contract("bet", config(output=[{"name": name} for name in outputs]))
