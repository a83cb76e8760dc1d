"""Which form of a graph is served: optimisation levels and fused operators, each measured against the plain one.

All are timed in one run, in turn, on the same real texts, since a machine's speed drifts by more than they differ.
A second session of the plain graph runs along, and shows what a difference of nothing looks like: only a form whose
slow rounds beat that one's fast rounds is faster. Whatever answers differently from PyTorch is refused, however fast.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.transformers import optimizer

from export.answers import Answers, compare
from export.encoder import Ids
from export.errors import GraphError
from export.onnx_format import open_session, quiet
from export.parity import FLIPS, Tolerances, onnx_executor, run
from export.precision import provider_of
from export.repository import CPU, GRAPH_LEVELS
from export.texts import GateText

TIMED_TOKENS = (16, 64, 128)
_ROUNDS, _LEAST_ROUNDS = 15, 5
_SECONDS = 6.0  # for all rounds of all candidates
_LEAST_RUN = 0.002  # seconds; a shorter execution is repeated, the clock and the scheduler are no finer
_AGAIN = " again"  # behind the plain form's name: its twin
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """One form of a graph."""

    name: str
    graph: Path
    level: str
    provider: str = "CPUExecutionProvider"


@dataclass(frozen=True)
class Measured:
    """What came of it: seconds of an execution over the plain graph's, and whether it answers as PyTorch does."""

    name: str
    level: str
    ratio: float  # median over rounds
    low: float  # 10th percentile
    high: float  # 90th percentile
    difference: float | None  # largest |Δp|
    refused: str  # why; empty where it may be served


@dataclass(frozen=True)
class Choice:
    """The form that is served, with the numbers of all."""

    served: Candidate
    against: str
    measured: tuple[Measured, ...]
    rounds: int
    tokens: tuple[int, ...]  # of the texts that were timed
    compared: int  # texts that each was compared on

    def as_dict(self) -> dict[str, Any]:
        """For manifest and report."""
        return {
            "served": self.served.name,
            "level": self.served.level,
            "provider": self.served.provider,
            "against": self.against,
            "rounds": self.rounds,
            "tokens": list(self.tokens),
            "texts_compared": self.compared,
            "candidates": [
                {
                    "name": m.name,
                    "level": m.level,
                    "ratio": _plain(m.ratio),
                    "ratio_10": _plain(m.low),
                    "ratio_90": _plain(m.high),
                    "difference": None if m.difference is None else _plain(m.difference),
                    "refused": m.refused,
                }
                for m in self.measured
            ],
        }

    def sentence(self) -> str:
        """One line for the log."""
        others = ", ".join(
            f"{m.name} {m.ratio:.2f} ({m.low:.2f}-{m.high:.2f}){' refused' if m.refused else ''}" for m in self.measured
        )
        return f"served: {self.served.name}; seconds over those of {self.against!r}: {others}"


def candidates(
    graph: Path, folder: Path, config: Mapping[str, Any], *, device: str, level: str | None, fuse: bool
) -> list[Candidate]:
    """The plain graph first, then the others.

    Args:
        folder: where graphs are written that differ from the plain one.
        config: the checkpoint's; its `model_type` says whether ONNX Runtime knows how to fuse.
        level: the only one allowed, where other versions of the name run at it already; None leaves all open.
        fuse: whether fused operators are tried.
    """
    provider = provider_of(device)
    levels = [level] if level is not None else sorted(GRAPH_LEVELS)  # "all", the backend's default, is the first
    made = [Candidate(name, graph, name, provider) for name in levels]
    if device != CPU and "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        made.append(Candidate("tensorrt", graph, levels[0], "TensorrtExecutionProvider"))
    kind = config.get("model_type")
    if fuse and kind in optimizer.MODEL_TYPES and {"num_attention_heads", "hidden_size"} <= config.keys():
        fused = folder / "fused.onnx"
        with quiet():
            better = optimizer.optimize_model(
                str(graph),
                model_type=kind,
                num_heads=config["num_attention_heads"],
                hidden_size=config["hidden_size"],
                opt_level=0,  # its own fusions alone; the levels are candidates of their own
            )
        onnx.save(better.model, fused)
        made.append(Candidate("fused", fused, levels[0], provider))
    return made


def choose(  # noqa: PLR0917  # what is compared, on what, with what
    forms: Sequence[Candidate],
    parameters: Mapping[str, str],
    texts: Sequence[GateText],
    reference: Answers,
    tolerances: Tolerances,
    baseline: Candidate | None = None,
) -> Choice:
    """Time and compare all forms; the first is the plain one and served unless another is faster and right.

    Args:
        parameters: of the configuration that will serve them.
        texts: of the gate; one of each length and all hostile ones are compared, three of them are timed.
        reference: the truth about all of them.
        baseline: what all are timed against and nobody would serve: the plain graph in fp32 beside a lower precision.
    """
    plain = forms[0]
    against = (baseline or plain).name
    twin = f"{plain.name}{_AGAIN}"
    sessions: dict[str, onnxruntime.InferenceSession] = {}
    refused: dict[str, str] = {}
    twins = [Candidate(twin, plain.graph, plain.level, plain.provider), *([baseline] if baseline else [])]
    for form in (*forms, *twins):
        try:
            sessions[form.name] = open_session(form.graph, parameters, form.level, form.provider)
        except Exception as error:  # whatever ONNX Runtime raises for a graph that it cannot load
            refused[form.name] = f"cannot be loaded: {str(error).splitlines()[0]}"
    rows = _one_of_each_length(texts)
    differences: dict[str, float] = {}
    for name, session in sessions.items():
        if name not in {form.name for form in forms}:
            continue
        answers = run(onnx_executor(session), [texts[i].ids for i in rows], [([i], False) for i in range(len(rows))])
        difference = compare(reference.take(rows), answers)
        differences[name] = difference.answer
        refused[name] = _fault(difference, tolerances)
    timed = _timed_documents(texts)
    if plain.name not in sessions or against not in sessions:
        raise GraphError(f"ONNX Runtime {refused.get(plain.name) or refused[against]}")
    ratios = _ratios(sessions, against, timed)
    measured = tuple(
        Measured(
            name=form.name,
            level=form.level,
            ratio=float(np.median(ratios[form.name])) if form.name in ratios else math.nan,
            low=float(np.quantile(ratios[form.name], 0.1)) if form.name in ratios else math.nan,
            high=float(np.quantile(ratios[form.name], 0.9)) if form.name in ratios else math.nan,
            difference=differences.get(form.name),
            refused=refused.get(form.name, ""),
        )
        for form in (*forms, *twins)
    )
    nothing = float(np.quantile(ratios[twin] / ratios[plain.name], 0.1))
    over_plain = {form.name: ratios[form.name] / ratios[plain.name] for form in forms[1:] if form.name in ratios}
    faster = {
        name: float(np.median(ratio))
        for name, ratio in over_plain.items()
        if not refused[name] and np.quantile(ratio, 0.9) < min(nothing, 1.0)
    }
    best = min(faster, key=lambda name: faster[name]) if faster else plain.name
    choice = Choice(
        served=next(form for form in forms if form.name == best),
        against=against,
        measured=measured,
        rounds=len(ratios[against]),
        tokens=tuple(len(ids) for ids in timed),
        compared=len(rows),
    )
    _log.info("%s", choice.sentence())
    return choice


def _fault(difference: Any, tolerances: Tolerances) -> str:
    """What is beyond its tolerance, with its value; empty where nothing is."""
    beyond = [
        f"{name} differs by {value:.2g}, allowed are {allowed:g}"
        for name, allowed in tolerances.items()
        if (value := getattr(difference, name, None)) is not None and not value <= allowed
    ]
    flips = [f"{count} {name.replace('_', ' ')}" for name in FLIPS if (count := getattr(difference, name))]
    return "; ".join([*beyond, *flips])


def _one_of_each_length(texts: Sequence[GateText]) -> list[int]:
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(text.bucket, i)
    return sorted({*first.values(), *(i for i, text in enumerate(texts) if text.bucket == "hostile")})


def _timed_documents(texts: Sequence[GateText]) -> list[Ids]:
    """Of the gate's texts those nearest to the lengths that requests usually have."""
    nearest = {min(range(len(texts)), key=lambda i: abs(len(texts[i].ids) - tokens)) for tokens in TIMED_TOKENS}
    return [texts[i].ids for i in sorted(nearest, key=lambda i: len(texts[i].ids))]


def _ratios(
    sessions: Mapping[str, onnxruntime.InferenceSession], against: str, documents: Sequence[Ids]
) -> dict[str, NDArray[np.float64]]:
    """Of each session, by round: seconds over those of one of them, as the mean over the texts."""
    feeds = [{"input_ids": ids, "lengths": np.array([[len(ids)]], dtype=np.int32)} for ids in documents]
    repeats = []
    for feed in feeds:
        for session in sessions.values():
            session.run(None, feed)  # the first run of a shape allocates
        repeats.append(max(1, math.ceil(_LEAST_RUN / _seconds(sessions[against], feed, 1))))
    names = list(sessions)
    rounds: dict[str, list[float]] = {name: [] for name in names}
    started, random = time.perf_counter(), np.random.default_rng(0)
    for turn in range(_ROUNDS):
        if turn >= _LEAST_ROUNDS and time.perf_counter() - started > _SECONDS:
            break
        sums = dict.fromkeys(names, 0.0)
        for feed, repeat in zip(feeds, repeats, strict=True):
            order = random.permutation(len(names))  # who runs before whom shows in the caches
            taken = {names[i]: _seconds(sessions[names[i]], feed, repeat) for i in order}
            for name in names:
                sums[name] += taken[name] / taken[against] / len(feeds)
        for name in names:
            rounds[name].append(sums[name])
    return {name: np.array(values) for name, values in rounds.items()}


def _seconds(session: onnxruntime.InferenceSession, feed: Mapping[str, Any], repeat: int) -> float:
    """Of `repeat` executions; on a CPU, where one thread does all of it, that thread's own, whatever else runs."""
    alone = session.get_providers()[0] == "CPUExecutionProvider"
    clock = time.thread_time if alone and session.get_session_options().intra_op_num_threads == 1 else time.perf_counter
    started = clock()
    for _ in range(repeat):
        session.run(None, feed)
    return clock() - started


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity
