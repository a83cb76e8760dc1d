"""Our server beside other ways to run the very graph that it serves: what the serving itself costs, and what it wins.

    right answers → the best setting of each way for each group of texts → start all → rounds: each way in turn

Two ways stand beside ours. FastAPI with ONNX Runtime over the same files is what a team would write; the function sync
or async, one worker or one for each core, the best for each group. ONNX Runtime in process, without a network, is the
ceiling: the best arrangement of processes, threads and joined texts for throughput, the best without joining beside
it, and one text at a time in one process for the latency that a single caller pays for a server. Why turns are short
and ratios are taken within a round is said in `benchmarks.compare`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.compare_settings import GraphSettings
from benchmarks.errors import ServerError, TextsError
from benchmarks.peers.ceiling import Ceiling, CeilingTurn, started_ceiling
from benchmarks.peers.environment import installed_versions
from benchmarks.peers.exported import exported_folder
from benchmarks.peers.onnx_classifier import Classifier
from benchmarks.peers.right_answers import RightAnswers, exact_texts
from benchmarks.peers.systems import OURS, Peer, Running, Setting, ours, peer, processors
from benchmarks.samples import percentile
from benchmarks.turns import Turn, in_turn, take_turn
from serve import ServeError

Say = Callable[[str], None]
FASTAPI, IN_PROCESS, ONE_BY_ONE = "fastapi_onnx", "in_process", "in_process_one_by_one"
ALONE = "_alone"  # of a name: one caller
GROUPS = ("short", "mixed", "long")
_SINGLE = IN_PROCESS + ALONE


def _fastapi() -> tuple[Peer, ...]:
    """One worker or one for each core; a worker with one thread executes several requests only where it is sync."""
    cores = processors()
    sync = tuple(dict.fromkeys((Setting(cores, 1), Setting(1, 1), Setting(1, cores))))
    coroutine = tuple(dict.fromkeys((Setting(cores, 1), Setting(1, cores))))
    return Peer("fastapi_onnx sync", "fastapi_onnx", sync), Peer("fastapi_onnx async", "fastapi_onnx_async", coroutine)


@dataclass(frozen=True)
class Group:
    """Texts of one kind, and what is right for them."""

    texts: tuple[str, ...]
    right: RightAnswers


@dataclass(frozen=True)
class Arrangement:
    """The ceiling: so many processes and threads, and `joined` texts in one execution."""

    setting: Setting
    joined: int

    def __str__(self) -> str:
        return f"{self.setting}, {self.joined} joined"


@dataclass(frozen=True)
class Figure:
    """One way of running the graph, in one round on one group of texts.

    Attributes:
        name: `ours`, `fastapi_onnx`, `in_process`, `in_process_one_by_one` (no texts are joined), or one of them with
            `_alone`: asked by one caller.
        throughput: right answers per second.
        p50, p99: milliseconds; of the ceiling, those of an execution.
        generator_cpu: processors that asking took; 0 in process.
    """

    name: str
    setting: str
    group: str
    round: int
    throughput: float
    p50: float
    p99: float
    right: int
    wrong: int
    faults: tuple[str, ...]
    largest_difference: float
    generator_cpu: float
    other_cpu: float


@dataclass(frozen=True)
class GraphOutcome:
    """Everything that was measured; `tried` are the short runs in which settings were chosen."""

    figures: tuple[Figure, ...]
    tried: tuple[Figure, ...]
    tokens: dict[str, tuple[int, float, int]]
    versions: dict[str, str]


def compare_same_graph(
    settings: GraphSettings, texts: Sequence[str], whole: Sequence[str], python: Path, say: Say
) -> GraphOutcome:
    """Measure all ways.

    Args:
        texts: real ones, whose beginnings are the texts of exact lengths.
        whole: real ones, asked as they are: the group `mixed`.
        python: interpreter of the peers' environment.

    Raises:
        BenchmarkError: if the version cannot be compared, or a system does not start.
    """
    with exported_folder(settings.repository, settings.model) as folder:
        groups, tokens = _groups(settings, texts, whole, folder)
        comparison = _Comparison(settings, groups, folder, python, say)
        try:
            tried = [*comparison.choosing_fastapi(), *comparison.choosing_in_process()]
            figures = comparison.rounds(tried)
        except ServeError as error:
            raise ServerError(str(error)) from error
    return GraphOutcome(tuple(figures), tuple(tried), tokens, installed_versions(python))


def _groups(
    settings: GraphSettings, texts: Sequence[str], whole: Sequence[str], folder: Path
) -> tuple[dict[str, Group], dict[str, tuple[int, float, int]]]:
    """The texts with their right answers, each asked alone; and least, mean and most tokens after the cut."""
    try:
        classifier = Classifier(folder, processors())
    except ValueError as error:
        raise TextsError(str(error)) from error
    chosen = {
        "short": exact_texts(classifier.tokenizer, texts, settings.short_tokens, settings.texts),
        "mixed": list(whole),
        "long": exact_texts(classifier.tokenizer, texts, settings.long_tokens, settings.texts),
    }
    groups, tokens = {}, {}
    for name, of in chosen.items():
        answers = [classifier.answer([text])[0].probabilities for text in of]
        groups[name] = Group(tuple(of), RightAnswers(tuple(classifier.labels), np.array(answers, dtype=np.float64)))
        lengths = [len(row) for row in classifier.encode(of)]
        tokens[name] = (min(lengths), sum(lengths) / len(lengths), max(lengths))
    return groups, tokens


def best(tried: Sequence[Figure], names: Sequence[str], group: str) -> str:
    """The setting under these names with the most right answers per second; of a single caller, the least latency."""
    of = [figure for figure in tried if figure.name in names and figure.group == group]
    alone = all(name.endswith(ALONE) for name in names)
    return (min(of, key=lambda f: f.p50) if alone else max(of, key=lambda f: f.throughput)).setting


@dataclass(frozen=True)
class _Comparison:
    """What every turn needs."""

    settings: GraphSettings
    groups: dict[str, Group]
    folder: Path
    python: Path
    say: Say

    def choosing_fastapi(self) -> Iterator[Figure]:
        """Each application in each setting, for a short time in each group."""
        for system in _fastapi():
            for setting in system.settings:
                with peer(system, setting, self.python, self.folder) as running:
                    for group in GROUPS:
                        label = f"{system.name} {setting}"
                        yield self._said(self._ask(FASTAPI, label, running, group, 0, seconds=self.settings.choosing))

    def choosing_in_process(self) -> Iterator[Figure]:
        """Each arrangement of the ceiling for a short time in each group, and each number of threads alone."""
        for setting in _fastapi()[0].settings:
            with self._in_process(setting) as ceiling:
                for group in GROUPS:
                    for joined in self.settings.joined:
                        name = ONE_BY_ONE if joined == 1 else IN_PROCESS
                        yield self._said(self._execute(name, Arrangement(setting, joined), ceiling, group, 0))
                    if setting.workers == 1:
                        yield self._said(self._execute(_SINGLE, Arrangement(setting, 1), ceiling, group, 0))

    def rounds(self, tried: Sequence[Figure]) -> list[Figure]:
        """All started, each asked in its turn; every round begins with another."""
        figures: list[Figure] = []
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(ours(self.settings.repository, self.settings.model))
            # What is best for several groups is started once.
            fastapi = functools.cache(lambda label: stack.enter_context(self._fastapi(label)))
            ceiling = functools.cache(lambda setting: stack.enter_context(self._in_process(setting)))
            turns = {group: self._turns(tried, group, own, fastapi, ceiling) for group in GROUPS}
            for number in range(1, self.settings.rounds + 1):
                for group in GROUPS:
                    figures += [turn(number) for turn in in_turn(turns[group], number)]
                    self.say(f"round {number}, {group}: {_rates(figures, group, number)} requests/s")
        return figures

    def _turns(
        self,
        tried: Sequence[Figure],
        group: str,
        own: Running,
        fastapi: Callable[[str], Running],
        ceiling: Callable[[Setting], Ceiling],
    ) -> list[Callable[[int], Figure]]:
        """One function of the round's number for each way, with whatever it needs started."""
        label = best(tried, (FASTAPI,), group)
        application = fastapi(label)
        turns = [
            lambda number: self._ask(OURS, "", own, group, number),
            lambda number: self._ask(FASTAPI, label, application, group, number),
            lambda number: self._ask(OURS + ALONE, "", own, group, number, callers=1),
        ]
        for name, among in ((IN_PROCESS, (IN_PROCESS, ONE_BY_ONE)), (ONE_BY_ONE, (ONE_BY_ONE,)), (_SINGLE, (_SINGLE,))):
            chosen = best(tried, among, group)
            arrangement = next(a for a in self._arrangements() if str(a) == chosen)
            started = ceiling(arrangement.setting)
            turns.append(functools.partial(self._execute, name, arrangement, started, group))
        return turns

    def _arrangements(self) -> list[Arrangement]:
        return [Arrangement(s, joined) for s in _fastapi()[0].settings for joined in self.settings.joined]

    def _fastapi(self, label: str) -> contextlib.AbstractContextManager[Running]:
        system, setting = next((p, s) for p in _fastapi() for s in p.settings if f"{p.name} {s}" == label)
        return peer(system, setting, self.python, self.folder)

    def _ask(
        self,
        name: str,
        setting: str,
        running: Running,
        group: str,
        number: int,
        *,
        callers: int | None = None,
        seconds: float | None = None,
    ) -> Figure:
        turn = take_turn(
            running,
            self.groups[group].texts,
            self.groups[group].right,
            callers=self.settings.callers if callers is None else callers,
            seconds=self.settings.seconds if seconds is None else seconds,
            warm_up=self.settings.warm_up,
            tolerance=self.settings.tolerance,
        )
        return _figure(name, setting, group, number, turn)

    def _execute(self, name: str, arrangement: Arrangement, ceiling: Ceiling, group: str, number: int) -> Figure:
        seconds = self.settings.seconds if number else self.settings.choosing
        turn = ceiling.turn(group, arrangement.joined, seconds, self.settings.tolerance)
        return _figure(name, str(arrangement), group, number, turn)

    def _in_process(self, setting: Setting) -> contextlib.AbstractContextManager[Ceiling]:
        groups = {name: (group.texts, group.right) for name, group in self.groups.items()}
        return started_ceiling(setting, self.python, self.folder, groups)

    def _said(self, figure: Figure) -> Figure:
        self.say(
            f"choosing: {figure.name} {figure.setting}, {figure.group}: {figure.throughput:.1f} texts/s, "
            f"p50 {figure.p50:.2f} ms"
        )
        return figure


def _figure(name: str, setting: str, group: str, number: int, turn: Turn | CeilingTurn) -> Figure:
    latencies = sorted(turn.latencies)
    return Figure(
        name,
        setting,
        group,
        number,
        turn.throughput,
        percentile(latencies, 0.50) or 0.0,
        percentile(latencies, 0.99) or 0.0,
        turn.right,
        turn.wrong,
        turn.faults,
        turn.largest_difference,
        turn.generator_cpu,
        turn.other_cpu,
    )


def _rates(figures: Sequence[Figure], group: str, number: int) -> str:
    of = [figure for figure in figures if (figure.group, figure.round) == (group, number)]
    return ", ".join(f"{figure.name} {figure.throughput:.1f}" for figure in of)
