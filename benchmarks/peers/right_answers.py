"""What a system must answer to each text, and the texts of an exact length to ask it for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.errors import TextsError


@dataclass(frozen=True)
class RightAnswers:
    """What a server must say of each text.

    Attributes:
        labels: in class order.
        probabilities: [texts, classes].
    """

    labels: tuple[str, ...]
    probabilities: NDArray[np.float64]

    @classmethod
    def of(cls, logits: NDArray[np.float64], labels: Sequence[str], temperature: float) -> RightAnswers:
        """The answers of a softmax whose logits are divided by a temperature (1 for a server without calibration)."""
        scaled = logits / temperature
        p = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return cls(tuple(labels), p / p.sum(axis=1, keepdims=True))

    def difference(self, text: int, label: str, probability: float) -> float:
        """How far an answer is off: in its probability, or in how much less probable its label is than the right one.

        Two classes that are as probable as each other may both be named; infinite for a name that is no class.
        """
        if label not in self.labels:
            return float("inf")
        row = self.probabilities[text]
        named = float(row[self.labels.index(label)])
        return max(abs(probability - named), float(row.max()) - named)

    def describe(self, text: int) -> str:
        """The right answer in words."""
        best = int(self.probabilities[text].argmax())
        return f"{self.labels[best]} {self.probabilities[text, best]:.4f}"


def exact_texts(tokenizer: Tokenizer, texts: Sequence[str], tokens: int, count: int) -> list[str]:
    """At most `count` beginnings of real texts that have exactly `tokens` tokens, special ones included.

    Raises:
        TextsError: if fewer than eight texts are long enough.
    """
    found = []
    words = tokens - tokenizer.num_special_tokens_to_add(False)
    for text in texts:
        spans = tokenizer.encode(text, add_special_tokens=False).offsets
        if 0 < words <= len(spans):
            beginning = text[: spans[words - 1][1]]
            if len(tokenizer.encode(beginning).ids) == tokens:
                found.append(beginning)
        if len(found) == count:
            break
    if len(found) < min(8, count):
        raise TextsError(
            f"only {len(found)} texts give {tokens} tokens; give longer ones with --texts, or other lengths"
        )
    return found
