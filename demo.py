"""The whole pipeline, from real reviews to a load-tested service, as the public commands in their order.

`make demo` runs this file. Nothing is private to it: every step is a command that a person can run, printed before it
starts. A step is not repeated while everything that decides its outcome is unchanged. What the steps measured (their
`report.json`) and the seconds they took are joined into one table and into `build/demo/report.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from preflight import port_fault
from verdict import BUILD_FOLDER, Report, read_checks

CHECKPOINT = BUILD_FOLDER / "demo" / "checkpoint"  # its own, so that it may discard what older code made
PRODUCTION = CHECKPOINT / "production"

# Written for this demo: clearly good, clearly bad, divided, not a review, not a language.
TEXTS = (
    "A wonderful film. The story is moving, the acting superb, and I would gladly watch it again tomorrow.",
    "Dull, badly acted and far too long. I wanted my two hours back, and so did everyone in the room.",
    "The first half is brilliant and the second half is a mess; I still cannot decide whether I liked it.",
    "Bring the kettle to the boil, pour it over the leaves, and wait for four minutes before you strain it.",
    "Flarn quibbet zorvatek, mippel drosh anterwick; gronfeld yastic!",
)

FIRST_RUN_TARGET = "<= 600"  # seconds from `make demo` in an empty environment to the table, on two cores
READY_SECONDS = 120  # the server answers after 2 to 10; a busy machine may need longer
DRAIN_SECONDS = 40  # what the server is given to finish what it accepted


def pipeline(demo: Demo, ports: dict[str, int], load_seconds: int) -> None:
    """The steps, in the order in which data flows through the project's folders."""
    training = [Path("train"), Path("requirements.lock")]
    exporting = [Path("export"), Path("model_repository")]
    url = f"127.0.0.1:{ports['grpc']}"

    demo.step(
        "fit", "train fit --preset demo --resume --overwrite --output", CHECKPOINT, decided_by=[*training, PRODUCTION]
    )
    demo.step("evaluate", "train evaluate", PRODUCTION, report="evaluate", decided_by=[*training, PRODUCTION])
    demo.step(
        "export", "export add", PRODUCTION, report="add", gate=True, decided_by=[*training, PRODUCTION, *exporting]
    )
    with demo.server(ports):
        demo.step("predict", "bet_client predict --url", url, *TEXTS)
        demo.step("verify", "export verify bet --url", url, report="verify")
        demo.step("load", "benchmarks load --url", url, "--duration", load_seconds, report="load")


class StepError(Exception):
    """A step did not do its work; a target that was missed is a result and not an error."""

    def __init__(self, name: str, command: Sequence[str], fault: str) -> None:
        super().__init__(f"step '{name}' {fault}. To see it alone: {shlex.join(['python', *command[1:]])}")


class Demo:
    """Runs commands one after another and keeps what they measured and how long they took.

    Attributes:
        report: the checks of all steps so far.
        seconds: wall time of each step so far, by name.
        kept: the names of the steps that were not repeated.
    """

    def __init__(self, output: TextIO) -> None:
        self.output = output
        self.report = Report("demo")
        self.seconds: dict[str, float] = {}
        self.kept: set[str] = set()

    def step(
        self,
        name: str,
        command_line: str,
        *arguments: object,
        report: str | None = None,
        gate: bool = False,
        decided_by: Sequence[Path] = (),
    ) -> None:
        """Run `python -m <command_line> <arguments>`, and take over the checks of the report that it writes.

        Args:
            report: the folder under `build/` of the report that the command writes; None where it measures nothing.
            gate: the next steps cannot go on where one of its checks does not hold.
            decided_by: all files and folders that decide the outcome, and those it makes. While these are as the last
                success left them, the step is not repeated. Empty: it is always run.

        Raises:
            StepError: if the command fails, or its gate refuses.
        """
        command = [sys.executable, "-m", *command_line.split(), *map(str, arguments)]
        written = None if report is None else BUILD_FOLDER / report / "report.json"
        watched = [*decided_by, *([written] if written else [])]
        memory = BUILD_FOLDER / "demo" / f"{name}.sha256"
        started = time.monotonic()

        if decided_by and memory.exists() and memory.read_text(encoding="utf-8") == fingerprint(watched):
            self.kept.add(name)
            self.say(f"{name}: kept, nothing that decides it has changed")
        else:
            self.say(f"{name}: {shlex.join(['python', *command[1:]])}")
            memory.unlink(missing_ok=True)
            self._run(name, command, written)

        holds = self._take_over(name, written)
        self.seconds[name] = time.monotonic() - started
        if gate and not holds:
            raise StepError(name, command, "was refused by its gate: see what is marked MISSED")
        if decided_by and name not in self.kept:
            memory.parent.mkdir(parents=True, exist_ok=True)
            memory.write_text(fingerprint(watched), encoding="utf-8")

    def _run(self, name: str, command: list[str], written: Path | None) -> None:
        """Run one command with its output on ours; StepError unless it worked and wrote its report anew."""
        before = modified(written)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.output)
        try:
            status = process.wait()
        finally:
            stop(process)
        measured = modified(written) != before
        # 1 says that a check does not hold, but an unhandled exception in Python exits with 1 as well
        if status != 0 and not (status == 1 and measured):
            raise StepError(name, command, f"failed with exit status {status}")
        if written and not measured:
            raise StepError(name, command, f"did not write {written}")

    def _take_over(self, name: str, written: Path | None) -> bool:
        """Add a step's checks to ours, as `<step>_<name>` where the name is taken; return whether they hold."""
        checks = read_checks(written) if written else []
        taken = {check.name for check in self.report.checks}
        for check in checks:
            if check.name.startswith("seconds_") and check.target is None:
                continue  # the step's own account of its time; ours is the time that passed
            unique = f"{name}_{check.name}" if check.name in taken else check.name
            self.report.checks.append(replace(check, name=unique))
        return all(check.holds is not False for check in checks)

    @contextmanager
    def server(self, ports: dict[str, int]) -> Iterator[None]:
        """The server in the background on these ports, ready inside the block, and ended after it whatever happens.

        Raises:
            StepError: if it ends before it is ready, or is not ready within READY_SECONDS.
        """
        flags = [part for kind, port in ports.items() for part in (f"--{kind}-port", str(port))]
        command = [sys.executable, "-m", "serve", *flags, "--json"]
        self.say(f"serve: {shlex.join(['python', *command[1:]])} (in the background)")
        started = time.monotonic()
        # In a session of its own, so that Ctrl-C ends the step that is calling it first, and then it, by us.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None
        lines, ready = process.stdout, threading.Event()

        def relay() -> None:
            for line in lines:
                print(line, end="", file=self.output, flush=True)
                if line.startswith("{"):  # what `serve --json` prints once a real inference was right
                    ready.set()

        reader = threading.Thread(target=relay, daemon=True)
        reader.start()
        try:
            while not ready.wait(timeout=0.1):
                if process.poll() is not None:
                    raise StepError(
                        "serve", command, f"ended with exit status {process.returncode} before it was ready"
                    )
                if time.monotonic() - started > READY_SECONDS:
                    raise StepError("serve", command, f"was not ready after {READY_SECONDS} seconds")
            self.seconds["serve"] = time.monotonic() - started
            yield
            if process.poll() is not None:
                raise StepError("serve", command, f"ended by itself with exit status {process.returncode}")
        finally:
            stop(process)
            reader.join(timeout=5)  # the pipe may be held by a process that outlived a killed server
            if not reader.is_alive():
                lines.close()

    def say(self, line: str) -> None:
        """The header of a step."""
        print(f"\n── {line}", file=self.output, flush=True)


def fingerprint(paths: Sequence[Path]) -> str:
    """SHA-256 over names and contents of files and of all files in folders; one that is missing counts as missing."""
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_dir() or "__pycache__" in file.parts:
                continue
            digest.update(f"{file}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest() if file.exists() else b"missing")
    return digest.hexdigest()


def modified(path: Path | None) -> int | None:
    """When a file was last written, in nanoseconds; None where there is none."""
    return path.stat().st_mtime_ns if path and path.exists() else None


def stop(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """End a process that still runs: by SIGTERM, and by SIGKILL where that is not enough."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(DRAIN_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} did not end within {DRAIN_SECONDS} s and was killed", file=sys.stderr)
        process.kill()
        process.wait()


def choose_ports(wanted: dict[str, int | None]) -> dict[str, int]:
    """The wanted ports, and free ones where none was wanted, all different."""
    with ExitStack() as held:
        chosen = {}
        for kind, port in wanted.items():
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            chosen[kind] = port or probe.getsockname()[1]
        return chosen


def interrupt(*_: object) -> None:
    """End the demo in order, on Ctrl-C and SIGTERM alike; a second signal must not interrupt the ending."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; wrong use ends with exit status 2."""
    parser = argparse.ArgumentParser(
        prog="demo.py", description=__doc__.partition("\n")[0], epilog="example: python demo.py --report-only"
    )
    parser.add_argument("--report-only", action="store_true", help="exit 0 although a check does not hold")
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON; the steps' output goes to stderr"
    )
    parser.add_argument(
        "--load-seconds", type=int, default=20, metavar="S", help="length of the load test (default 20)"
    )
    for kind in ("http", "grpc", "metrics"):
        parser.add_argument(f"--{kind}-port", metavar="N", help="the server's port (default: a free one)")
    parser.add_argument(
        "--started", type=float, metavar="EPOCH", help="when `make demo` began, so that the environment's time counts"
    )
    options = parser.parse_args(arguments)
    options.ports = {}
    for kind in ("http", "grpc", "metrics"):
        port = getattr(options, f"{kind}_port")
        fault = port_fault(f"--{kind}-port", port) if port else None
        if fault:
            parser.error(fault)
        options.ports[kind] = int(port) if port else None
    if not Path("model_repository").is_dir():
        parser.error(f"{Path.cwd()} holds no model_repository/; run the demo in the project's folder")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 where all checks hold, 1 where one does not, 2 where a step failed, 130 when interrupted."""
    options = parse(arguments)
    begun = time.time()
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or OpenMP's threads spin and starve the other processes
    os.environ["PYTHONUNBUFFERED"] = "1"  # so that lines appear when they are written, in a log as on a terminal

    demo = Demo(sys.stderr if options.json else sys.stdout)
    fault, status = None, 0
    try:
        pipeline(demo, choose_ports(options.ports), options.load_seconds)
    except StepError as error:
        fault, status = str(error), 2
    except KeyboardInterrupt:
        fault, status = "interrupted; the next run goes on from what is done", 130

    report = demo.report
    if options.started:
        report.add("seconds_environment", begun - options.started, "s")
    for name, seconds in demo.seconds.items():
        report.add(f"seconds_{name}", seconds, "s")
    # A run that found the checkpoint made is expected within 90 s, which no check holds it to: what else it had to do
    # depends on what was changed.
    report.add(
        "seconds_total",
        time.time() - (options.started or begun),
        "s",
        FIRST_RUN_TARGET if status == 0 and "fit" not in demo.kept else None,
    )
    report.details = {"kept": sorted(demo.kept), "fault": fault}
    path = report.write()
    if options.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        missed = [check.name for check in report.checks if check.holds is False]
        whole = "not finished" if fault else "every check holds"
        outcome = f"missed: {', '.join(missed)}" if missed else whole
        print(f"\n{report.table()}\n\n{outcome}; written to {path}", flush=True)
    if fault:
        print(f"demo: {fault}", file=sys.stderr)
        return status
    return report.exit_status(report_only=options.report_only)


if __name__ == "__main__":
    sys.exit(main())
