"""`python -m benchmarks compare` and `packed`: their options, and which comparison they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import verdict
from benchmarks.command_line import (
    add_command,
    add_output,
    add_served,
    finish,
    fresh_folder,
    log_to_stderr,
    say,
)
from benchmarks.compare_settings import CompareSettings, GraphSettings, PackedSettings
from benchmarks.errors import UsageError
from benchmarks.texts import LONG_ENOUGH_OF, SAMPLE_SIZE, load_texts

_ONLY_WITH_CHECKPOINT = ("lengths", "held_out")


def add_compare(commands: Any, examples: str) -> None:
    """Add the command."""
    graph = GraphSettings()
    compare = add_command(
        commands,
        "compare",
        "our server beside what a team would write itself, on this machine",
        (
            "Without --checkpoint: the graph that NAME serves, run by our server, by FastAPI with ONNX Runtime (the "
            "best of sync and async, one worker and one for each core), and by ONNX Runtime in process, the ceiling. "
            "With it: one Hugging Face checkpoint, served by our repository, by transformers and by optimum's ONNX "
            "Runtime behind FastAPI. All are asked in turn, one at a time, the same real texts in a closed loop, and "
            "every answer is checked. Writes build/compare/report.json. The first run installs the peers into "
            "build/peers."
        ),
        examples,
    )
    add_served(compare, model=graph.model, repository=graph.repository)
    compare.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="the Hugging Face folder that NAME was exported from"
    )
    compare.add_argument(
        "--lengths", type=_lengths, metavar="N,N", help="in tokens, with --checkpoint (default: 16,64,128,256)"
    )
    compare.add_argument(
        "--callers", type=int, help="connections, all always waiting (default: 32, with --checkpoint 8)"
    )
    compare.add_argument(
        "--seconds",
        type=float,
        default=graph.seconds,
        help="measured for each system, length and round (default: %(default)s)",
    )
    compare.add_argument("--rounds", type=int, default=graph.rounds, help="default: %(default)s")
    compare.add_argument("--tolerance", type=float, help="of a probability (default: 1e-05, with --checkpoint 0.001)")
    compare.add_argument(
        "--held-out", type=Path, metavar="FILE.csv", help="text,label: compare the accuracy, with --checkpoint"
    )
    add_output(compare, instead_of="the tables")
    compare.set_defaults(run=_compare)


def add_packed(commands: Any, examples: str) -> None:
    """Add the command."""
    defaults = PackedSettings()
    packed = add_command(
        commands,
        "packed",
        "one graph on joined texts of real lengths: packed, and padded to the longest",
        (
            "Execute the graph that NAME serves on batches of real texts, end to end and padded to the longest text of "
            "each batch, in turns in this process; tokens/s of both. Writes build/packed/report.json."
        ),
        examples,
    )
    add_served(packed, model=defaults.model, repository=defaults.repository)
    packed.add_argument("--rows", type=int, default=defaults.rows, help="texts in a batch (default: %(default)s)")
    packed.add_argument("--batches", type=int, default=defaults.batches, help="default: %(default)s")
    packed.add_argument("--rounds", type=int, default=defaults.rounds, help="default: %(default)s")
    packed.add_argument("--threads", type=int, default=defaults.threads, help="of ONNX Runtime (default: %(default)s)")
    add_output(packed)
    packed.set_defaults(run=_packed)


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _compare(options: argparse.Namespace) -> int:
    log_to_stderr()
    report, tables = (_same_graph if options.checkpoint is None else _checkpoint)(options)
    return finish(options, report, f"{tables}\n\n{report.table()}\n")


def _packed(options: argparse.Namespace) -> int:
    from benchmarks.packed import judge_packed, measure_packed  # noqa: PLC0415 (as below)

    settings = PackedSettings(
        model=options.model,
        repository=options.repository,
        rows=options.rows,
        batches=options.batches,
        rounds=options.rounds,
        threads=options.threads,
    )
    fresh_folder("packed")
    texts = load_texts(options.texts, sample=LONG_ENOUGH_OF).texts
    report = judge_packed(settings, measure_packed(settings, texts, say))
    return finish(options, report, report.table())


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; the others are the settings' own defaults."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _same_graph(options: argparse.Namespace) -> tuple[verdict.Report, str]:
    # Not at the top, nor for `--help`: these import ONNX Runtime, those below torch, and the load command must become
    # cooperative before anything does.
    from benchmarks.peers.environment import ONNX_REQUIREMENTS, peer_python  # noqa: PLC0415
    from benchmarks.same_graph import compare_same_graph  # noqa: PLC0415
    from benchmarks.same_graph_report import judge_same_graph, table_same_graph  # noqa: PLC0415

    if wrong := [name for name in _ONLY_WITH_CHECKPOINT if getattr(options, name) is not None]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise UsageError(f"{names} goes with --checkpoint; give it, or leave {names} out")
    settings = GraphSettings(
        model=options.model,
        repository=options.repository,
        seconds=options.seconds,
        rounds=options.rounds,
        **_given(options, "callers", "tolerance"),
    )
    fresh_folder("compare")
    exact = load_texts(options.texts, sample=LONG_ENOUGH_OF)
    whole = load_texts(options.texts, sample=SAMPLE_SIZE)
    python = peer_python(verdict.BUILD_FOLDER / "peers", ONNX_REQUIREMENTS)
    outcome = compare_same_graph(settings, exact.texts, whole.texts, python, say)
    return judge_same_graph(settings, outcome), table_same_graph(outcome)


def _checkpoint(options: argparse.Namespace) -> tuple[verdict.Report, str]:
    from benchmarks.compare import compare  # noqa: PLC0415
    from benchmarks.compare_report import judge, table  # noqa: PLC0415
    from benchmarks.peers.environment import peer_python  # noqa: PLC0415

    settings = CompareSettings(
        model=options.model,
        checkpoint=options.checkpoint,
        repository=options.repository,
        seconds=options.seconds,
        rounds=options.rounds,
        **_given(options, "lengths", "callers", "tolerance"),
    )
    fresh_folder("compare")
    texts = load_texts(options.texts, sample=LONG_ENOUGH_OF)
    python = peer_python(verdict.BUILD_FOLDER / "peers")
    outcome = compare(settings, texts.texts, python, options.held_out, say)
    return judge(settings, outcome), table(settings, outcome)
