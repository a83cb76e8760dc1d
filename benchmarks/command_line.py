"""What the commands have in common: their descriptions, what they tell on stderr, and how a report is handed over."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import verdict


def add_command(commands: Any, name: str, short: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A command; `short` stands in the list of all, the rest in its own help."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=short,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return command


def add_served(command: argparse.ArgumentParser, *, model: str, repository: Path) -> None:
    """The options for what is served and asked."""
    command.add_argument("--model", default=model, metavar="NAME", help="the ensemble (default: %(default)s)")
    command.add_argument("--repository", type=Path, default=repository, metavar="DIR")
    command.add_argument("--texts", type=Path, metavar="FILE", help="as for load (default: IMDB reviews)")


def add_output(command: argparse.ArgumentParser, *, instead_of: str = "the table") -> None:
    """The options for the verdict."""
    command.add_argument("--report-only", action="store_true", help="exit 0 though a check does not hold")
    command.add_argument("--json", action="store_true", help=f"print the report as JSON instead of {instead_of}")


def log_to_stderr() -> None:
    """What the package tells of its progress, on stderr."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("benchmarks").setLevel(logging.INFO)


def say(line: str) -> None:
    """A line of progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def fresh_folder(command: str, *files: str) -> Path:
    """The folder of a command's report, without one, nor those other files, that could pass for this run's."""
    folder = verdict.BUILD_FOLDER / command
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", *files):
        (folder / name).unlink(missing_ok=True)
    return folder


def finish(options: argparse.Namespace, report: verdict.Report, shown: str, *, broken: bool = False) -> int:
    """Write the report, print it as JSON or as `shown`, and return the exit status.

    `--report-only` forgives a missed target, not a broken service.
    """
    path = report.write()
    print(json.dumps(report.as_dict(), indent=2) if options.json else f"{shown}\nreport: {path}")
    return 1 if broken else report.exit_status(report_only=options.report_only)
