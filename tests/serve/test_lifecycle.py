"""A server starts only if it is right, and leaves nothing behind, however it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny_repository import write_repository
from triton_http import call, infer, metrics
from waiting import wait_until

import serve
from serve import embedded
from serve.leftovers import MARKER, SHARED_MEMORY, marked_processes
from serve.plan import Launch, Plan
from serve.probe import require_right_answer


def traces(server: serve.Server) -> tuple[list[int], list[Path]]:
    """Processes and shared-memory regions of a server."""
    return marked_processes(server.token), list(SHARED_MEMORY.glob(f"bet_{server.token}_*"))


def test_a_started_server_answers_and_a_stopped_one_leaves_no_process_no_memory_and_no_file(
    tiny: Path, own_cache: Path
) -> None:
    server = serve.start(tiny)
    processes, regions = traces(server)
    assert server.pid in processes
    assert len(processes) == 3  # the server and a stub for each of the two steps
    assert len(regions) == 2
    assert infer(server.http_url, "tiny", ["aaaa bb"], outputs=["total"]) == (200, {"total": [6]})
    assert 'nv_inference_request_summary_us{model="tiny",version="1",quantile="0.99"}' in metrics(server.metrics_url)
    server.stop()
    server.stop()
    assert not server.is_running()
    assert traces(server) == ([], [])
    assert list((own_cache / "servers").glob(f"{server.token}*")) == []
    with pytest.raises(serve.StartupError, match="stopped"):
        server.check()


def test_servers_started_at_the_same_time_do_not_disturb_each_other(tiny: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        servers = list(pool.map(lambda _: serve.start(tiny), range(2)))
    try:
        for server in servers:
            assert infer(server.http_url, "tiny", ["a"], outputs=["label"])[0] == 200
        servers[0].stop(drain_seconds=0)
        servers[1].check()
    finally:
        for server in servers:
            server.stop(drain_seconds=0)


def test_a_port_in_use_is_refused_at_once_and_its_owner_named(tiny: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            serve.PortTakenError, match=rf"port {port} is already in use by pid {os.getpid()}"
        ) as caught:
            serve.start(tiny, grpc_port=port)
    assert caught.value.port == port
    with pytest.raises(serve.PortTakenError, match="three different ones"):
        serve.start(tiny, http_port=serve.free_port(), grpc_port=(same := serve.free_port()), metrics_port=same)


def test_a_port_that_is_taken_while_triton_starts_is_replaced_by_another(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as faster:
        faster.bind(("127.0.0.1", 0))
        faster.listen()
        picks = iter([faster.getsockname()[1]])
        monkeypatch.setattr("serve.server.free_port", lambda host: next(picks, None) or serve.free_port(host))
        server = serve.start(tiny)
    assert infer(server.http_url, "tiny", ["a"])[0] == 200
    server.stop(drain_seconds=0)


def test_after_a_sigkill_the_next_start_cleans_its_own_leftovers_and_nothing_else(tiny: Path) -> None:
    bystander = serve.start(tiny)
    killed = serve.start(tiny)
    foreign_region = SHARED_MEMORY / f"triton_python_backend_shm_region_{secrets.token_hex(8)}"
    foreign_region.write_bytes(b"theirs")
    environment = {**os.environ, MARKER: "somebody-else"}
    foreign = subprocess.Popen(["cat"], stdin=subprocess.PIPE, env=environment)
    try:
        os.kill(killed.pid, signal.SIGKILL)
        wait_until(lambda: not killed.is_running())
        assert all(traces(killed)), "a killed server leaves stubs and regions, else this test shows nothing"
        successor = serve.start(tiny)
        successor.stop(drain_seconds=0)
        assert traces(killed) == ([], [])
        bystander.check()
        assert len(traces(bystander)[0]) == 3
        assert foreign.poll() is None
        assert foreign_region.exists()
    finally:
        foreign_region.unlink()
        foreign.kill()
        foreign.communicate()
        killed.stop()
        bystander.stop(drain_seconds=0)


def test_a_server_whose_launcher_was_killed_is_ended_by_the_next_start_and_frees_its_ports(tiny: Path) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-m", "serve", "--repository", str(tiny), "--json"]
        + [f"--{name}-port={serve.free_port()}" for name in ("http", "grpc", "metrics")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    ready = json.loads(launcher.stdout.readline())
    launcher.kill()
    launcher.communicate()
    assert infer(ready["http"], "tiny", ["a"])[0] == 200, "the orphan still serves"
    server = serve.start(tiny, http_port=int(ready["http"].rpartition(":")[2]))
    assert server.pid != ready["pid"]
    server.stop(drain_seconds=0)
    assert not Path(f"/proc/{ready['pid']}").exists() or Path(f"/proc/{ready['pid']}/cmdline").read_bytes() == b""


def test_sigterm_answers_what_is_queued_and_exits_0(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "repository", delay=1_000_000)
    command = subprocess.Popen(
        [sys.executable, "-m", "serve", "--repository", str(repository), "--json"]
        + [f"--{name}-port={serve.free_port()}" for name in ("http", "grpc", "metrics")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    ready = json.loads(command.stdout.readline())

    pending = 'nv_inference_pending_request_count{model="tiny_classifier",version="1"} 1'
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(infer, ready["http"], "tiny", ["aaaa bb"], outputs=["total"])
        wait_until(lambda: pending in metrics(ready["metrics"]))
        command.send_signal(signal.SIGTERM)
        assert waiting.result(timeout=30) == (200, {"total": [6]})
    assert command.wait(timeout=30) == 0
    command.stdout.close()


def test_a_model_that_cannot_be_loaded_is_named_with_its_reason(tiny: Path, own_cache: Path) -> None:
    (tiny / "tiny_classifier" / "1" / "model.onnx").write_bytes(b"truncated")
    files = sorted((own_cache / "servers").iterdir())
    with pytest.raises(serve.StartupError, match=r"model 'tiny_classifier' could not be loaded: .*Protobuf") as caught:
        serve.start(tiny)
    assert "/model.py(" not in str(caught.value), "Python's traceback is for the log"
    assert sorted((own_cache / "servers").iterdir()) == files


def test_a_server_whose_answer_differs_from_the_manifest_is_not_started(tiny: Path) -> None:
    manifest = tiny / "tiny_classifier" / "1" / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["probe"]["label"] = "short"
    manifest.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(serve.ProbeError, match=r"tiny.*label = \['long'\], recorded was \['short'\]"):
        serve.start(tiny)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": ("short",)}, "label"),
        ({"probabilities": (0.3, 0.7)}, "probabilities"),
        ({"probabilities": (1.0,)}, "probabilities"),
        ({"total": (33.01,)}, "total"),
        ({"text": "  "}, "at least one word"),
    ],
)
def test_a_probe_fails_by_label_probabilities_total_or_error(
    joining: serve.Server, change: dict[str, Any], reason: str
) -> None:
    right = joining.repository.probe("tiny")
    assert right is not None
    require_right_answer(joining.http_url, right, 10)
    text, answer = change.get("text", right.text), {**right.answer, **change}
    answer.pop("text", None)
    with pytest.raises(serve.ProbeError, match=reason):
        require_right_answer(joining.http_url, dataclasses.replace(right, text=text, answer=answer), 10)


def test_a_model_without_a_manifest_only_has_to_be_ready(joining: serve.Server) -> None:
    assert joining.repository.probe("tiny_torchscript") is None
    assert "tiny_torchscript" in joining.models
    joining.check()


def test_a_repository_whose_path_a_shell_would_split_is_served(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "my $models; and more")
    server = serve.start(repository)
    server.stop(drain_seconds=0)


def test_shapes_without_elements_get_400_from_the_ensemble(joining: serve.Server) -> None:
    before = traces(joining)
    for shape in ([0, 1], [1, 0]):
        assert infer(joining.http_url, "tiny", [], shape=shape)[0] == 400
    status, error = infer(joining.http_url, "tiny", ["a", " "], shape=[2, 1])
    assert (status, "at least one word" in error) == (400, True)
    assert traces(joining) == before


def test_a_broken_new_version_is_refused_each_time_while_the_old_one_serves(tiny: Path) -> None:
    server = serve.start(tiny)
    try:
        version = tiny / "tiny_classifier" / "2"
        version.mkdir()
        whole = (tiny / "tiny_classifier" / "1" / "model.onnx").read_bytes()
        (version / "model.onnx").write_bytes(whole[: len(whole) // 2])
        for _ in range(2):
            assert call(server.http_url, "POST", "/v2/repository/models/tiny_classifier/load")[0] == 400
            server.check()
    finally:
        server.stop(drain_seconds=0)


LOCK_BROKE = "terminate called after throwing an instance of 'boost::interprocess::lock_exception'"


@pytest.fixture
def abort(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], list[Plan]]:
    """Have the first so many servers abort while they start, saying why; gives the plans of all, also of the real."""
    prepare = embedded.prepare

    def arrange(times: int, says: str) -> list[Plan]:
        plans: list[Plan] = []

        def launch(plan: Plan) -> Launch:
            plans.append(plan)
            if len(plans) > times:
                return prepare(plan)
            # As a Triton that aborts: a stub lives on, and a region of shared memory stays.
            dies = f'sleep 600 & : > {SHARED_MEMORY}/{plan.shm_prefix}region; echo "{says}" >&2; kill -ABRT $$'
            return Launch(("/bin/sh", "-c", dies), {**os.environ, MARKER: plan.token})

        monkeypatch.setattr(embedded, "prepare", launch)
        return plans

    return arrange


def left_of(plan: Plan, cache: Path) -> list[object]:
    regions = SHARED_MEMORY.glob(f"{plan.shm_prefix}*")
    return [*marked_processes(plan.token), *regions, *(cache / "servers").glob(f"{plan.token}*")]


def test_triton_that_aborts_twice_over_its_own_lock_is_started_a_third_time(
    tiny: Path, own_cache: Path, abort: Callable[[int, str], list[Plan]], caplog: pytest.LogCaptureFixture
) -> None:  # triton-inference-server/server#8882
    plans = abort(2, LOCK_BROKE)
    with serve.start(tiny) as server:
        assert infer(server.http_url, "tiny", ["a"], outputs=["label"])[0] == 200
        assert [left_of(plan, own_cache) for plan in plans[:2]] == [[], []]
    said = [record.getMessage() for record in caplog.records if "over a lock" in record.getMessage()]
    assert [line.partition(" failed")[0] for line in said] == ["start 1 of 3", "start 2 of 3"]
    assert len(plans) == 3


def test_triton_that_aborts_over_its_own_lock_each_time_is_given_up_with_what_to_do(
    tiny: Path, own_cache: Path, abort: Callable[[int, str], list[Plan]]
) -> None:
    plans = abort(9, LOCK_BROKE)
    with pytest.raises(serve.BrokenLockError, match="start it again with less load beside it") as caught:
        serve.start(tiny)
    assert caught.value.log_tail == LOCK_BROKE
    assert [left_of(plan, own_cache) for plan in plans] == [[], [], []]


def test_triton_that_aborts_for_another_reason_is_not_started_again(
    tiny: Path, own_cache: Path, abort: Callable[[int, str], list[Plan]]
) -> None:
    plans = abort(9, "terminate called after throwing an instance of 'std::bad_alloc'")
    with pytest.raises(serve.StartupError, match=r"ended with status -6 while starting(.|\n)*bad_alloc") as caught:
        serve.start(tiny)
    assert not isinstance(caught.value, serve.BrokenLockError)
    assert [left_of(plan, own_cache) for plan in plans] == [[]]
