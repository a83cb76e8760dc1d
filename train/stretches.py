"""Stretches of texts, and the short texts that are made of long ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")


def short_length(random: np.random.Generator, shortest: int = 12, longest: int = 100) -> int:
    """The length of a short text, in tokens or words: log-uniform between `shortest` and `longest`."""
    return int(np.exp(random.uniform(np.log(shortest), np.log(longest))))


def crop_start(length: int, random: np.random.Generator) -> int:
    """Where the short text begins that is made of a long one of `length` tokens: it is the end.

    A text that was written short says something, and so do most endings; most stretches from anywhere do not, and a
    model that learns from them comes to doubt every short text (ADR 16).
    """
    return max(length - short_length(random), 0)


def crop(document: npt.NDArray[np.int64], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """The short text that is made of a document's token ids."""
    return document[crop_start(len(document), random) :]


def stretch(items: Sequence[Item], wanted: int, random: np.random.Generator) -> Sequence[Item]:
    """`wanted` neighbouring items from anywhere, or all where there are fewer."""
    start = int(random.integers(0, max(len(items) - wanted, 0) + 1))
    return items[start : start + wanted]
