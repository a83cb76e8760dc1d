"""Answers as lines for a person: what is answered, how sure it is, whether to look, and how the text begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bet_client.flow import Answer
from bet_client.types import Prediction

SHOWN_CHARACTERS = 50
_NUMBERS = {"probability": 11, "total": 6, "aleatoric": 9, "epistemic": 9}
"""Columns of a model with one label, and their widths."""


class Table:
    """Lines with aligned columns; the first answers decide the width of the labels and bring the heading."""

    def __init__(self, *, diagnostics: bool) -> None:
        self._diagnostics = diagnostics
        self._first_width: int | None = None

    def lines(self, texts: Iterable[Any], answers: list[Answer]) -> Iterator[str]:
        """A line per text; an error takes the place of the columns."""
        predictions = [answer for answer in answers if isinstance(answer, Prediction)]
        if self._first_width is None and predictions:
            yield self._heading(predictions)
        for text, answer in zip(texts, answers, strict=True):
            if isinstance(answer, Prediction):
                yield self._line(answer, beginning(text))
                yield from self._evidence(answer)
            else:
                yield f"{'error':<{self._first_width or 5}}  {answer}  {beginning(text)}".rstrip()

    def _heading(self, predictions: list[Prediction]) -> str:
        first = predictions[0]
        if first.value is not None:
            self._first_width = 12
            return self._join("value".rjust(12), "low".rjust(12), "high".rjust(12), "text")
        if first.labels is not None:
            self._first_width = max(len("labels"), *(len(_listed(answer.labels)) for answer in predictions))
            return self._join("labels", "total".rjust(6), "undecided".ljust(self._undecided_width(first)), "text")
        self._first_width = max(len("label"), *map(len, first.probabilities or ()))
        numbers = (name.rjust(width) for name, width in _NUMBERS.items())
        diagnostics = f"{'dispersion':>10}  {'budget':>6}  {'concentration':<13}" if self._diagnostics else ""
        return self._join("label", *numbers, "review".ljust(10), diagnostics, "text")

    def _line(self, answer: Prediction, text: str) -> str:
        if answer.value is not None:
            interval = answer.prediction_interval or (None, None)
            return self._join(*(_number(value).rjust(12) for value in (answer.value, *interval)), text)
        if answer.labels is not None:
            undecided = _listed(answer.undecided).ljust(self._undecided_width(answer))
            return self._join(_listed(answer.labels), _number(answer.total).rjust(6), undecided, text)
        review = {None: "–", True: answer.reason or "yes", False: "no"}[answer.review]
        values = (answer.probability, answer.total, answer.aleatoric, answer.epistemic)
        numbers = (_number(value).rjust(width) for value, width in zip(values, _NUMBERS.values(), strict=True))
        return self._join(answer.label or "", *numbers, review.ljust(10), self._details(answer), text)

    def _details(self, answer: Prediction) -> str:
        found = answer.diagnostics
        if not self._diagnostics or found is None:
            return ""
        budget = "–" if found.evidence_budget is None else str(found.evidence_budget)
        shown = " ".join(f"{value:.1f}" for value in (found.concentration or {}).values()) or "–"
        return f"{_number(found.order_dispersion):>10}  {budget:>6}  {shown:<13}"

    def _evidence(self, answer: Prediction) -> Iterator[str]:
        """A line of what spoke for the answer and one of what spoke against it, as far as anything did."""
        named = (answer.diagnostics.evidence if answer.diagnostics else None) or ()
        for side, ngrams in (("for", [e for e in named if e.nats > 0]), ("against", [e for e in named if e.nats < 0])):
            if ngrams:
                yield f"  {side:<7}  {', '.join(f'{beginning(e.text)} {e.nats:+.2f}' for e in ngrams)}"

    @staticmethod
    def _undecided_width(answer: Prediction) -> int:
        """As much as all labels take, which any answer may name."""
        return min(30, max(len("undecided"), len(_listed(tuple(answer.probabilities or ())))))

    def _join(self, first: str, *cells: str) -> str:
        return "  ".join(cell for cell in (first.ljust(self._first_width or 0), *cells) if cell).rstrip()


def beginning(text: Any) -> str:
    """The first characters of a text on one line, with nothing in them that could command a terminal."""
    line = " ".join(str(text)[: 4 * SHOWN_CHARACTERS].split())
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"


def _listed(labels: tuple[str, ...] | None) -> str:
    return ", ".join(labels or ()) or "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
