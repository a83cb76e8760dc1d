"""What packing is worth: one graph, the same weights and texts, joined end to end and padded to the longest text.

Three forms of a batch of real lengths, in turns:

- packed, as the dynamic batcher joins requests: tokens end to end and the length of each text;
- filled, as one request of several texts arrives: a rectangle filled up with -1. Answers must be those of the packed
  form. The packed graph cuts no segment for fill, so this is not what padding costs a model that computes it;
- padded: every row as long as the longest text, its own tokens over again. That is the arithmetic of a model that
  computes what it pads and masks it afterwards; the answers are other texts' and are not compared.

Tokens/s count the texts' tokens alone, so that fill is no work done.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.compare_settings import PackedSettings
from benchmarks.errors import TextsError
from benchmarks.peers.exported import exported_folder
from benchmarks.peers.onnx_classifier import FILL, Classifier
from benchmarks.peers.right_answers import exact_texts
from benchmarks.spread import Spread
from benchmarks.turns import in_turn
from verdict import Report

Say = Callable[[str], None]
Ids = NDArray[np.int64]

FORMS = ("packed", "filled", "padded")
PACKED_OVER_PADDED = ">= 2.5"
TOLERANCE = 1e-5  # of a probability; joining rows moves one by 2e-7


@dataclasses.dataclass(frozen=True)
class PackedOutcome:
    """What was measured.

    Attributes:
        seconds: by form, for each round the sum over all batches.
        tokens, cells: the texts' tokens in all batches, and the rectangles' places.
        largest_difference: of a probability, packed to filled.
        short: milliseconds of an execution of short texts, for each round, by their number.
    """

    seconds: dict[str, tuple[float, ...]]
    tokens: int
    cells: int
    largest_difference: float
    short: dict[int, tuple[float, ...]]


def measure_packed(settings: PackedSettings, texts: Sequence[str], say: Say) -> PackedOutcome:
    """Execute all forms of the same batches in turns.

    Args:
        texts: whole ones, whose lengths are those of the batches; their beginnings are the short texts.

    Raises:
        BenchmarkError: if the version has no graph, or the texts are too few.
    """
    if len(texts) < settings.rows:
        raise TextsError(f"{len(texts)} texts do not fill a batch of {settings.rows}: give more, or use fewer --rows")
    with exported_folder(settings.repository, settings.model) as folder:
        classifier = Classifier(folder, settings.threads)
    draw = random.Random(settings.seed)
    batches = [classifier.encode(draw.sample(list(texts), settings.rows)) for _ in range(settings.batches)]
    most = max(settings.short_batches)
    distinct = exact_texts(classifier.tokenizer, texts, settings.short_tokens, most)
    short = classifier.encode([distinct[k % len(distinct)] for k in range(most)])
    largest = 0.0
    for batch in batches:  # which also warms all shapes up
        (_, packed), (_, filled), _ = (classifier.execute(*form(batch)) for form in (pack, fill, pad))
        largest = max(largest, float(np.abs(packed - filled).max()))
    seconds: dict[str, list[float]] = {name: [] for name in FORMS}
    times: dict[int, list[float]] = {count: [] for count in settings.short_batches}
    forms = dict(zip(FORMS, (pack, fill, pad), strict=True))
    for number in range(settings.rounds):
        total = dict.fromkeys(FORMS, 0.0)
        for batch in batches:
            for name in in_turn(FORMS, number):
                total[name] += _execute(classifier, *forms[name](batch))
        for name in FORMS:
            seconds[name].append(total[name])
        for count in settings.short_batches:
            # A short execution of many, so that one interruption does not decide it.
            taken = sorted(_execute(classifier, *pack(short[:count])) for _ in range(settings.short_repeats))
            times[count].append(1000 * taken[len(taken) // 2])
        say(f"round {number + 1}: " + ", ".join(f"{name} {1000 * total[name]:.0f} ms" for name in FORMS))
    return PackedOutcome(
        {name: tuple(of) for name, of in seconds.items()},
        sum(len(row) for batch in batches for row in batch),
        sum(len(batch) * max(len(row) for row in batch) for batch in batches),
        largest,
        {count: tuple(of) for count, of in times.items()},
    )


def pack(rows: Sequence[Ids]) -> tuple[Ids, list[int]]:
    """End to end: ids [tokens], lengths [rows]."""
    return np.concatenate(rows), [len(row) for row in rows]


def fill(rows: Sequence[Ids]) -> tuple[Ids, list[int]]:
    """A rectangle, filled up with -1: ids [rows × longest], lengths [rows], all of them the longest."""
    longest = max(len(row) for row in rows)
    filled = [np.pad(row, (0, longest - len(row)), constant_values=FILL) for row in rows]
    return np.concatenate(filled), [longest] * len(rows)


def pad(rows: Sequence[Ids]) -> tuple[Ids, list[int]]:
    """A rectangle of tokens that are all computed, each text's own over again; shapes as of `fill`."""
    longest = max(len(row) for row in rows)
    return np.concatenate([np.resize(row, longest) for row in rows]), [longest] * len(rows)


def judge_packed(settings: PackedSettings, outcome: PackedOutcome) -> Report:
    """The checks and details."""
    report = Report("packed")
    rates = {name: Spread.of(outcome.tokens / s for s in of) for name, of in outcome.seconds.items()}
    ratios = {
        name: Spread.of(other / packed for other, packed in zip(of, outcome.seconds["packed"], strict=True))
        for name, of in outcome.seconds.items()
    }
    for name in FORMS:
        report.add(f"tokens_per_second_{name}", rates[name].median, "tokens/s")
    report.add("packed_over_padded", ratios["padded"].median, "", PACKED_OVER_PADDED)
    report.add("packed_over_filled", ratios["filled"].median)
    report.add("padded_places", outcome.cells / outcome.tokens, "per token")
    report.add("largest_difference", outcome.largest_difference, "", f"<= {TOLERANCE}")
    short = {f"{count}x{settings.short_tokens}": Spread.of(of) for count, of in outcome.short.items()}
    for name, spread in short.items():
        report.add(f"milliseconds_{name}", spread.median, "ms")
    report.details = {
        "settings": {**dataclasses.asdict(settings), "repository": str(settings.repository)},
        "spreads": {
            **{f"tokens_per_second_{name}": dataclasses.asdict(spread) for name, spread in rates.items()},
            **{f"packed_over_{name}": dataclasses.asdict(ratios[name]) for name in FORMS[1:]},
            **{f"milliseconds_{name}": dataclasses.asdict(spread) for name, spread in short.items()},
        },
    }
    return report


def _execute(classifier: Classifier, input_ids: Ids, lengths: Sequence[int]) -> float:
    """Seconds of one execution."""
    begin = time.perf_counter()
    classifier.execute(input_ids, lengths)
    return time.perf_counter() - begin
