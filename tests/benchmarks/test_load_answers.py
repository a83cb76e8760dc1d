"""Which answers under load are wrong, for models of every shape."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
from bet_client import Prediction

from benchmarks.answers import difference

NOTHING: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Prediction))
ONE = Prediction(**{**NOTHING, "label": "a", "probabilities": {"a": 0.9, "b": 0.1}, "review": False})
SEVERAL = Prediction(
    **{**NOTHING, "labels": ("a",), "undecided": ("b",), "probabilities": {"a": 0.9, "b": 0.4}, "review": True}
)
NUMBER = Prediction(**{**NOTHING, "value": 0.25, "prediction_interval": (-9.75, 10.25)})


@pytest.mark.parametrize(
    ("expected", "changes", "said"),
    [
        (ONE, {"label": "b"}, "label 'b' instead of 'a'"),
        (ONE, {"review": True}, "review True instead of False"),
        (ONE, {"probabilities": {"a": 0.9001, "b": 0.0999}}, "probability 0.9001 of 'a' instead of 0.9"),
        (ONE, {"probabilities": None}, r"classes \[\] instead of \['a', 'b'\]"),
        (SEVERAL, {"labels": ("a", "b")}, r"labels \('a', 'b'\) instead of \('a',\)"),
        (SEVERAL, {"undecided": ()}, r"undecided \(\) instead of \('b',\)"),
        (SEVERAL, {"probabilities": {"a": 0.9, "b": math.nan}}, "probability nan of 'b'"),
        (NUMBER, {"value": 0.251}, "value 0.251 instead of 0.25"),
        (NUMBER, {"value": math.nan}, "value nan instead of 0.25"),
        (NUMBER, {"value": None}, "value None instead of 0.25"),
    ],
)
def test_a_difference_is_told(expected: Prediction, changes: dict[str, Any], said: str) -> None:
    assert difference(expected, expected) is None
    found = difference(expected, dataclasses.replace(expected, **changes))
    assert found is not None
    assert re.search(said, found)


def test_rounding_is_no_difference() -> None:
    assert difference(NUMBER, dataclasses.replace(NUMBER, value=0.2501)) is None  # of an interval of 20
    assert difference(ONE, dataclasses.replace(ONE, probabilities={"a": 0.900005, "b": 0.099995})) is None
