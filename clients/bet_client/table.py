"""Answers as lines for a person: label, probability, uncertainties, whether to look, and how the text begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bet_client.flow import Answer
from bet_client.types import Prediction

SHOWN_CHARACTERS = 50


class Table:
    """Lines with aligned columns; the first answers decide the width of the labels and bring the heading."""

    def __init__(self, *, diagnostics: bool) -> None:
        self._diagnostics = diagnostics
        self._label_width: int | None = None

    def lines(self, texts: Iterable[Any], answers: list[Answer]) -> Iterator[str]:
        """A line per text; an error takes the place of the columns."""
        predictions = [answer for answer in answers if isinstance(answer, Prediction)]
        if self._label_width is None and predictions:
            self._label_width = max(len("label"), *map(len, predictions[0].probabilities))
            yield self._join(
                "label", "probability", "total", "aleatoric", "epistemic", "review", self._heading(), "text"
            )
        for text, answer in zip(texts, answers, strict=True):
            if isinstance(answer, Prediction):
                yield self._line(answer, beginning(text))
            else:
                yield f"{'error':<{self._label_width or 5}}  {answer}  {beginning(text)}".rstrip()

    def _line(self, answer: Prediction, text: str) -> str:
        review = {None: "–", True: answer.reason or "yes", False: "no"}[answer.review]
        numbers = (_number(value) for value in (answer.probability, answer.total, answer.aleatoric, answer.epistemic))
        details = ""
        if self._diagnostics and answer.diagnostics is not None:
            found = answer.diagnostics
            concentration = (found.concentration or {}).values()
            budget = "–" if found.evidence_budget is None else str(found.evidence_budget)
            shown = " ".join(f"{value:.1f}" for value in concentration) or "–"
            details = f"{_number(found.order_dispersion):>10}  {budget:>6}  {shown:<13}"
        return self._join(answer.label, *numbers, review, details, text)

    def _heading(self) -> str:
        return f"{'dispersion':>10}  {'budget':>6}  {'concentration':<13}" if self._diagnostics else ""

    def _join(self, label: str, *columns: str) -> str:
        *numbers, review, details, text = columns
        aligned = [number.rjust(width) for number, width in zip(numbers, (11, 6, 9, 9), strict=True)]
        cells = [label.ljust(self._label_width or 0), *aligned, review.ljust(10), details, text]
        return "  ".join(cell for cell in cells if cell).rstrip()


def beginning(text: Any) -> str:
    """The first characters of a text on one line, with nothing in them that could command a terminal."""
    line = " ".join(str(text)[: 4 * SHOWN_CHARACTERS].split())
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
