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
"""Of a probability; joining rows moves it by 2e-7 (measured), another text's answer by far more."""


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
    if answer.label != expected.label:
        return f"label {answer.label!r} instead of {expected.label!r}"
    if answer.review != expected.review:
        return f"review {answer.review} instead of {expected.review}"
    if answer.probabilities.keys() != expected.probabilities.keys():
        return f"classes {sorted(answer.probabilities)} instead of {sorted(expected.probabilities)}"
    for label, probability in expected.probabilities.items():
        seen = answer.probabilities[label]
        # Written so that NaN differs from everything.
        if not math.fabs(seen - probability) <= TOLERANCE:
            return f"probability {seen!r} of {label!r} instead of {probability!r}"
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
