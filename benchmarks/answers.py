"""The right answer to each text: what the server says when it is asked alone, one text after the other.

Under load, requests are joined into batches and executed beside each other; the answer may not depend on that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bet_client import BetClientError, Client, InvalidInputError, Prediction

from benchmarks.errors import ServerError, TextsError
from benchmarks.texts import Texts

TOLERANCE = 1e-5
"""Of a probability, or relative to a value's interval; joining rows moves a probability by 2e-7 (measured), another
text's answer by far more."""


class WrongAnswer(Exception):
    """An answer under load differs from the one given alone; the message says how."""


def ask_each(client: Client, texts: Texts, progress: Callable[[int], None]) -> tuple[Prediction, ...]:
    """The answer to each text, in order.

    Args:
        progress: called with the number of texts that are done.

    Raises:
        TextsError: if the server refuses a text.
        ServerError: if it does not answer.
    """
    answers = []
    for number, text in enumerate(texts.texts, start=1):
        try:
            answers.append(client.predict(text))
        except InvalidInputError as error:
            raise TextsError(f"{texts.source}: the server refuses text {number} ({text[:40]!r}…): {error}") from error
        except BetClientError as error:
            raise ServerError(f"no answer before the load: {error}") from error
        progress(number)
    return tuple(answers)


def difference(expected: Prediction, answer: Prediction) -> str | None:
    """How `answer` differs from what is expected of it, None where it is right."""
    for name in ("label", "labels", "undecided", "review"):
        right, given = getattr(expected, name), getattr(answer, name)
        if given != right:
            return f"{name} {given!r} instead of {right!r}"
    right_classes, classes = expected.probabilities or {}, answer.probabilities or {}
    if classes.keys() != right_classes.keys():
        return f"classes {sorted(classes)} instead of {sorted(right_classes)}"
    for label, probability in right_classes.items():
        seen = classes[label]
        # Written so that NaN differs from everything.
        if not math.fabs(seen - probability) <= TOLERANCE:
            return f"probability {seen!r} of {label!r} instead of {probability!r}"
    if (expected.value is None) != (answer.value is None):
        return f"value {answer.value!r} instead of {expected.value!r}"
    if expected.value is not None and answer.value is not None:
        low, high = expected.prediction_interval or (0.0, 0.0)
        scale = max(high - low, math.fabs(expected.value))  # float32 resolves no better than the latter
        if not math.fabs(answer.value - expected.value) <= TOLERANCE * scale:
            return f"value {answer.value!r} instead of {expected.value!r}"
    return None


def describe_length(answers: Sequence[Prediction]) -> dict[str, float]:
    """Least, mean and most tokens that the server saw, where it tells."""
    tokens = [answer.tokens for answer in answers if answer.tokens is not None]
    if not tokens:
        return {}
    return {
        "tokens_min": min(tokens),
        "tokens_mean": round(sum(tokens) / len(tokens), 1),
        "tokens_max": max(tokens),
    }
