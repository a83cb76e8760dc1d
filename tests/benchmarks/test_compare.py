"""The comparison with peers: its generator on real sockets, its arithmetic, and what it says when used wrongly."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_hugging_face
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from benchmarks.__main__ import main
from benchmarks.closed_loop import run_closed_loop
from benchmarks.compare import Cell, Outcome, choose, compare
from benchmarks.compare_report import judge, ratio, table
from benchmarks.compare_settings import CompareSettings
from benchmarks.errors import PeerError, TextsError, UsageError
from benchmarks.http_connection import http_post
from benchmarks.peers.environment import REQUIREMENTS, peer_python
from benchmarks.peers.reference import read_labelled
from benchmarks.peers.right_answers import RightAnswers, exact_texts
from benchmarks.peers.systems import OURS, PEERS, Peer, Setting, peer
from benchmarks.turns import Turn
from export.add import AddOptions, add
from export.rows import RowFiles

ROOT = Path(__file__).parents[2]


class _Echo(BaseHTTPRequestHandler):
    """Answers what it was told, on connections that stay open; drops the connection on `drop`."""

    protocol_version = "HTTP/1.1"
    connections: set[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.connections.add(self.client_address[1])
        if body == b"drop":
            self.close_connection = True
            return
        self.send_response(503 if body == b"refuse" else 200)
        self.send_header("X-Path", self.path)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        for byte in range(0, len(body), 7):  # an answer in many pieces
            self.wfile.write(body[byte : byte + 7])

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def echo() -> Iterator[ThreadingHTTPServer]:
    _Echo.connections = set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_each_caller_keeps_its_connection_and_gets_its_own_answers(echo: ThreadingHTTPServer) -> None:
    bodies = [f"text {i} ".encode() * (i + 1) for i in range(9)]
    requests = [http_post("/predict", body, {"X-Mine": "1"}) for body in bodies]
    loop = run_closed_loop([echo.server_port], requests, callers=4, seconds=0.4, warm_up=0.1)
    assert len(loop.exchanges) > len(requests)
    assert {exchange.request for exchange in loop.exchanges} == set(range(9))
    for exchange in loop.exchanges:
        assert exchange.status == 200
        assert exchange.body == bodies[exchange.request]
        assert exchange.header("x-path") == "/predict"
        assert 0.1 < exchange.end <= 0.5
        assert exchange.start < exchange.end
    assert len(_Echo.connections) == 4
    assert 0 < loop.generator_cpu <= 2
    assert loop.elapsed >= 0.5


def test_refused_and_lost_requests_are_kept_as_such(echo: ThreadingHTTPServer) -> None:
    requests = [http_post("/", body, {}) for body in (b"refuse", b"drop")]
    loop = run_closed_loop([echo.server_port], requests, callers=1, seconds=0.2, warm_up=0)
    assert [exchange.status for exchange in loop.exchanges] == [503, 0]


def test_callers_are_spread_evenly_over_the_processes_of_a_peer() -> None:
    async def serve_two() -> list[int]:
        seen = [0, 0]

        def handler(which: int) -> Any:
            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                seen[which] += 1
                while await reader.read(1000):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                writer.close()

            return handle

        servers = [await asyncio.start_server(handler(i), "127.0.0.1", 0) for i in range(2)]
        ports = [server.sockets[0].getsockname()[1] for server in servers]
        await asyncio.to_thread(run_closed_loop, ports, [http_post("/", b"", {})], 6, 0.1, 0.0)
        for server in servers:
            server.close()
        return seen

    assert asyncio.run(serve_two()) == [3, 3]


def _cell(system: str, length: int, number: int, rate: int, *, setting: str = "", wrong: int = 0) -> Cell:
    turn = Turn(1.0, (5.0,) * rate, wrong, ("off",) * wrong, 1e-7, 0.1, 1.8, 0.0)
    return Cell(system, setting, length, number, turn)


def _outcome(rates: dict[str, tuple[int, ...]], wrong: int = 0) -> Outcome:
    cells = [
        _cell(system, 16, number, rate, setting="" if system == OURS else "2 × 1", wrong=wrong)
        for system, of in rates.items()
        for number, rate in enumerate(of, start=1)
    ]
    in_process = {"fastapi": {16: 101.0}, "optimum": {16: 102.0}}
    return Outcome(tuple(cells), (), in_process, None, {})


def _settings(tmp_path: Path, **more: Any) -> CompareSettings:
    return CompareSettings("minilm", tmp_path, lengths=(16,), **more)


def test_ratios_are_taken_within_a_round_since_the_machine_may_slow_down_between_them(tmp_path: Path) -> None:
    outcome = _outcome({OURS: (110, 55, 22), "fastapi": (100, 50, 20), "optimum": (100, 60, 20)})
    assert ratio(outcome.cells, "fastapi", 16).lower == pytest.approx(1.1)
    report = judge(_settings(tmp_path), outcome)
    checks = {check.name: check for check in report.checks}
    assert checks["ratio_fastapi_16"].value == pytest.approx(1.1)
    assert checks["ratio_optimum_16"].value == pytest.approx(1.1)
    assert checks["throughput_ours_16"].value == 55
    assert report.holds
    shown = table(_settings(tmp_path), outcome)
    assert "55 (38.5–82.5)" in shown
    assert "1.1 (1.01–1.1)" in shown


@pytest.mark.parametrize("fault", ["slower", "wrong"])
def test_the_verdict_does_not_hold_where_a_peer_is_faster_or_an_answer_is_wrong(tmp_path: Path, fault: str) -> None:
    slower = fault == "slower"
    outcome = _outcome({OURS: (110,), "fastapi": (100,), "optimum": (120 if slower else 90,)}, wrong=not slower)
    report = judge(_settings(tmp_path), outcome)
    missed = {check.name for check in report.checks if check.holds is False}
    assert missed == ({"ratio_optimum_16"} if slower else {"error_rate"})


def test_a_peer_gets_its_best_setting_at_each_length() -> None:
    wide, deep = Setting(2, 1), Setting(1, 2)
    system = Peer("fastapi", "fastapi_transformers", (wide, deep))
    tried = [
        _cell("fastapi", 16, 0, 90, setting=str(wide)),
        _cell("fastapi", 16, 0, 80, setting=str(deep)),
        _cell("fastapi", 256, 0, 8, setting=str(wide)),
        _cell("fastapi", 256, 0, 9, setting=str(deep)),
        _cell("optimum", 16, 0, 500, setting=str(deep)),
    ]
    assert choose(system, tried, (16, 256)) == {16: wide, 256: deep}


def test_an_answer_is_held_against_the_probability_of_the_label_that_it_names() -> None:
    logits = np.array([[0.0, 2.0], [1.0, 1.0]])
    right = RightAnswers.of(logits, ("bad", "good"), temperature=2.0)
    p = 1 / (1 + np.exp(-1.0))
    assert right.difference(0, "good", p) == pytest.approx(0, abs=1e-12)
    assert right.difference(0, "good", p + 0.01) == pytest.approx(0.01)
    assert right.difference(0, "bad", 1 - p) == pytest.approx(2 * p - 1)
    assert right.difference(1, "bad", 0.5) == right.difference(1, "good", 0.5) == 0
    assert right.difference(1, "LABEL_1", 0.5) == float("inf")


def _tokenizer() -> Tokenizer:
    words = ("[UNK]", "[CLS]", "[SEP]", "a", "b")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def test_texts_are_beginnings_with_exactly_so_many_tokens() -> None:
    texts = [f"a b a, {'b ' * i}" for i in range(30)]
    found = exact_texts(_tokenizer(), texts, tokens=8, count=10)
    assert len(found) == 10
    assert {len(_tokenizer().encode(text).ids) for text in found} == {8}
    assert all(any(text.startswith(beginning) for text in texts) for beginning in found)
    with pytest.raises(TextsError, match="only 0 texts give 300 tokens"):
        exact_texts(_tokenizer(), texts, tokens=300, count=10)


def test_labelled_rows_are_read_by_name_or_number_and_unknown_labels_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nfine,good\ndull,0\n", encoding="utf-8")
    assert read_labelled(path, ("bad", "good")) == (["fine", "dull"], [1, 0])
    path.write_text("text,label\nfine,5\n", encoding="utf-8")
    with pytest.raises(TextsError, match="1 with a label that is not bad, good"):
        read_labelled(path, ("bad", "good"))


def test_an_environment_that_cannot_be_made_says_why_and_is_not_taken_for_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("no-such-distribution==1.0\n", encoding="utf-8")
    with pytest.raises(PeerError, match="no-such-distribution"):
        peer_python(tmp_path, requirements)
    assert not list(tmp_path.rglob("ready"))


def test_every_requirement_of_the_peers_is_pinned() -> None:
    lines = [line for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines
    assert all("==" in line for line in lines)
    applications = sorted(REQUIREMENTS.parent.glob("fastapi_*.py"))
    assert {system.application for system in PEERS} < {path.stem for path in applications}
    for path in applications:
        source = path.read_text(encoding="utf-8")
        assert not any(
            name in source for name in ("import benchmarks", "from benchmarks", "bet_client", "import serve")
        )


@pytest.mark.heavy
def test_the_whole_comparison_of_a_tiny_folder(tmp_path: Path) -> None:
    """Real servers, all of them: the peers' environment is that of the command, made where it is missing."""
    checkpoint = tiny_hugging_face.write_folder(tmp_path / "model")
    rows = tiny_hugging_face.write_rows(checkpoint, tmp_path / "rows.csv")
    repository = tmp_path / "repository"
    added = add(AddOptions(checkpoint, "tiny", repository, RowFiles(calibration=rows), max_error=0.5, gate_texts=8))
    assert added.version == 1, added.report.table()
    settings = CompareSettings(
        "tiny", checkpoint, repository, lengths=(8, 20), callers=4, seconds=1.0, warm_up=0.3, rounds=2
    )
    said: list[str] = []
    outcome = compare(settings, tiny_hugging_face.TEXTS, peer_python(ROOT / "build" / "peers"), rows, said.append)
    report = judge(settings, outcome)
    checks = {check.name: check for check in report.checks}
    assert len(outcome.cells) == 2 * 2 * 3
    assert checks["error_rate"].holds, report.details["faults"]
    assert checks["accuracy_differs"].holds
    assert all(row["largest_difference"] < 1e-3 for row in report.details["table"])
    assert {check.name for check in report.checks if check.name.startswith("ratio_")} == {
        f"ratio_{name}_{length}" for name in ("fastapi", "optimum") for length in (8, 20)
    }
    assert outcome.versions["optimum-onnx"]
    assert json.loads(report.write(tmp_path).read_text(encoding="utf-8"))["in_process"]["optimum"]["20"] > 0


def test_a_peer_that_ends_while_starting_is_named_with_its_last_words(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no module named uvicorn; exit 3\n", encoding="utf-8")
    python.chmod(0o755)
    with pytest.raises(PeerError, match="fastapi ended while starting: no module named uvicorn"):  # noqa: SIM117
        with peer(PEERS[0], Setting(1, 1), python, tmp_path):
            pass


def test_wrong_settings_are_named_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lengths are 16, 16.*callers is 0.*seconds is 0"):
        CompareSettings("minilm", tmp_path, lengths=(16, 16), callers=0, seconds=0)


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "--model", "minilm", "--checkpoint", str(tmp_path), "--repository", str(tmp_path)]
    assert main([*arguments, "--lengths", "1"]) == 2
    assert json.dumps(capsys.readouterr().err).count("python -m benchmarks compare: lengths are 1") == 1
