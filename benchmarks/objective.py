"""The service level objective as a file: which measured value has to meet which target.

A TOML file of lines such as `latency_p95 = "<= 200"`; the names are those of the report, the targets a direction and a
number (see `verdict.parse_target`). A value without a line is measured and reported, and decides nothing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import verdict
from benchmarks.errors import SloError

SLO_FOLDER = Path(__file__).parent / "slo"

UNITS: Mapping[str, str] = {
    "latency_p50": "ms",
    "latency_p95": "ms",
    "latency_p99": "ms",
    "throughput": "requests/s",
    "error_rate": "",
    "mean_batch_size": "rows",
}
"""What may have a target, with its unit: what the service is measured by, never what tells whether a run is valid."""


@dataclass(frozen=True)
class Slo:
    """The targets by name, and the file they were read from."""

    source: str
    targets: Mapping[str, str]


def read_slo(path: Path) -> Slo:
    """Read a file of targets.

    Raises:
        SloError: if it cannot be read, is not TOML, is empty, or has unknown names or malformed targets; all of them
            are named in the one message.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SloError(f"cannot read the targets {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SloError(f'{path} is not TOML: {error}; write lines such as latency_p95 = "<= 200"') from error
    return Slo(str(path), parse_targets(content, str(path)))


def parse_targets(content: Mapping[str, object], source: str) -> dict[str, str]:
    """The targets in the order of the file; raises `SloError` with every fault in it."""
    targets: dict[str, str] = {}
    faults = []
    for name, target in content.items():
        if name not in UNITS:
            faults.append(f"{name!r} is not measured (known: {', '.join(UNITS)})")
        elif not isinstance(target, str):
            faults.append(f'{name} = {target!r} is not a target in quotation marks, such as "<= 200"')
        else:
            try:
                verdict.parse_target(target)
            except ValueError as error:
                faults.append(f"{name}: {error}")
            else:
                targets[name] = target
    if not content:
        faults.append('no target in it; write for instance latency_p95 = "<= 200"')
    if faults:
        raise SloError(f"{source}: " + "; ".join(faults))
    return targets
