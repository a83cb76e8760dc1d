"""A stub that is stopped while requests wait for it answers none of them late, and no other in their place."""

from __future__ import annotations

import http.client
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_repository import WORDS_MODEL, write_repository
from triton_http import infer

import serve
from serve.leftovers import marked_processes

LONGER_THAN_TRITON_WAITS = 1.5  # seconds


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[serve.Server]:
    """A server whose first step takes 0.2 s for a request, and is guarded as our own steps are."""
    repository = write_repository(tmp_path / "repository")
    guarded = WORDS_MODEL.replace("    def execute", "    @in_time\n    def execute").replace(
        "        return [self.answer", "        time.sleep(0.2)\n        return [self.answer"
    )
    assert guarded.count("in_time") == guarded.count("sleep") == 1
    step = repository / "tiny_words" / "1" / "model.py"
    step.write_text(f"import time\nfrom stops import in_time\n{guarded}", encoding="utf-8")
    with serve.start(repository) as server:
        yield server


def stubs(server: serve.Server, model: str) -> list[int]:
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in marked_processes(server.token)}
    return [pid for pid, command in commands.items() if pid != server.pid and f"{model}_0_0".encode() in command]


def stop_and_continue(server: serve.Server, stopped: list[int]) -> list[tuple[int, int, object]]:
    """(words asked for, status, answer) of requests that waited meanwhile, and of some that came later."""
    pause = threading.Event()

    def ask(words: int) -> tuple[int, int, object]:
        try:
            return words, *infer(server.http_url, "tiny", ["a " * words], outputs=["total"])
        except (OSError, http.client.HTTPException):  # Triton itself has ended
            return words, 503, "is not healthy"

    ask(1)
    with ThreadPoolExecutor(6) as pool:
        early = [pool.submit(ask, words) for words in range(2, 6)]
        pause.wait(0.3)  # into the second one
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        pause.wait(LONGER_THAN_TRITON_WAITS)
        late = pool.submit(ask, 6)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        return [future.result(timeout=60) for future in (*early, late)] + [ask(7)]


@pytest.mark.parametrize("who", ["the tokenizer step", "the classifier", "all"])
def test_no_request_gets_the_answer_of_another(slow: serve.Server, who: str) -> None:
    steps = {"the tokenizer step": ["tiny_words"], "the classifier": ["tiny_classifier"]}
    stopped = [pid for model in steps.get(who, ["tiny_words", "tiny_classifier"]) for pid in stubs(slow, model)]
    answers = stop_and_continue(slow, [slow.pid, *stopped] if who == "all" else stopped)
    slow.stop(drain_seconds=0)
    assert [(words, answer) for words, status, answer in answers if status == 200] == [
        (words, {"total": [words]}) for words, status, _ in answers if status == 200
    ]
    refused = [str(answer) for _, status, answer in answers if status != 200]
    assert refused, "else Triton gave up on nobody, and this test shows nothing"
    assert all("is not healthy" in reason for reason in refused), refused


def test_a_stub_that_nobody_waited_for_goes_on_as_before(slow: serve.Server) -> None:
    pause = threading.Event()
    everyone = marked_processes(slow.token)
    assert infer(slow.http_url, "tiny", ["a"], outputs=["total"]) == (200, {"total": [1]})
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    pause.wait(LONGER_THAN_TRITON_WAITS)
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)
    pause.wait(0.8)  # a request that comes at once is taken for one that waited
    assert infer(slow.http_url, "tiny", ["a a"], outputs=["total"]) == (200, {"total": [2]})
    assert marked_processes(slow.token) == everyone
