"""Our server beside its peers: the same texts, the same generator, all of them started, one asked at a time.

    right answers → the best setting of each peer at each length → start all → rounds: each length, each system in turn

What makes it fair: whoever is not asked waits and costs nothing (`other_cpu` would show it), so each has the processors
to itself; the generator, its connections and its texts are the same, and what it costs is reported; each peer has a
process for each core, or one with all of them, whichever is faster at that length; turns are short and ratios are taken
within a round, so that a machine that slows down for seconds slows all of them; every answer is compared with
PyTorch's, so that nobody wins by answering something else.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bet_client import Client, Prediction

from benchmarks.compare_settings import CompareSettings
from benchmarks.errors import ServerError
from benchmarks.peers.environment import installed_versions
from benchmarks.peers.reference import Exported, Reference, read_labelled
from benchmarks.peers.right_answers import RightAnswers, exact_texts
from benchmarks.peers.systems import OURS, PEERS, Peer, Running, Setting, ours, peer
from benchmarks.peers.workers import started_workers
from benchmarks.turns import Turn, in_turn, take_turn
from serve import ServeError

Say = Callable[[str], None]
_CHOOSING_SECONDS = 2.0


@dataclass(frozen=True)
class Cell:
    """One system, with its setting, at one length in one round."""

    system: str
    setting: str
    length: int
    round: int
    turn: Turn

    @property
    def throughput(self) -> float:
        """Right answers per second."""
        return self.turn.throughput


@dataclass(frozen=True)
class Accuracy:
    """Labelled rows, asked of our server and of PyTorch; `differ` counts rows on which they do not agree."""

    rows: int
    served: float
    pytorch: float
    differ: int


@dataclass(frozen=True)
class Outcome:
    """Everything that was measured.

    Attributes:
        tried: the short runs in which each peer's settings were chosen.
        in_process: texts/s of each peer without HTTP, by length.
    """

    cells: tuple[Cell, ...]
    tried: tuple[Cell, ...]
    in_process: dict[str, dict[int, float]]
    accuracy: Accuracy | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Questions:
    """The texts of one length, and what is right for a plain softmax and for our calibrated one."""

    texts: tuple[str, ...]
    plain: RightAnswers
    calibrated: RightAnswers


def compare(settings: CompareSettings, texts: Sequence[str], python: Path, held_out: Path | None, say: Say) -> Outcome:
    """Measure all systems.

    Args:
        texts: real ones, of which the beginnings are asked.
        python: interpreter of the peers' environment.
        held_out: labelled rows to compare the accuracy on.

    Raises:
        BenchmarkError: if the checkpoint cannot be compared, or a system does not start.
    """
    try:
        exported = Exported.read(settings.repository, settings.model)
        reference = Reference(settings.checkpoint, exported)
        say("asking PyTorch for the right answers")
        questions = {
            length: _questions(
                reference,
                exact_texts(reference.tokenizer, texts, length, settings.texts),
                exported.temperature,
            )
            for length in settings.lengths
        }
        accuracy = None if held_out is None else _accuracy(settings, reference, held_out)
        comparison = _Comparison(settings, questions, python, say)
        tried = [
            cell for system in PEERS for setting in system.settings for cell in comparison.choosing(system, setting)
        ]
        best = {system.name: choose(system, tried, settings.lengths) for system in PEERS}
        cells = comparison.rounds(best)
        in_process = {system.name: comparison.in_process(system, best[system.name]) for system in PEERS}
    except ServeError as error:
        raise ServerError(str(error)) from error
    return Outcome(
        tuple(cells),
        tuple(tried),
        in_process,
        accuracy,
        installed_versions(python),
    )


def choose(system: Peer, tried: Sequence[Cell], lengths: Sequence[int]) -> dict[int, Setting]:
    """The setting of a peer with the most right answers per second, for each length."""
    rate = {(cell.length, cell.setting): cell.throughput for cell in tried if cell.system == system.name}
    return {n: max(system.settings, key=lambda setting: rate.get((n, str(setting)), 0.0)) for n in lengths}


def _questions(reference: Reference, texts: Sequence[str], temperature: float) -> Questions:
    logits = reference.logits(texts)
    plain, calibrated = (RightAnswers.of(logits, reference.labels, t) for t in (1.0, temperature))
    return Questions(tuple(texts), plain, calibrated)


@dataclass(frozen=True)
class _Comparison:
    """What every turn of a system needs."""

    settings: CompareSettings
    questions: dict[int, Questions]
    python: Path
    say: Say

    def choosing(self, system: Peer, setting: Setting) -> Iterator[Cell]:
        """One setting of a peer at all lengths, for a short time."""
        with self._started(system, setting) as running:
            for length in self.settings.lengths:
                cell = self._ask(running, length, 0, _CHOOSING_SECONDS)
                self.say(f"choosing: {system.name} {setting} at {length} tokens: {cell.throughput:.1f} requests/s")
                yield cell

    def rounds(self, best: dict[str, dict[int, Setting]]) -> list[Cell]:
        """All systems started, each asked in its turn; every round begins with another."""
        cells = []
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(ours(self.settings.repository, self.settings.model))
            running = {(OURS, length): own for length in self.settings.lengths}
            for system in PEERS:
                chosen = best[system.name]
                for setting in dict.fromkeys(chosen.values()):
                    started = stack.enter_context(self._started(system, setting))
                    running |= {(system.name, n): started for n in self.settings.lengths if chosen[n] == setting}
            names = [OURS, *(system.name for system in PEERS)]
            for number in range(1, self.settings.rounds + 1):
                for length in self.settings.lengths:
                    turn = [
                        self._ask(running[name, length], length, number, self.settings.seconds)
                        for name in in_turn(names, number)
                    ]
                    rates = ", ".join(f"{cell.system} {cell.throughput:.1f}" for cell in turn)
                    wrong = sum(cell.turn.wrong for cell in turn)
                    self.say(
                        f"round {number}: {length} tokens: {rates} requests/s{f', {wrong} wrong' if wrong else ''}"
                    )
                    cells += turn
        return cells

    def _started(self, system: Peer, setting: Setting) -> contextlib.AbstractContextManager[Running]:
        return peer(system, setting, self.python, self.settings.checkpoint)

    def in_process(self, system: Peer, chosen: dict[int, Setting]) -> dict[int, float]:
        """Texts per second of a peer without HTTP, by length."""
        rates = {}
        arguments = ("in_process.py", system.application, str(_CHOOSING_SECONDS))
        for length, setting in chosen.items():
            with started_workers(system.name, setting, self.python, self.settings.checkpoint, arguments) as workers:
                workers.exchange(json.dumps(self.questions[length].texts))  # all are ready
                rates[length] = sum(map(int, workers.exchange(""))) / _CHOOSING_SECONDS
            self.say(f"in process: {system.name} {setting} at {length} tokens: {rates[length]:.1f} texts/s")
        return rates

    def _ask(self, running: Running, length: int, number: int, seconds: float) -> Cell:
        questions = self.questions[length]
        turn = take_turn(
            running,
            questions.texts,
            questions.calibrated if running.calibrated else questions.plain,
            callers=self.settings.callers,
            seconds=seconds,
            warm_up=self.settings.warm_up,
            tolerance=self.settings.tolerance,
        )
        return Cell(running.name, running.setting, length, number, turn)


def _accuracy(settings: CompareSettings, reference: Reference, path: Path) -> Accuracy:
    texts, labels = read_labelled(path, reference.labels)
    expected = reference.logits(texts).argmax(axis=1)
    with (
        ours(settings.repository, settings.model) as running,
        Client(f"localhost:{running.ports[0]}", protocol="http", model=settings.model, timeout=600.0) as client,
    ):
        answers = client.predict_many(texts)
    index = {name: i for i, name in enumerate(reference.labels)}
    served = np.array([index[a.label] if isinstance(a, Prediction) else -1 for a in answers])
    return Accuracy(
        len(texts),
        float((served == labels).mean()),
        float((expected == labels).mean()),
        int((served != expected).sum()),
    )
