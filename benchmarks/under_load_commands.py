"""`python -m benchmarks connections`, `overload` and `soak`: a server of our own under an open load.

What measures is imported where it runs: the load command must become cooperative before sockets and gRPC are there.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
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
from benchmarks.objective import SLO_FOLDER, read_slo
from benchmarks.texts import LONG_ENOUGH_OF, load_texts
from benchmarks.under_load_settings import OverloadSettings, SoakSettings

_SHORT = 20  # tokens, of the short texts of all comparisons
_TEXTS = 48


def add_under_load(commands: Any, examples: str) -> None:
    """Add the three commands."""
    over, long = OverloadSettings(), SoakSettings()
    command = add_command(
        commands,
        "connections",
        "a rate of requests on many connections, counted where the server holds them",
        "Hold many connections to a server of our own and offer a rate of requests on them, whatever it answers. Every "
        "answer is checked. Writes build/connections/report.json.",
        examples,
    )
    command.add_argument("--connections", type=int, default=1000, help="default: %(default)s")
    command.add_argument("--rate", type=float, default=2000.0, help="requests/s (default: %(default)s)")
    command.add_argument("--seconds", type=float, default=60.0, help="that are measured (default: %(default)s)")
    command.add_argument("--warm-up", type=float, default=5.0, help="seconds, left out (default: %(default)s)")
    command.add_argument("--arrival", choices=("fixed", "poisson"), default="poisson", help="default: %(default)s")
    command.add_argument("--tokens", type=int, default=_SHORT, help="of each text; 0: whole texts (%(default)s)")
    _add_common(command, processes=2)
    command.set_defaults(run=_connections)

    command = add_command(
        commands,
        "overload",
        "multiples of what a server can answer: goodput, refusals, hangs",
        "Find the most that a server of our own answers rightly in a closed loop, then offer multiples of it. Writes "
        "build/overload/report.json.",
        examples,
    )
    command.add_argument(
        "--factors", type=_numbers, default=over.factors, metavar="N,N", help="multiples of the peak (default: 2,5)"
    )
    command.add_argument("--seconds", type=float, default=over.seconds, help="for each (default: %(default)s)")
    command.add_argument("--warm-up", type=float, default=over.warm_up, help="seconds, left out (default: %(default)s)")
    command.add_argument(
        "--peak-seconds", type=float, default=over.peak_seconds, help="with each number of callers (%(default)s)"
    )
    command.add_argument("--connections", type=int, default=over.connections, help="default: %(default)s")
    command.add_argument("--tokens", type=int, default=0, help="of each text; 0: whole texts (default: %(default)s)")
    command.add_argument(
        "--slo", type=Path, metavar="FILE.toml", default=SLO_FOLDER / "production.toml", help="for the accepted's p99"
    )
    _add_common(command, processes=over.processes)
    command.set_defaults(run=_overload)

    command = add_command(
        commands,
        "soak",
        "hours at a share of the peak: does memory or latency grow?",
        "Offer a share of the peak to a server of our own for hours. Writes a line a minute to "
        "build/soak/intervals.jsonl as it goes, and build/soak/report.json at the end.",
        examples,
    )
    command.add_argument("--hours", type=float, default=long.hours, help="default: %(default)s")
    command.add_argument("--share", type=float, default=long.share, help="of the peak (default: %(default)s)")
    command.add_argument(
        "--interval", type=float, default=long.interval, help="seconds of a line (default: %(default)s)"
    )
    command.add_argument(
        "--peak-seconds", type=float, default=long.peak_seconds, help="with each number of callers (%(default)s)"
    )
    command.add_argument("--connections", type=int, default=long.connections, help="default: %(default)s")
    command.add_argument("--tokens", type=int, default=0, help="of each text; 0: whole texts (default: %(default)s)")
    _add_common(command, processes=long.processes)
    command.set_defaults(run=_soak)


def _add_common(command: argparse.ArgumentParser, *, processes: int) -> None:
    add_served(command, model="bet", repository=Path("model_repository"))
    command.add_argument("--processes", type=int, default=processes, help="generators (default: %(default)s)")
    add_output(command)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _texts(options: argparse.Namespace) -> Sequence[str]:
    from benchmarks.served import beginnings  # noqa: PLC0415

    if not options.tokens:
        return load_texts(options.texts).texts
    texts = load_texts(options.texts, sample=LONG_ENOUGH_OF).texts
    return beginnings(options.repository, options.model, texts, options.tokens, _TEXTS)


def _connections(options: argparse.Namespace) -> int:
    from benchmarks.many_connections import hold_connections, judge_connections  # noqa: PLC0415
    from benchmarks.open_loop import OpenLoad  # noqa: PLC0415
    from benchmarks.overload import broken  # noqa: PLC0415
    from benchmarks.served import serve_texts  # noqa: PLC0415

    load = OpenLoad(
        port=0,  # known once the server has started
        connections=options.connections,
        rate=options.rate,
        seconds=options.seconds,
        warm_up=options.warm_up,
        arrival=options.arrival,
        processes=options.processes,
    )
    log_to_stderr()
    fresh_folder("connections")
    with serve_texts(options.repository, options.model, _texts(options), options.connections) as served:
        load = dataclasses.replace(load, port=served.port)
        outcome = hold_connections(load, served)
    report = judge_connections(load, outcome)
    shown = _shown(report, outcome.run.invalid)
    return finish(options, report, shown, broken=broken([outcome.run], server_alive=outcome.server_alive))


def _overload(options: argparse.Namespace) -> int:
    from benchmarks.overload import broken, judge_overload, overload  # noqa: PLC0415
    from benchmarks.served import serve_texts  # noqa: PLC0415

    settings = OverloadSettings(
        factors=options.factors,
        seconds=options.seconds,
        warm_up=options.warm_up,
        peak_seconds=options.peak_seconds,
        connections=options.connections,
        processes=options.processes,
        latency_p99=read_slo(options.slo).targets.get("latency_p99"),
    )
    log_to_stderr()
    fresh_folder("overload")
    with serve_texts(options.repository, options.model, _texts(options), options.connections) as served:
        outcome = overload(settings, served, say)
    runs = list(outcome.runs.values())
    invalid = [f"{factor:g}x: {reason}" for factor, run in outcome.runs.items() for reason in run.invalid]
    report = judge_overload(settings, outcome)
    return finish(options, report, _shown(report, invalid), broken=broken(runs, server_alive=outcome.server_alive))


def _soak(options: argparse.Namespace) -> int:
    from benchmarks.served import serve_texts  # noqa: PLC0415
    from benchmarks.soak import judge_soak, problems, soak  # noqa: PLC0415

    settings = SoakSettings(
        hours=options.hours,
        share=options.share,
        interval=options.interval,
        peak_seconds=options.peak_seconds,
        connections=options.connections,
        processes=options.processes,
    )
    log_to_stderr()
    folder = fresh_folder("soak")
    with serve_texts(options.repository, options.model, _texts(options), options.connections) as served:
        outcome = soak(settings, served, folder / "intervals.jsonl", say)
    report = judge_soak(settings, outcome)
    broken = not outcome.server_alive or any(line.wrong for line in outcome.intervals)
    return finish(options, report, _shown(report, problems(settings, outcome)), broken=broken)


def _shown(report: verdict.Report, invalid: Sequence[str]) -> str:
    return "\n".join([report.table(), *(f"invalid: {reason}" for reason in invalid)])
