"""The demo runs the public commands in order, joins what they measured, and always ends what it started.

The commands are stand-ins here, since the real ones take minutes and each has tests of its own: packages of the same
names in a folder of their own, which `python -m` finds first. What the demo does with them is real.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import demo

ROOT = Path(__file__).resolve().parents[1]

# One program for every command: it notes that it was called, fails where it is told to, and measures something.
COMMAND = """
import json, os, pathlib, signal, sys, threading
name = pathlib.Path(sys.argv[0]).parent.name
step = {"train": sys.argv[1], "serve": "serve", "bet_client": "predict"}.get(name, sys.argv[1])
told = json.loads(pathlib.Path("told.json").read_text()).get(step, {})
with open("calls", "a") as calls:
    calls.write(json.dumps([step, *sys.argv[1:]]) + "\\n")
if "crash" in told:
    raise RuntimeError("told to")
if "exit" in told:
    sys.exit(told["exit"])
if step == "serve":
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    pathlib.Path("server.pid").write_text(str(os.getpid()))
    if told.get("silent"):
        print("starting", flush=True)
        stop.wait()
        sys.exit(0)
    print(json.dumps({"grpc": "…"}), flush=True)
    stop.wait()
    pathlib.Path("drained").touch()
    sys.exit(0)
if step == "fit":
    pathlib.Path("build/demo/checkpoint/production").mkdir(parents=True, exist_ok=True)
    pathlib.Path("build/demo/checkpoint/production/model").write_text("weights")
if "kill the server" in told:
    os.kill(int(pathlib.Path("server.pid").read_text()), signal.SIGKILL)
if "wait" in told:
    print("waiting", flush=True)
    threading.Event().wait()
report = {"evaluate": "evaluate", "add": "add", "verify": "verify", "load": "load"}.get(step)
if report and not told.get("mute"):
    folder = pathlib.Path("build") / report
    folder.mkdir(parents=True, exist_ok=True)
    value = told.get("value", 1)
    checks = [{"name": "of_" + step, "value": value, "unit": "", "target": ">= 1"}]
    checks += [{"name": "everywhere", "value": 0, "unit": "", "target": None}]
    checks += [{"name": "seconds_" + step, "value": 0, "unit": "s", "target": None}]
    (folder / "report.json").write_text(json.dumps({"checks": checks}))
    sys.exit(0 if value >= 1 else 1)
"""


@dataclass
class Run:
    """What a run of the demo ended with."""

    status: int
    output: str
    errors: str


class Project:
    """A folder with stand-ins for the commands, and the demo in it."""

    def __init__(self, folder, capture):
        self.folder = folder
        self.capture = capture
        for package in ("train", "export", "serve", "bet_client", "benchmarks", "model_repository"):
            (folder / package).mkdir()
            (folder / package / "__main__.py").write_text(COMMAND)
        (folder / "requirements.lock").write_text("torch==2.13.0\n")
        self.tell()

    def tell(self, **steps):
        """Have some steps do something else than succeed."""
        (self.folder / "told.json").write_text(json.dumps(steps))

    def run(self, *arguments):
        """The demo in this process."""
        for trace in ("calls", "drained"):
            (self.folder / trace).unlink(missing_ok=True)
        self.capture.readouterr()
        status = demo.main(arguments)
        return Run(status, *self.capture.readouterr())

    def interrupt(self, number, line_before):
        """The demo in a process of its own, which gets a signal once it has printed a line that starts so."""
        process = subprocess.Popen(
            [sys.executable, ROOT / "demo.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        seen = ""
        for line in process.stdout:
            seen += line
            if line.startswith(line_before):
                process.send_signal(number)
                break
        output, errors = process.communicate(timeout=60)
        return Run(process.returncode, seen + output, errors)

    @property
    def command_lines(self):
        """The steps that were run, each with its arguments, in order."""
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    @property
    def calls(self):
        """The names of the steps that were run, in order."""
        return [step for step, *_ in self.command_lines]

    @property
    def drained(self):
        return (self.folder / "drained").exists()

    @property
    def report(self):
        return json.loads((self.folder / "build/demo/report.json").read_text())

    @property
    def values(self):
        return {check["name"]: check for check in self.report["checks"]}


@pytest.fixture
def project(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    # The stand-ins need not be measured, and start several times as fast when they are not.
    for name in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PYTHONUNBUFFERED", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # the demo sets them: put back afterwards
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Project(tmp_path, capfd)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_commands_run_in_the_order_of_the_stages_and_the_server_is_drained_at_the_end(project):
    run = project.run()
    assert run.status == 0, run.errors
    assert project.calls == ["fit", "evaluate", "add", "serve", "predict", "verify", "load"]
    assert project.drained


def test_one_table_joins_the_checks_of_all_steps_with_the_seconds_that_they_took(project):
    output = project.run("--started", str(time.time() - 7)).output
    names = list(project.values)
    assert names == [
        *("of_evaluate", "everywhere", "of_add", "export_everywhere"),
        *("of_verify", "verify_everywhere", "of_load", "load_everywhere"),
        "seconds_environment",
        *(f"seconds_{step}" for step in ("fit", "evaluate", "export", "serve", "predict", "verify", "load", "total")),
    ]
    assert all(name in output for name in names)
    assert "every check holds" in output
    assert project.values["seconds_environment"]["value"] >= 7
    assert project.values["seconds_total"]["value"] >= 7
    assert project.values["seconds_total"]["target"] == "<= 600"


def test_the_json_form_is_all_that_is_printed_on_standard_output(project):
    assert json.loads(project.run("--json").output) == project.report


def test_a_second_run_repeats_only_what_talks_to_the_server_and_says_what_was_kept(project):
    project.run()
    first = project.values
    run = project.run()
    assert run.status == 0
    assert project.calls == ["serve", "predict", "verify", "load"]
    assert project.report["kept"] == ["evaluate", "export", "fit"]
    assert list(project.values) == list(first)
    assert project.values["seconds_total"]["target"] is None
    assert "fit: kept" in run.output


@pytest.mark.parametrize(
    ("path", "repeated"),
    [
        ("train/configs.yaml", ["fit", "evaluate", "add"]),
        ("requirements.lock", ["fit", "evaluate", "add"]),
        ("build/demo/checkpoint/production/model", ["fit"]),  # which makes it again as it was
        ("build/evaluate/report.json", ["evaluate"]),
        ("export/graph.py", ["add"]),
        ("model_repository/bet/config.pbtxt", ["add"]),
    ],
)
def test_a_step_is_repeated_when_something_that_decides_it_changes(project, path, repeated):
    project.run()
    changed = project.folder / path
    changed.parent.mkdir(exist_ok=True)
    changed.write_text('{"checks": []}')
    assert project.run().status == 0
    assert project.calls == [*repeated, "serve", "predict", "verify", "load"]


def test_what_later_steps_leave_beside_the_checkpoint_does_not_repeat_the_training(project):
    project.run()
    (project.folder / "build/demo/checkpoint/baseline.npz").touch()
    project.run()
    assert "fit" not in project.calls


def test_a_step_that_failed_is_not_taken_for_done(project):
    project.tell(evaluate={"crash": True})
    project.run()
    project.tell()
    project.run()
    assert project.calls == ["evaluate", "add", "serve", "predict", "verify", "load"]


@pytest.mark.parametrize("step", ["evaluate", "verify", "load"])
def test_a_missed_target_is_a_result_that_decides_the_exit_status_alone(project, step):
    project.tell(**{step: {"value": 0}})
    run = project.run()
    assert run.status == 1
    assert f"missed: of_{step};" in run.output
    assert project.calls[-1] == "load"
    assert project.values[f"of_{step}"]["holds"] is False
    assert project.run("--report-only").status == 0


@pytest.mark.parametrize("told", [{"exit": 2}, {"crash": True}, {"mute": True}])
@pytest.mark.parametrize(
    ("step", "command"),
    [
        ("evaluate", "python -m train evaluate build/demo/checkpoint/production"),
        ("verify", "python -m export verify bet --url"),
    ],
)
def test_a_broken_step_is_an_error_even_where_only_a_report_is_asked_for(project, step, command, told):
    project.tell(**{step: told})
    run = project.run("--report-only")
    assert run.status == 2
    assert f"step '{step}'" in run.errors
    assert command in run.errors
    assert project.report["fault"] is not None
    assert "not finished; written to build/demo/report.json" in run.output
    assert "serve" not in project.calls or project.drained


def test_a_checkpoint_that_the_gate_refuses_is_not_served(project):
    project.tell(add={"value": 0})
    run = project.run("--report-only")
    assert run.status == 2
    assert "refused by its gate" in run.errors
    assert "MISSED" in run.output
    assert "serve" not in project.calls


def test_a_server_that_does_not_start_is_an_error(project):
    project.tell(serve={"exit": 2})
    run = project.run()
    assert run.status == 2
    assert "step 'serve' ended with exit status 2 before it was ready" in run.errors


def test_a_server_that_is_not_ready_in_time_is_an_error_and_is_ended(project, monkeypatch):
    monkeypatch.setattr(demo, "READY_SECONDS", 1)
    project.tell(serve={"silent": True})
    run = project.run()
    assert run.status == 2
    assert "step 'serve' was not ready after 1 seconds" in run.errors
    with pytest.raises(ProcessLookupError):
        os.kill(int((project.folder / "server.pid").read_text()), 0)


def test_a_server_that_died_on_the_way_is_an_error_though_the_steps_succeeded(project):
    project.tell(load={"kill the server": True})
    run = project.run("--report-only")
    assert run.status == 2
    assert "step 'serve' ended by itself with exit status -9" in run.errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_drains_the_server_and_ends_the_step(project, number):
    project.tell(load={"wait": True})
    run = project.interrupt(number, "waiting")
    assert run.status == 130
    assert project.drained
    assert "interrupted" in run.errors
    assert "of_verify" in run.output


def test_a_demo_interrupted_before_the_server_is_ready_ends_it(project):
    project.tell(serve={"silent": True})
    run = project.interrupt(signal.SIGINT, "starting")
    assert run.status == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int((project.folder / "server.pid").read_text()), 0)


def test_the_server_gets_the_ports_that_were_asked_for_and_free_ones_otherwise(project):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        wanted = probe.getsockname()[1]
    project.run("--http-port", str(wanted))
    (serve,) = [line for line in project.command_lines if line[0] == "serve"]
    ports = {flag: int(serve[serve.index(flag) + 1]) for flag in ("--http-port", "--grpc-port", "--metrics-port")}
    assert ports["--http-port"] == wanted
    assert len(set(ports.values())) == 3


def test_a_taken_port_is_refused_before_anything_runs(project):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(SystemExit, match="2"):
            project.run("--http-port", str(listener.getsockname()[1]))
    assert "is in use" in project.capture.readouterr().err
    assert not (project.folder / "calls").exists()


def test_outside_the_project_the_demo_says_where_to_run_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        demo.main([])
    assert "run the demo in the project's folder" in capsys.readouterr().err


def test_a_process_that_ignores_being_asked_is_killed(monkeypatch, capsys):
    monkeypatch.setattr(demo, "DRAIN_SECONDS", 0.2)
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        demo.stop(process)
    assert process.returncode == -signal.SIGKILL
    assert "was killed" in capsys.readouterr().err


def test_a_fingerprint_changes_with_content_and_names_and_not_with_compiled_files(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("1")
    seen = [demo.fingerprint([tmp_path])]
    file.write_text("2")
    seen.append(demo.fingerprint([tmp_path]))
    file.rename(tmp_path / "b.py")
    seen.append(demo.fingerprint([tmp_path]))
    assert len(set(seen)) == 3
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "b.pyc").write_bytes(os.urandom(4))
    assert demo.fingerprint([tmp_path]) == seen[-1]
