"""Setting up from nothing: what stands in the way is said at once, and the lock holds what the project asks for."""

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import preflight

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def interpreter(tmp_path):
    """Make a stand-in for an interpreter of another version, as a command that answers the probe."""

    def make(name, version, venv="venv", status=0):
        command = tmp_path / name
        command.write_text(f"#!/bin/sh\nprintf '{version}\\n{command}\\n{venv}\\n'\nexit {status}\n")
        command.chmod(0o755)
        return str(command)

    return make


def test_the_first_suitable_interpreter_is_taken_and_one_that_does_not_run_is_passed_over(interpreter):
    broken = interpreter("python3.11", "3.11", status=127)
    new = interpreter("python3", "3.13")
    good = interpreter("python3.12", "3.12")
    assert preflight.choose_interpreter("", [broken, new, "no-such-python", good]) == (good, None)


@pytest.mark.parametrize("version", ["3.10", "3.13", "2.7"])
def test_an_unsuitable_python_is_named_beside_what_is_needed(interpreter, version):
    command = interpreter("python3", version)
    chosen, fault = preflight.choose_interpreter("", [command])
    assert chosen is None
    assert f"{command} is Python {version}" in fault
    assert "Python 3.11 or 3.12" in fault


def test_a_named_interpreter_is_not_replaced_by_another(interpreter):
    interpreter("python3.11", "3.11")
    chosen, fault = preflight.choose_interpreter("/no/such/python")
    assert chosen is None
    assert fault.startswith("PYTHON=/no/such/python does not run")


def test_a_missing_venv_module_is_said_with_the_package_that_brings_it(interpreter):
    chosen, fault = preflight.choose_interpreter(interpreter("python3", "3.11", venv="no venv"))
    assert chosen is None
    assert "apt install python3.11-venv" in fault


def test_this_python_is_suitable():
    chosen, fault = preflight.choose_interpreter(sys.executable)
    assert fault is None
    assert Path(chosen).exists()


@pytest.mark.parametrize(
    ("system", "machine", "libc", "word"),
    [
        ("Darwin", "arm64", "another C library", "Darwin on arm64"),
        ("Linux", "aarch64", "glibc 2.36", "Linux on aarch64"),
        ("Linux", "x86_64", "glibc 2.31", "glibc 2.31"),
        ("Linux", "x86_64", "another C library", "another C library"),
    ],
)
def test_a_system_without_an_embedded_triton_is_refused(system, machine, libc, word):
    assert word in preflight.platform_fault(system, machine, libc)


@pytest.mark.parametrize("libc", ["glibc 2.35", "glibc 2.36", "glibc 3.0"])
def test_a_system_with_an_embedded_triton_is_accepted(libc):
    assert preflight.platform_fault("Linux", "x86_64", libc) is None


def test_too_small_a_disk_is_said_once_with_what_is_free_and_what_is_needed(tmp_path):
    free = shutil.disk_usage(tmp_path).free / 1e9
    other = tmp_path / "other"
    other.mkdir()
    (fault,) = preflight.disk_faults([(tmp_path, free * 0.7), (other, free * 0.7)])
    assert f"{free * 1.4:.1f} GB are needed" in fault
    assert str(tmp_path) in fault


def test_a_disk_that_is_large_enough_is_accepted(tmp_path):
    assert preflight.disk_faults([(tmp_path, 0.0)]) == []


def test_a_taken_port_is_refused_and_a_free_one_is_not():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        assert "is in use" in preflight.port_fault("HTTP_PORT", port)
    assert preflight.port_fault("HTTP_PORT", port) is None


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1", "²"])
def test_what_is_no_port_is_refused(port):
    assert f"HTTP_PORT={port} is not a port" in preflight.port_fault("HTTP_PORT", port)


def test_preflight_runs_under_the_oldest_python_that_it_must_refuse():
    ast.parse((ROOT / "preflight.py").read_text(encoding="utf-8"), feature_version=(3, 6))


def test_preflight_needs_nothing_but_the_standard_library():
    run = subprocess.run(
        [sys.executable, "-I", "-S", ROOT / "preflight.py"], capture_output=True, text=True, check=True
    )
    assert Path(run.stdout.strip()).exists()


def test_all_faults_are_said_at_once(capsys):
    assert preflight.main(["--python", "/no/such/python", "--port", "HTTP_PORT=none", "--port", "GRPC_PORT="]) == 2
    said = capsys.readouterr()
    assert "PYTHON=/no/such/python" in said.err
    assert "HTTP_PORT=none" in said.err
    assert said.out == ""


def test_where_nothing_stands_in_the_way_the_interpreter_is_printed(capsys):
    assert preflight.main(["--python", sys.executable]) == 0
    assert Path(capsys.readouterr().out.strip()).exists()


def test_an_environment_that_is_ready_is_used_as_it_is(capsys):
    assert preflight.main(["--environment", sys.prefix]) == 0
    assert capsys.readouterr().out == f"{sys.prefix}/bin/python\n"


def test_an_environment_that_does_not_run_any_more_is_refused(tmp_path, capsys):
    assert preflight.main(["--environment", str(tmp_path)]) == 2
    assert f"remove {tmp_path}" in capsys.readouterr().err


@pytest.fixture
def clone(tmp_path):
    """The files that setting up reads, in a folder of their own."""
    folder = tmp_path / "clone"
    (folder / "clients").mkdir(parents=True)
    for name in ("Makefile", "preflight.py", "pyproject.toml", "requirements.lock", "clients/pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def make(folder, *arguments, **environment):
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_every_command_stops_before_it_makes_anything_where_python_is_the_wrong_one(clone, interpreter, target):
    run = make(clone, target, f"PYTHON={interpreter('python3.13', '3.13')}")
    assert run.returncode == 2
    assert "is Python 3.13" in run.stderr
    assert not (clone / ".venv").exists()


def test_a_port_taken_is_said_before_anything_is_made(clone):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        run = make(clone, "demo", f"HTTP_PORT={listener.getsockname()[1]}")
    assert run.returncode == 2
    assert "HTTP_PORT=" in run.stderr
    assert not (clone / ".venv").exists()


def test_a_machine_without_python_is_told_to_install_it(clone, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("make", "cat", "sha256sum", "cut", "date"):
        (tools / name).symlink_to(shutil.which(name))
    run = make(clone, "env", PATH=str(tools))
    assert run.returncode == 2
    assert "install Python 3.11 or 3.12" in run.stderr


def test_make_alone_lists_every_command():
    listed = make(ROOT).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for target in phony.group(1).split():
        assert target == "preflight" or f"make {target} " in listed


def locked():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_the_lock_holds_exact_public_versions_alone():
    assert [line for line in locked() if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)] == []


def test_the_lock_keeps_every_bound_that_the_project_and_its_client_state():
    versions = {
        re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.split("==") for line in locked())
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    client = tomllib.loads((ROOT / "clients/pyproject.toml").read_text(encoding="utf-8"))
    stated = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
        *project["project"]["optional-dependencies"]["registry"],
        *client["project"]["dependencies"],
    ]
    broken = [
        requirement
        for requirement in map(Requirement, stated)
        if not requirement.specifier.contains(versions.get(re.sub(r"[-_.]+", "-", requirement.name).lower(), "0"))
    ]
    assert broken == []


@pytest.mark.heavy
def test_a_second_set_up_does_nothing(clone):
    for package in ("clients/bet_client", "clients/README.md"):
        source = ROOT / package
        (shutil.copytree if source.is_dir() else shutil.copy)(source, clone / package)
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name == "HOME"}
    first = make(clone, "env", **pip)
    assert first.returncode == 0, first.stderr
    again = make(clone, "env", **pip)
    assert (again.returncode, again.stdout) == (0, "")
