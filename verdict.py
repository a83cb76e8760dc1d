"""What was measured, beside what was asked: the one form in which every command reports.

Each command that measures (`train evaluate`, `export add`, `export verify`, `benchmarks load`, `make demo`) fills a
`Report`, prints its table, writes it to `build/<command>/report.json` and takes its exit status from it, so that a
person and a pipeline read the same verdict. This module imports nothing of the project and may be imported by all of
it.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import operator
import os
import platform
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BUILD_FOLDER = Path("build")

_DIRECTIONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
}


def parse_target(target: str) -> tuple[Callable[[float, float], bool], float]:
    """Read a target such as ``"<= 200"`` into its comparison and its number.

    Raises:
        ValueError: if the text is not a direction followed by a finite number.
    """
    direction, _, number = target.strip().partition(" ")
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if direction not in _DIRECTIONS or not math.isfinite(bound):
        raise ValueError(f"target {target!r} is not a direction and a number; write for instance '<= 200' or '>= 0.9'")
    return _DIRECTIONS[direction], bound


@dataclass(frozen=True)
class Check:
    """One measured value; with a target it is a check, without one it is only reported."""

    name: str
    value: float | None
    unit: str = ""
    target: str | None = None

    def __post_init__(self) -> None:
        if self.target is not None:
            parse_target(self.target)

    @property
    def holds(self) -> bool | None:
        """Whether the value meets the target: None without a target; a missing or non-finite value never does."""
        if self.target is None:
            return None
        if self.value is None or not math.isfinite(self.value):
            return False
        compare, bound = parse_target(self.target)
        return compare(self.value, bound)


@dataclass
class Report:
    """The checks of one command, with whatever details it adds for the reader of the JSON file."""

    command: str
    checks: list[Check] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: float | None, unit: str = "", target: str | None = None) -> None:
        """Append one check."""
        self.checks.append(Check(name, None if value is None else float(value), unit, target))

    @property
    def holds(self) -> bool:
        """True where no check with a target misses it; a report in which nothing was measured does not hold."""
        return bool(self.checks) and all(check.holds is not False for check in self.checks)

    def exit_status(self, *, report_only: bool = False) -> int:
        """0 where all holds (or only a report was asked for), else 1."""
        return 0 if report_only or self.holds else 1

    def as_dict(self) -> dict[str, Any]:
        """The content of `report.json`; numbers of the details that are not finite become null, as in the checks.

        Raises:
            ValueError: if a detail has the name of a field of every report.
        """
        own = {"command", "holds", "checks", "versions", "machine"}
        if clash := own & self.details.keys():
            raise ValueError(f"details {sorted(clash)} have names of the report's own fields; give them others")
        return {
            "command": self.command,
            "holds": self.holds,
            "checks": [
                {"name": c.name, "value": _finite(c.value), "unit": c.unit, "target": c.target, "holds": c.holds}
                for c in self.checks
            ],
            "versions": versions(),
            "machine": machine(),
            **_finite_details(self.details),
        }

    def write(self, folder: Path | None = None) -> Path:
        """Write `report.json` into `folder` (default `build/<command>`), by rename, and return its path."""
        folder = BUILD_FOLDER / self.command if folder is None else folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "report.json"
        unfinished = path.with_suffix(".json.tmp")
        unfinished.write_text(json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        unfinished.replace(path)
        return path

    def table(self) -> str:
        """The checks as aligned text, one line each."""
        rows = [("check", "value", "unit", "target", "")]
        for check in self.checks:
            verdict = {None: "", True: "holds", False: "MISSED"}[check.holds]
            rows.append((check.name, _number(check.value), check.unit, check.target or "", verdict))
        return align(rows, numbers=(1,))


def read_checks(path: Path) -> list[Check]:
    """The checks of a `report.json`, in its order.

    Raises:
        FileNotFoundError: if the command that writes it has not run.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    return [Check(c["name"], c["value"], c["unit"], c["target"]) for c in content["checks"]]


def machine() -> dict[str, Any]:
    """The size of the machine that a figure was measured on: usable processors, memory in GiB, processor, system."""
    processor = platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processors": processors,
        "memory_gib": round(memory, 1),
        "processor": processor,
        "system": platform.platform(terse=True),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that can change a figure."""
    found = {"python": platform.python_version()}
    for name in (
        "torch",
        "transformers",
        "tokenizers",
        "datasets",
        "numpy",
        "onnx",
        "onnxruntime",
        "onnxruntime-gpu",
        "nvidia-pytriton",
        "tritonclient",
        "locust",
        "scikit-learn",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _finite(value: float | None) -> float | None:
    """JSON has no NaN: a value that is not a number is written as null, and its check does not hold."""
    return value if value is not None and math.isfinite(value) else None


def _finite_details(content: Any) -> Any:
    """The same without numbers that JSON cannot hold: one of them must not cost the report of an hour's work."""
    if isinstance(content, dict):
        return {key: _finite_details(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite_details(value) for value in content]
    return _finite(content) if isinstance(content, float) else content


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if abs(value) < 1e6 and value == round(value):
        return f"{value:,.0f}"  # a count
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.4f}".rstrip("0").rstrip(".") if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:.1e}"


def align(rows: Iterable[tuple[str, ...]], *, numbers: Container[int] = ()) -> str:
    """Rows as lines of text; the columns `numbers` stand at the right of theirs."""
    lines = list(rows)
    widths = [max(len(row[column]) for row in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in lines
    )
