"""What the command line prints for models of every shape."""

from __future__ import annotations

import dataclasses
from typing import Any

from bet_client import InvalidInputError, Prediction
from bet_client.table import Table

NOTHING: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Prediction))


def several(labels: tuple[str, ...], undecided: tuple[str, ...], total: float) -> Prediction:
    probabilities = {"anger": 0.1, "joy": 0.9, "neither": 0.2}
    return Prediction(
        **{**NOTHING, "labels": labels, "undecided": undecided, "probabilities": probabilities, "total": total}
    )


def test_several_labels_and_the_undecided_ones_stand_under_their_headings() -> None:
    answers = [several(("joy", "neither"), ("neither",), 0.5), InvalidInputError("text is empty"), several((), (), 0)]
    heading, first, bad, second = Table(diagnostics=False).lines(["hello", "", "dull"], answers)
    assert heading.split() == ["labels", "total", "undecided", "text"]
    assert first.split() == ["joy,", "neither", "0.500", "neither", "hello"]
    assert second.split() == ["–", "0.000", "–", "dull"]
    assert heading.index("text") == first.index("hello") == second.index("dull")
    assert heading.index("undecided") == first.rindex("neither")
    assert bad.split(maxsplit=1) == ["error", "text is empty"]


def test_a_number_stands_beside_its_interval() -> None:
    answer = Prediction(**{**NOTHING, "value": -1.25, "prediction_interval": (-3.5, 1.0)})
    heading, line = Table(diagnostics=True).lines(["hello"], [answer])
    assert heading.split() == ["value", "low", "high", "text"]
    assert line.split() == ["-1.250", "-3.500", "1.000", "hello"]
    assert heading.index("text") == line.index("hello")


def test_a_number_alone_has_dashes() -> None:
    _, line = Table(diagnostics=False).lines(["hello"], [Prediction(**{**NOTHING, "value": 3.0})])
    assert line.split() == ["3.000", "–", "–", "hello"]
