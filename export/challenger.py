"""The same texts to the version that answers (the champion) and to the one that is to replace it (the challenger).

Both are asked live, on one server, text by text and in turns, so that whatever else the server does meets both alike;
latencies are therefore compared as ratios within this run. What differs between the two is counted, since another
version may legitimately answer otherwise; what differs from the challenger's own graph is an error (`export.parity`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from bet_client import BetClientError, Client, Prediction

from export.answers import Answers
from export.parity import Parity, Tolerances
from export.served import Protocol, as_answers
from export.texts import GateText
from verdict import Report

CALL_SECONDS = 10.0  # a text that takes longer has lost its caller
_ROUNDS = 3
_LEAST_ASKS = 60  # a p50 over fewer says little on a machine that does other things as well
_DECISIONS = ("label", "assigned")  # of one class, or of each label for itself
_ESTIMATES = ("probabilities", "value")


@dataclass
class Asked:
    """One ensemble's answers to N texts, each asked as often as there were rounds."""

    labels: tuple[str, ...]
    rounds: list[list[Prediction | None]] = field(default_factory=list)  # None where there was an error
    seconds: list[list[float]] = field(default_factory=list)  # as `rounds`; of answered texts only, else NaN
    errors: list[str] = field(default_factory=list)
    unlike: int = 0  # answers whose `tokens` or `truncated` is not what the version's tokenizer gives here

    def ask(self, client: Client, text: GateText, limit: int | None = None) -> Prediction | None:
        """Ask once, into the last round; with `limit`, the tokenizer's outputs are checked as well."""
        began = time.perf_counter()
        answer: Prediction | None
        try:
            answer = client.predict(text.text, diagnostics=True)
            took = time.perf_counter() - began
            if limit is not None and (answer.tokens, answer.truncated) != (text.tokens, text.tokens > limit):
                self.unlike += 1
        except BetClientError as error:
            answer, took = None, np.nan
            self.errors.append(str(error))
        self.rounds[-1].append(answer)
        self.seconds[-1].append(took)
        return answer

    def begin_round(self) -> None:
        """What is asked from now on is another round over the texts."""
        self.rounds.append([])
        self.seconds.append([])

    def answered(self) -> list[int]:
        """Texts that were answered in every round."""
        return [i for i, given in enumerate(zip(*self.rounds, strict=True)) if None not in given]

    def answers(self, turn: int, texts: Sequence[int]) -> Answers:
        """One round's answers to texts that were answered."""
        return as_answers([p for i in texts if (p := self.rounds[turn][i]) is not None], self.labels)

    def best(self) -> list[float]:
        """Each text's shortest latency, seconds: what it costs where nothing else comes in between."""
        return [min(took) if took else np.nan for took in self._by_text()]

    def usual(self) -> list[float]:
        """Each text's median latency, seconds."""
        return [float(np.median(took)) if took else np.nan for took in self._by_text()]

    def latency(self, quantile: float) -> float:
        """A quantile over all asks, milliseconds; NaN without any."""
        given = [second for took in self._by_text() for second in took]
        return float(np.quantile(given, quantile) * 1000) if given else np.nan

    def _by_text(self) -> list[list[float]]:
        """The latencies of each text's answers, also where the last round is not over."""
        return [[s for s in took if s is not None and np.isfinite(s)] for took in zip_longest(*self.seconds)]


def ask_in_turns(
    url: str,
    protocol: Protocol,
    ensembles: tuple[str, str],
    texts: Sequence[GateText],
    limit: int,
) -> tuple[Asked, Asked]:
    """Put every text to two ensembles of one server, several times, each time in the other order.

    Args:
        ensembles: champion and challenger.
        limit: tokens that the challenger reads.

    Raises:
        BetClientError: if either is not there at all; a text that fails is counted.
    """
    champion_name, challenger_name = ensembles
    with (
        Client(url, protocol=protocol, model=champion_name, timeout=CALL_SECONDS, retries=0) as champion,
        Client(url, protocol=protocol, model=challenger_name, timeout=CALL_SECONDS, retries=0) as challenger,
    ):
        old, new = Asked(champion.labels), Asked(challenger.labels)
        for client in (champion, challenger):  # the first call of a connection sets it up
            client.is_ready()
        for turn in range(max(_ROUNDS, -(-_LEAST_ASKS // len(texts)))):
            old.begin_round()
            new.begin_round()
            for i, text in enumerate(texts):
                if (i + turn) % 2:
                    old.ask(champion, text)
                    new.ask(challenger, text, limit)
                else:
                    new.ask(challenger, text, limit)
                    old.ask(champion, text)
    return old, new


def ask_alone(url: str, protocol: Protocol, ensemble: str, texts: Sequence[GateText], limit: int) -> Asked:
    """Put every text to one ensemble, once.

    Raises:
        BetClientError: if it is not there at all.
    """
    with Client(url, protocol=protocol, model=ensemble, timeout=CALL_SECONDS) as client:
        asked = Asked(client.labels)
        asked.begin_round()
        for text in texts:
            asked.ask(client, text, limit)
    return asked


def add_changes(report: Report, old: Asked, new: Asked, max_flips: float) -> None:
    """Add what the challenger answers otherwise than the champion, over the texts that both answered.

    A champion that answers nothing is no bar to being replaced.
    """
    texts = sorted(set(old.answered()) & set(new.answered()))
    report.add("compared_texts", len(texts), "texts")
    if not texts:
        return
    found = changes(old.answers(0, texts), new.answers(0, texts))
    for output in _DECISIONS:
        if output in found:
            report.add("changed_labels", found[output]["share"], "of texts", f"<= {max_flips:g}")
    if "review" in found:
        report.add("changed_reviews", found["review"]["share"], "of texts")
    for output in _ESTIMATES:
        if output in found:
            report.add("largest_change", found[output]["largest"])
            report.add("mean_change", found[output]["mean"])
    report.details["changes"] = found


def changes(old: Answers, new: Answers) -> dict[str, dict[str, float]]:
    """By output that both give: largest and mean difference of a number, else in how many texts it differs."""
    found: dict[str, dict[str, float]] = {}
    others = new.given()
    for name, values in old.given().items():
        if name not in others:
            continue
        rows = values.reshape(len(values), -1), others[name].reshape(len(values), -1)
        if values.dtype.kind == "f":
            gap = np.abs(rows[0].astype(np.float64) - rows[1])
            found[name] = {"largest": float(gap.max()), "mean": float(gap.mean())}
        else:
            differ = (rows[0] != rows[1]).any(1)
            found[name] = {"texts": int(differ.sum()), "share": float(differ.mean())}
    return found


def add_latencies(report: Report, old: Asked, new: Asked, max_ratio: float, side: str = "") -> None:
    """Add both latencies, and their ratio.

    The one that is judged is between the medians of each text's best time: a pause that meets one ask of three is the
    machine's, and no version's. p99 is reported.
    """
    for quantile, name in ((0.5, "p50"), (0.99, "p99")):
        report.add(f"latency_{name}_champion{side}", old.latency(quantile), "ms")
        report.add(f"latency_{name}_challenger{side}", new.latency(quantile), "ms")
    if old.answered():
        report.add(f"latency_ratio{side}", ratio(old.best(), new.best()), "of p50", f"<= {max_ratio:g}")
        report.add(f"latency_ratio_p99{side}", new.latency(0.99) / old.latency(0.99))


def ratio(old: Sequence[float], new: Sequence[float]) -> float:
    """Between the medians of the texts that both answered; NaN where there is none."""
    both = [(a, b) for a, b in zip(old, new, strict=False) if np.isfinite(a) and np.isfinite(b)]
    if not both:
        return float("nan")
    medians = np.median(np.array(both), axis=0)
    return float(medians[1] / medians[0])


def add_truth(
    report: Report, truth: Answers, sides: Mapping[str, Asked], texts: Sequence[GateText], tolerances: Tolerances
) -> None:
    """Add how far live answers are from the version's own graph, and how many there were none of."""
    answered = set(range(len(texts))).intersection(*(asked.answered() for asked in sides.values()))
    for side, asked in sides.items():
        report.add(f"errors_{side}", len(asked.errors), "calls", "== 0")
    report.details["errors"] = {side: asked.errors[:5] for side, asked in sides.items() if asked.errors}
    report.add("token_count_flips", sum(asked.unlike for asked in sides.values()), "answers", "== 0")
    if answered:
        rows = sorted(answered)
        parity = Parity(truth.take(rows), [texts[i] for i in rows], tolerances)
        for side, asked in sides.items():
            parity.add(side, {f"round {turn + 1}": asked.answers(turn, rows) for turn in range(len(asked.rounds))})
        parity.add_to(report)
