"""`python -m export`: add a version behind the gate, verify the one that answers, list, remove, switch and share."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Spinning OpenMP threads on shared cores make an execution many times as slow; this must stand before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from export import registry, versions
from export.add import GATE_TEXTS, PADDED_GATE_TEXTS, AddOptions, add
from export.audit import read_audit
from export.control import Control
from export.errors import ExportError, RegistryError, RepositoryError
from export.precision import FP32, PRECISIONS
from export.repository import DEFAULT_NAME, Names
from export.rollout import COMPARED_TEXTS, PromoteOptions, Switch, promote, rollback
from export.rows import RowFiles
from export.verify import PADDED_VERIFY_TEXTS, VERIFY_TEXTS, VerifyOptions, verify
from train.errors import TrainError
from verdict import Report


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done and all hold, 1 a check does not hold, 2 wrong use)."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        format="%(message)s", level=logging.WARNING if options.json else logging.INFO, stream=sys.stderr
    )
    for library in ("datasets", "httpx", "fsspec", "filelock", "transformers"):
        logging.getLogger(library).setLevel(logging.WARNING)
    disable_progress_bar()  # transformers draws one for loading a file that takes a blink
    set_verbosity_error()  # what it warns of and matters is refused, in one sentence (export.hugging_face)
    try:
        return int(options.run(options))
    except (ExportError, TrainError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        return 2


def _add(options: argparse.Namespace) -> int:
    added = add(
        AddOptions(
            checkpoint=options.checkpoint,
            name=options.name,
            repository=options.repository,
            files=_files(options),
            max_error=options.max_error,
            confidence=options.confidence,
            gate_texts=options.gate_texts,
            max_tokens=options.max_tokens,
            precision=PRECISIONS[options.precision],
            device=options.device,
        )
    )
    where = options.repository / Names(options.name).classifier
    outcome = (
        f"version {added.version} of {options.name!r} answers from now on: {where / str(added.version)}"
        if added.version is not None
        else f"refused: the gate does not hold, and {options.repository} is as it was"
    )
    added.report.details["version"] = added.version
    _print_report(added.report, options, outcome)
    return added.report.exit_status()


def _verify(options: argparse.Namespace) -> int:
    report = verify(
        VerifyOptions(
            name=options.name,
            repository=options.repository,
            url=options.url or ("localhost:8001" if options.protocol == "grpc" else "localhost:8000"),
            protocol=options.protocol,
            files=_files(options),
            texts=options.gate_texts,
        )
    )
    _print_report(
        report, options, f"compared with version {report.details['version']}; truth: {report.details['truth']}"
    )
    return report.exit_status(report_only=options.report_only)


def _list(options: argparse.Namespace) -> int:
    names = Names(options.name)
    if options.audit:
        return _show_audit(options, names)
    found = versions.list_versions(options.repository, names)
    stray = versions.stray_pins(options.repository, names)
    if options.json:
        content = {"name": options.name, "versions": [version.as_dict() for version in found], "stray_pins": stray}
        print(json.dumps(content))
        return 0
    if not found:
        print(f"no version of {options.name!r} in {options.repository}; `python -m export add CHECKPOINT` makes one")
    for version in found:
        state = "answers" if version.pinned else "previous" if version.previous else ""
        what = "; ".join(version.faults) or f"{version.created}  {version.kind}: {', '.join(version.labels)}"
        print(f"{version.number:>4}  {state:<8}  {what}")
    for ensemble, number in stray.items():
        print(f"{ensemble!r} pins version {number}: a switch was interrupted; the next promote or rollback mends it")
    return 0


def _show_audit(options: argparse.Namespace, names: Names) -> int:
    for entry in read_audit(options.repository, names):
        if options.json:
            print(json.dumps(entry, ensure_ascii=False))
            continue
        counts = ", ".join(f"{key} {value}" for key, value in entry.get("counts", {}).items() if value is not None)
        switch = f"{entry.get('action', '')} {entry.get('from')} -> {entry.get('to')}"
        print(
            f"{entry.get('time', '')}  {entry.get('user', '')}  {switch}  {entry['step']}: {entry['outcome']}  {counts}"
        )
    return 0


def _remove(options: argparse.Namespace) -> int:
    names = Names(options.name)
    if options.url is not None:
        with Control(options.url, options.protocol) as server:
            for ensemble in names.ensembles:
                if server.pinned(ensemble) == options.version:
                    raise RepositoryError(
                        f"{options.url} answers {ensemble!r} with version {options.version}: promote another first"
                    )
    versions.remove(options.repository, names, options.version)
    return _say(options, {"removed": options.version}, f"version {options.version} of {options.name!r} is removed")


def _promote(options: argparse.Namespace) -> int:
    registered = _registered(options, options.version)
    switch = promote(
        PromoteOptions(
            name=options.name,
            version=options.version,
            repository=options.repository,
            url=options.url,
            protocol=options.protocol,
            files=RowFiles(texts=options.texts, text_column=options.text_column),
            max_flips=options.max_flips,
            max_latency_ratio=options.max_latency_ratio,
            watch=options.watch,
        )
    )
    return _switched(options, switch, registered)


def _rollback(options: argparse.Namespace) -> int:
    pins = versions.read_pins(options.repository, Names(options.name))
    registered = _registered(options, None if pins is None else pins.previous)
    switch = rollback(options.name, options.repository, options.url, options.protocol, watch=options.watch)
    return _switched(options, switch, registered)


def _switched(options: argparse.Namespace, switch: Switch, registered: str | None) -> int:
    if switch.holds and switch.version is not None:
        _set_champion(options, switch.version, registered)
    if switch.report is None:
        return _say(options, {"version": switch.version, "before": switch.before, "url": None}, switch.outcome)
    switch.report.details.update({"version": switch.version, "before": switch.before, "outcome": switch.outcome})
    _print_report(switch.report, options, switch.outcome)
    return switch.report.exit_status()


def _registered(options: argparse.Namespace, number: int | None) -> str | None:
    """The registry's version of what is to answer; looked up first, so that a registry that is away changes nothing."""
    if options.registry is None or number is None:
        return None
    return registry.registered_version(options.repository, Names(options.name), number, options.registry)


def _set_champion(options: argparse.Namespace, number: int, registered: str | None) -> None:
    if registered is None:
        return
    try:
        registry.set_champion(Names(options.name), registered, options.registry)
    except RegistryError as error:
        raise RegistryError(
            f"{error}; version {number} answers already: `python -m export promote {options.name} {number} --registry "
            "…` moves the alias"
        ) from error


def _push(options: argparse.Namespace) -> int:
    pushed = registry.push(options.repository, Names(options.name), options.version, options.registry)
    what = "is" if pushed.new else "was already"
    return _say(
        options,
        {"registered": pushed.version, "new": pushed.new},
        f"{options.name!r} {what} version {pushed.version} of the registry",
    )


def _pull(options: argparse.Namespace) -> int:
    names = Names(options.name)
    pulled = registry.pull(options.repository, names, options.registry, version=options.version, alias=options.alias)
    what = "version" if pulled.new else "there already: version"
    return _say(
        options,
        {"version": pulled.number, "registered": pulled.version, "new": pulled.new},
        f"{what} {pulled.number} of {options.name!r} answers from now on; in the registry it is {pulled.version}",
    )


def _say(options: argparse.Namespace, content: dict[str, Any], text: str) -> int:
    print(json.dumps({"name": options.name, **content}) if options.json else text)
    return 0


def _print_report(report: Report, options: argparse.Namespace, outcome: str) -> None:
    path = report.write()
    if options.json:
        print(json.dumps(report.as_dict()))
    else:
        print(report.table())
        print(f"{outcome}\nreport: {path}")


def _files(options: argparse.Namespace) -> RowFiles:
    return RowFiles(getattr(options, "calibration", None), options.texts, options.text_column, options.label_column)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _command(
        commands, "add", _add, "export a checkpoint, compare, and move it in", "build/checkpoint/production"
    )
    command.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a production folder of `train`, or a fine-tuned Hugging Face sequence classifier",
    )
    command.add_argument("--name", default=DEFAULT_NAME, help="name to serve it under (default: %(default)s)")
    command.add_argument("--calibration", type=Path, metavar="FILE", help="labelled rows to take the decision on")
    command.add_argument(
        "--max-error",
        type=float,
        default=0.05,
        help="error budget of accepted answers, of several labels that of each (%(default)s)",
    )
    command.add_argument("--confidence", type=float, default=0.95, help="of that budget (default: %(default)s)")
    command.add_argument(
        "--max-tokens", type=int, metavar="N", help="tokens to read of a text, where the architecture states no limit"
    )
    command.add_argument(
        "--precision", choices=tuple(PRECISIONS), default=FP32.name, help="of the ONNX graph (default: %(default)s)"
    )
    command.add_argument(
        "--device", choices=("cpu", "gpu"), default="cpu", help="to time and compare on (default: %(default)s)"
    )
    _gate_options(command, f"{GATE_TEXTS}, or {PADDED_GATE_TEXTS} for Hugging Face")

    command = _command(commands, "verify", _verify, "compare a running server with the pinned version", "bet")
    command.add_argument("name", metavar="NAME")
    _gate_options(command, f"{VERIFY_TEXTS}, or {PADDED_VERIFY_TEXTS} for Hugging Face")
    _server_options(command, "the server to compare (default: Triton's port of the protocol on this machine)")
    command.add_argument("--report-only", action="store_true", help="exit with 0 even if a check does not hold")

    command = _command(commands, "list", _list, "show the versions of a name", "bet")
    command.add_argument("name", metavar="NAME", nargs="?", default=DEFAULT_NAME)
    command.add_argument("--audit", action="store_true", help="show each step of its promotions and rollbacks instead")

    command = _command(commands, "remove", _remove, "remove a version that does not answer", "bet 1")
    command.add_argument("name", metavar="NAME")
    command.add_argument("version", type=int, metavar="VERSION")
    _server_options(command, "a running server that must not answer with it either")

    command = _command(
        commands, "promote", _promote, "make a version the one that answers", "bet 2 --url localhost:8001"
    )
    command.add_argument("name", metavar="NAME")
    command.add_argument("version", type=int, metavar="VERSION")
    _server_options(command, "a running server on which it is compared, switched and watched; else on disk only")
    command.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help=f"texts to compare on, at most {COMPARED_TEXTS} (default: its calibration rows, else its golden texts)",
    )
    command.add_argument("--text-column", default="text", help="in FILE (default: %(default)s)")
    command.add_argument(
        "--max-flips",
        type=_positive,
        default=PromoteOptions.max_flips,
        metavar="SHARE",
        help="largest share of texts with another label than before (default: %(default)s)",
    )
    command.add_argument(
        "--max-latency-ratio",
        type=_positive,
        default=PromoteOptions.max_latency_ratio,
        metavar="RATIO",
        help="largest ratio of the median latency to the one before (default: %(default)s)",
    )
    _watch_option(command)
    _registry_option(command, "an MLflow registry whose alias `champion` is to follow")

    command = _command(
        commands, "rollback", _rollback, "make the version before answer again", "bet --url localhost:8001"
    )
    command.add_argument("name", metavar="NAME")
    _server_options(command, "a running server that is to switch at once and is watched; else on disk only")
    _watch_option(command)
    _registry_option(command, "an MLflow registry whose alias `champion` is to follow")

    command = _command(
        commands, "push", _push, "register a version with MLflow", "bet 2 --registry http://localhost:5000"
    )
    command.add_argument("name", metavar="NAME")
    command.add_argument("version", type=int, nargs="?", metavar="VERSION", help="by default the one that answers")
    _registry_option(command, "an MLflow server, or sqlite:///FILE", required=True)

    command = _command(
        commands, "pull", _pull, "install a version of a registry", "bet --registry http://localhost:5000"
    )
    command.add_argument("name", metavar="NAME")
    chosen = command.add_mutually_exclusive_group()
    chosen.add_argument("--version", metavar="N", help="of the registry")
    chosen.add_argument("--alias", default=registry.CHAMPION, help="in place of a version (default: %(default)s)")
    _registry_option(command, "an MLflow server, or sqlite:///FILE", required=True)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], description: str, example: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=description, description=description, epilog=f"example: python -m export {name} {example}"
    )
    command.add_argument("--repository", type=Path, default=Path("model_repository"), metavar="DIR")
    command.add_argument("--json", action="store_true", help="print a machine-readable result")
    command.set_defaults(run=run)
    return command


def _gate_options(command: argparse.ArgumentParser, count: str) -> None:
    command.add_argument("--texts", type=Path, metavar="FILE", help="texts to compare on (CSV, JSONL or Parquet)")
    command.add_argument("--text-column", default="text", help="in FILE (default: %(default)s)")
    command.add_argument("--label-column", default="label", help="in FILE (default: %(default)s)")
    command.add_argument("--gate-texts", type=int, metavar="N", help=f"texts to compare ({count})")


def _watch_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--watch",
        type=_positive,
        default=PromoteOptions.watch,
        metavar="SECONDS",
        help="to look at the answers after the switch (default: %(default)s)",
    )


def _positive(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number of 0 or more")
    return number


def _registry_option(command: argparse.ArgumentParser, what: str, *, required: bool = False) -> None:
    command.add_argument("--registry", metavar="URI", required=required, help=what)


def _server_options(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--url", metavar="HOST:PORT", help=what)
    command.add_argument("--protocol", choices=("grpc", "http"), default="grpc")


if __name__ == "__main__":
    sys.exit(main())
