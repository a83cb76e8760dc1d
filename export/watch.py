"""After a switch: is it really the new version that answers, at once, rightly and as fast as before?

What was compared before the switch was another ensemble; here the ensemble that callers use is asked for some seconds,
and each answer is held against the version's own graph. The first that is wrong or missing ends the watch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from bet_client import BetClientError, Client

from export.answers import Answers
from export.challenger import CALL_SECONDS, Asked, ratio
from export.parity import Parity, Tolerances
from export.served import Protocol, as_answers
from export.texts import GateText
from verdict import Report

_LEAST_TEXTS = 3  # asked before latencies are judged, however short the watch


@dataclass
class Watched:
    """What a watch saw."""

    asks: int = 0
    errors: int = 0
    wrong: int = 0
    latency_ratio: float | None = None  # to the latencies before; None where nothing was measured before
    reason: str | None = None  # why it ended before its time

    def add_to(self, report: Report, max_ratio: float | None) -> None:
        """Add the checks."""
        report.add("watch_answers", self.asks - self.errors, "answers", "> 0")
        report.add("watch_errors", self.errors, "calls", "== 0")
        report.add("watch_wrong", self.wrong, "answers", "== 0")
        if self.latency_ratio is not None and max_ratio is not None:
            report.add("watch_latency_ratio", self.latency_ratio, "of p50", f"<= {max_ratio:g}")


def watch(
    url: str,
    protocol: Protocol,
    ensembles: Sequence[str],
    *,
    texts: Sequence[GateText],
    truth: Answers,
    tolerances: Tolerances,
    limit: int,
    seconds: float,
    before: Mapping[str, Sequence[float]] | None = None,
    max_ratio: float = 2.0,
) -> Watched:
    """Ask the ensembles in turns until the time is over, each at least once, or something is wrong.

    Args:
        limit: tokens that the version reads.
        seconds: for how long.
        before: by ensemble, each text's usual latency before the switch, seconds.
        max_ratio: largest ratio of the median latency to that.
    """
    seen = Watched()
    ends = time.monotonic() + seconds
    with contextlib.ExitStack() as clients:
        try:
            asked = {}
            for name in ensembles:
                # A retry would hide the answer that is missing.
                client = clients.enter_context(
                    Client(url, protocol=protocol, model=name, timeout=CALL_SECONDS, retries=0)
                )
                asked[name] = (client, Asked(client.labels))
        except BetClientError as error:
            return Watched(asks=1, errors=1, reason=str(error))
        while True:
            for _, one in asked.values():
                one.begin_round()
            for i, text in enumerate(texts):
                for name, (client, one) in asked.items():
                    seen.asks += 1
                    answer = one.ask(client, text, limit)
                    if answer is None:
                        seen.errors += 1
                        seen.reason = f"{name!r} gave no answer: {one.errors[-1]}"
                    elif one.unlike or not _is(truth, i, as_answers([answer], one.labels), texts, tolerances):
                        seen.wrong += 1
                        seen.reason = f"{name!r} did not answer text {i} as the version itself does: {answer}"
                    if seen.reason is not None:
                        return seen
                enough = before is None or seen.asks >= len(asked) * min(_LEAST_TEXTS, len(texts))
                if time.monotonic() >= ends and enough:
                    # Not before: of few asks, a pause of the machine would count as the version's.
                    if before is not None:
                        _judge_latency(seen, {name: one for name, (_, one) in asked.items()}, before, max_ratio)
                    return seen


def _judge_latency(
    seen: Watched, asked: Mapping[str, Asked], before: Mapping[str, Sequence[float]], max_ratio: float
) -> None:
    ratios = {name: ratio(before[name], one.best()) for name, one in asked.items() if name in before}
    ratios = {name: found for name, found in ratios.items() if np.isfinite(found)}  # texts that only one answered
    if not ratios:
        return
    name = max(ratios, key=lambda name: ratios[name])
    seen.latency_ratio = ratios[name]
    if seen.latency_ratio > max_ratio:
        seen.reason = f"{name!r} takes {seen.latency_ratio:.1f} times as long as the version before"


def _is(truth: Answers, row: int, answer: Answers, texts: Sequence[GateText], tolerances: Tolerances) -> bool:
    """Whether one answer is that of its row; judged among all rows, since a tolerance may depend on their spread."""
    given = answer.given()
    among = {
        name: np.concatenate([values[:row], given[name], values[row + 1 :]])
        for name, values in truth.given().items()
        if name in given
    }
    parity = Parity(truth, texts, tolerances)
    parity.add("watch", {"alone": Answers(**among)})
    report = Report("watch")
    parity.add_to(report)
    return report.holds
