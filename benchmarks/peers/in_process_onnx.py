"""The ceiling: our graph without server and network, `python in_process_onnx.py` with CHECKPOINT and THREADS.

It reads a line of JSON with groups of texts and their right answers, answers each text once and says so; then each
further line asks for a turn of some seconds with so many texts joined into one execution, and gets one line back. What
was answered is checked after the clock has stopped.
"""

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from onnx_classifier import Answer, Classifier


def main() -> None:
    """Answer turns until the input ends."""
    classifier = Classifier(Path(os.environ["CHECKPOINT"]), int(os.environ["THREADS"]))
    groups: dict[str, Any] = json.loads(sys.stdin.readline())
    for group in groups.values():
        for text in group["texts"]:
            classifier.answer([text])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_turn(classifier, groups, **json.loads(line))), flush=True)


def _turn(
    classifier: Classifier, groups: dict[str, Any], *, group: str, batch: int, seconds: float, tolerance: float
) -> dict[str, Any]:
    """Texts in turn, `batch` of them at a time: milliseconds of each execution, tokenizing included."""
    texts, right = groups[group]["texts"], groups[group]["answers"]
    numbers = itertools.cycle(range(len(texts)))
    given: list[tuple[list[int], list[Answer]]] = []
    latencies = []
    begin = now = time.perf_counter()
    while now - begin < seconds:
        chosen = list(itertools.islice(numbers, batch))
        given.append((chosen, classifier.answer([texts[i] for i in chosen])))
        before, now = now, time.perf_counter()
        latencies.append(1000 * (now - before))
    differences = [
        _difference(right[i], answer) for chosen, answers in given for i, answer in zip(chosen, answers, strict=True)
    ]
    return {
        "seconds": now - begin,
        "right": sum(difference <= tolerance for difference in differences),
        "wrong": sum(not difference <= tolerance for difference in differences),
        "largest_difference": max(differences),
        "latencies": latencies,
    }


def _difference(right: tuple[str, list[float]], answer: Answer) -> float:
    """How far a probability is off; infinite where another label is named."""
    label, probabilities = right
    if answer.label != label:
        return float("inf")
    largest: float = max(abs(a - b) for a, b in zip(answer.probabilities, probabilities, strict=True))
    return largest


if __name__ == "__main__":
    main()
