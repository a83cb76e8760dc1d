"""`python -m bet_client predict`, as a person and a pipeline use it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from bet_client.__main__ import main
from bet_client.table import beginning

import serve
from tests.clients.conftest import Protocol


@pytest.fixture
def address(protocol: Protocol, url: str) -> list[str]:
    return ["--url", url, "--protocol", protocol]


def test_a_table_says_label_uncertainty_and_who_should_look(
    address: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "hello", "unsure about it", *address]) == 0
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.split() == ["label", "probability", "total", "aleatoric", "epistemic", "review", "text"]
    assert first.split() == ["positive", "0.839", "0.500", "0.375", "0.125", "no", "hello"]
    assert second.split()[5:] == ["uncertain", "unsure", "about", "it"]
    assert first.index("hello") == second.index("unsure") == heading.index("text")


def test_diagnostics_are_shown_on_demand(address: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "hello", "--diagnostics", *address]) == 0
    heading, line, *evidence = capsys.readouterr().out.splitlines()
    assert heading.split()[6:] == ["dispersion", "budget", "concentration", "text"]
    assert line.split()[6:] == ["0.250", "9862", "1.6", "8.4", "hello"]
    assert evidence == ["  for      très good +1.50", "  against  ##bad -0.25"]


def test_what_a_model_does_not_give_is_a_dash(address: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "hello", "--diagnostics", "--model", "plain", *address]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split() == ["positive", "0.839", "0.500", "–", "–", "–", "–", "–", "–", "hello"]


def test_several_servers_may_be_given(protocol: Protocol, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    urls = f"127.0.0.1:{serve.free_port()},{url}"
    assert main(["predict", "hello", "--url", urls, "--protocol", protocol]) == 0
    assert "positive" in capsys.readouterr().out


def test_json_lines_hold_every_field_or_the_error(address: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "hello", "boom", "\ud800", "--diagnostics", "--json", *address]) == 1
    answered, refused, broken = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answered["text"] == "hello"
    assert answered["label"] == "positive"
    assert answered["review"] is False
    assert answered["diagnostics"]["evidence"][1] == {"text": "##bad", "nats": -0.25}
    assert set(answered["probabilities"]) == {"negative", "positive"}
    assert refused == {"text": "boom", "error": {"type": "InvalidInputError", "message": "text 'boom' is refused"}}
    assert broken["error"]["type"] == "InvalidInputError"


def test_an_error_has_its_line_and_the_exit_status_one(address: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "", "hello", *address]) == 1
    _, bad, good = capsys.readouterr().out.splitlines()
    assert bad == "error     text is empty"
    assert good.startswith("positive")


def test_nobody_there_is_one_line_per_text_and_the_rest_of_a_file_is_not_tried(
    protocol: Protocol, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "many.txt"
    file.write_text("text\n" * 100, encoding="utf-8")
    nobody = ["--url", f"127.0.0.1:{serve.free_port()}", "--protocol", protocol]
    assert main(["predict", "--file", str(file), *nobody]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 32
    assert "no connection" in printed.out
    assert printed.err == "python -m bet_client predict: stopped; the remaining texts were not sent\n"


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ([], "arguments are required: predict"),
        (["predict", "a", "--file", "b.txt"], "give one of them"),
        (["predict", "a", "--url", "http://localhost"], "write host:port"),
        (["predict", "a", "--timeout", "0"], "positive, finite"),
        (["predict", "a", "--timeout", "soon"], "invalid float"),
        (["predict", "a", "--protocol", "smtp"], "invalid choice"),
        (["predict", "--file", "missing.csv"], "missing.csv cannot be read: No such file"),
        (["predict", "--file", "reviews.parquet"], "only .txt (one text a line), .csv and .jsonl"),
    ],
)
def test_wrong_use_is_one_line_and_exit_status_two(
    arguments: list[str], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as ended:  # argparse's way out
        status = ended.code
    printed = capsys.readouterr()
    assert status == 2
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert advice in printed.err


def test_an_empty_pipe_is_wrong_use() -> None:
    command = [sys.executable, "-m", "bet_client", "predict"]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert ran.stderr == b"python -m bet_client predict: standard input holds no text\n"


def test_a_terminal_without_a_text_is_wrong_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert main(["predict"]) == 2
    assert "pipe text in" in capsys.readouterr().err


@pytest.mark.parametrize("source", [[], ["--file", "-"]])
def test_texts_may_be_piped_through(triton: serve.Server, source: list[str]) -> None:
    command = [sys.executable, "-m", "bet_client", "predict", "--json", "--url", triton.grpc_url, *source]
    piped = "\ufefffirst\r\n" + "".join(f"text {number}\n" for number in range(50)) + "last, without an end"
    ran = subprocess.run(command, input=piped.encode(), capture_output=True, timeout=30, check=True)
    texts = [json.loads(line)["text"] for line in ran.stdout.splitlines()]
    assert texts == ["first", *(f"text {number}" for number in range(50)), "last, without an end"]


def test_a_reader_that_has_seen_enough_is_no_failure_worth_a_traceback(triton: serve.Server, tmp_path: Path) -> None:
    file = tmp_path / "many.txt"
    file.write_text("text\n" * 20_000, encoding="utf-8")
    command = [sys.executable, "-m", "bet_client", "predict", "--file", str(file), "--url", triton.grpc_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--help"])
    assert ended.value.code == 0
    assert "--file reviews.csv" in capsys.readouterr().out


def test_a_text_cannot_command_the_terminal() -> None:
    assert beginning("a\x1b[31m\nb\x07" + "c" * 100) == "a\ufffd[31m b\ufffd" + "c" * 40 + "…"
