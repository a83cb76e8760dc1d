"""What the command says when it is used wrongly, and to whom it cannot talk."""

from __future__ import annotations

from pathlib import Path

import pytest
from load_runs import Command

import serve
from benchmarks.__main__ import main


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["load", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert "python -m benchmarks load --protocol http" in capsys.readouterr().out


def test_every_wrong_option_is_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--users", "0", "--rate", "-1", "--duration", "0", "--warm-up", "-1", "--protocol", "soap", "--url", "x"]
    assert main(["load", *wrong]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for name in ("users", "rate", "duration", "warm-up", "protocol", "url"):
        assert name in line


def test_more_users_than_requests_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", "--users", "100", "--rate", "1", "--duration", "5"]) == 2
    assert "would not ask once each" in capsys.readouterr().err


def test_a_broken_file_of_targets_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "slo.toml"
    path.write_text('latency_p59 = "<= 1"\n', encoding="utf-8")
    assert main(["load", "--slo", str(path)]) == 2
    assert "latency_p59" in capsys.readouterr().err


def test_without_a_server_the_command_ends_with_one_line_and_removes_the_old_report(
    benchmarks: Command, texts_file: Path, lenient: Path
) -> None:
    run = benchmarks.load(f"127.0.0.1:{serve.free_port()}", texts_file, lenient)
    old = run.folder / "build/load/report.json"
    old.parent.mkdir(parents=True)
    old.write_text("{}", encoding="utf-8")
    run.finish()
    assert run.process.returncode == 1
    assert len([line for line in run.errors.splitlines() if line.startswith("python -m benchmarks")]) == 1
    assert "Traceback" not in run.errors
    assert not old.exists()


def test_a_text_that_the_server_refuses_is_wrong_use_and_named(
    benchmarks: Command, triton: serve.Server, tmp_path: Path, lenient: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("short enough\n" + "far too long " * 1000 + "\n", encoding="utf-8")
    run = benchmarks.load(triton.grpc_url, texts, lenient).finish()
    assert run.process.returncode == 2, run.errors
    assert "the server refuses text 2" in run.errors
    assert "Traceback" not in run.errors


def test_an_unknown_model_is_named(benchmarks: Command, triton: serve.Server, texts_file: Path, lenient: Path) -> None:
    run = benchmarks.load(triton.http_url, texts_file, lenient, "--protocol", "http", "--model", "bert").finish()
    assert run.process.returncode == 1
    assert "bert" in run.errors
